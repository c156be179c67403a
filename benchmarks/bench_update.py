"""One update of a DQN against eager PyTorch, and Stable-Baselines3 where it is installed.

    python benchmarks/bench_update.py [--seconds 20] [--json PATH]

All contestants take turns in one process with one thread, on the same network, batch size and number of transitions. A
train step is what a trainer pays: draw a batch from the buffer, then update. Stable-Baselines3's is its own
`train()`, without the callbacks and the target copy of its loop.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import itertools
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium
import torch
from rich.console import Console
from rich.table import Table

import relive
from relive.dqn import DQN, AgentConfig
from timing import Run, calls, interleave, median, ratio

ENV = "CartPole-v1"
TRANSITIONS = 20_000
WARM_UP = 2_000
"""Train steps before the measurement: units that died leave Adam moments that decay into denormal numbers, which slow
an optimiser down, but only after a thousand steps."""

ROUND = 16
"""Train steps in a row: as in training, a contestant works in the caches it leaves behind, not in its rivals'."""

RELIVE, UPDATE, EAGER, SB3 = "relive train step", "relive update alone", "eager train step", "SB3 train step"
HAS_SB3 = importlib.util.find_spec("stable_baselines3") is not None
REACH = 4.0
"""Times as many train steps a second as Stable-Baselines3."""


@dataclass(frozen=True)
class Size:
    """A network and a batch."""

    hidden: tuple[int, ...]
    batch_size: int

    @property
    def name(self) -> str:
        """As in the tables: 4-256-256-2, batch 64."""
        return f"4-{'-'.join(map(str, self.hidden))}-2, batch {self.batch_size}"


SIZES = (Size((256, 256), 64), Size((256, 256), 128), Size((64, 64), 32))

OPTIONS = {
    "plain": {},
    "no clipping": {"max_grad_norm": None},
    "huber": {"loss": "huber"},
    "soft target": {"target": "soft"},
    "double": {"double": True},
    "dueling": {"dueling": True},
    "double, dueling": {"double": True, "dueling": True},
}
"""What each option adds, at the first size."""


def filled_buffer() -> relive.ReplayBuffer:
    """Random play."""
    env = gymnasium.make(ENV)
    env.action_space.seed(0)
    buffer = relive.ReplayBuffer(TRANSITIONS, relive.Schema.from_env(env), seed=0)
    obs, _ = env.reset(seed=0)
    for _ in range(TRANSITIONS):
        action = env.action_space.sample()
        next_obs, reward, terminated, truncated, _ = env.step(action)
        buffer.push(obs, action, float(reward), terminated, next_obs, truncated=truncated)
        obs = env.reset()[0] if terminated or truncated else next_obs
    return buffer


def make_agent(config: AgentConfig) -> DQN:
    """The library's."""
    env = gymnasium.make(ENV)
    return DQN(env.observation_space, env.action_space, config, seed=0)


def relive_step(buffer: relive.ReplayBuffer, config: AgentConfig) -> Run:
    """Draw and update."""
    agent = make_agent(config)
    return calls(lambda: agent.update(buffer.sample(config.batch_size, output="torch")))


def relive_update(buffer: relive.ReplayBuffer, config: AgentConfig) -> Run:
    """Update on batches drawn before."""
    agent = make_agent(config)
    batches = [buffer.sample(config.batch_size, output="torch") for _ in range(64)]
    turn = iter(range(1 << 62))
    return calls(lambda: agent.update(batches[next(turn) % len(batches)]))


def eager_step(buffer: relive.ReplayBuffer, config: AgentConfig) -> Run:
    """The same as anyone would write it: modules, autograd, fused Adam."""
    assert config.hidden is not None
    torch.manual_seed(0)
    widths = (4, *config.hidden)
    layers: list[torch.nn.Module] = []
    for below, above in itertools.pairwise(widths):
        layers += [torch.nn.Linear(below, above), torch.nn.ReLU()]
    online = torch.nn.Sequential(*layers, torch.nn.Linear(widths[-1], 2))
    target = copy.deepcopy(online)
    optimizer = torch.optim.Adam(online.parameters(), lr=config.learning_rate, fused=True)

    def step() -> None:
        batch = buffer.sample(config.batch_size, output="torch")
        with torch.no_grad():
            targets = batch.reward + batch.discount * target(batch.next_obs).amax(1)
        taken = online(batch.obs).gather(1, batch.action.unsqueeze(1)).squeeze(1)
        loss = 0.5 * torch.nn.functional.mse_loss(taken, targets)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(online.parameters(), 10.0)
        optimizer.step()

    return calls(step)


def sb3_step(config: AgentConfig) -> Run:
    """Stable-Baselines3's DQN after random play of as many transitions."""
    from stable_baselines3 import DQN as SB3DQN
    from stable_baselines3.common.logger import configure

    model = SB3DQN(
        "MlpPolicy",
        ENV,
        policy_kwargs={"net_arch": list(config.hidden or ())},
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        buffer_size=TRANSITIONS,
        learning_starts=TRANSITIONS,
        device="cpu",
        seed=0,
    )
    model.set_logger(configure(None, []))
    model.learn(TRANSITIONS)
    return lambda times: model.train(times, config.batch_size)


def in_rounds(run: Run) -> Run:
    """The same contestant, `ROUND` train steps an operation."""
    return lambda times: run(times * ROUND)


def measure(contestants: Mapping[str, Run], seconds: float, base: str) -> list[dict[str, Any]]:
    """Microseconds and ratio to `base` of each."""
    for run in contestants.values():
        run(WARM_UP)
    rounds = interleave({name: in_rounds(run) for name, run in contestants.items()}, seconds)
    return [
        {"name": name, "microseconds": round(median(values) / ROUND, 1), "ratio": round(ratio(values, rounds[base]), 3)}
        for name, values in rounds.items()
    ]


def table(title: str, base: str, rows: list[dict[str, Any]]) -> Table:
    """For people."""
    shown = Table(title=title, title_justify="left")
    shown.add_column("")
    for heading in ("microseconds", "a second", f"time / {base}"):
        shown.add_column(heading, justify="right")
    for row in rows:
        us = row["microseconds"]
        shown.add_row(row["name"], f"{us:,.0f}", f"{1e6 / us:,.0f}", f"{row['ratio']:.2f}")
    return shown


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each table")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    buffer = filled_buffer()
    packages = ["relive", "torch", "numpy", "gymnasium", *(["stable-baselines3"] if HAS_SB3 else [])]
    report: dict[str, Any] = {
        "environment": {
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
            **{name: version(name) for name in packages},
        }
    }
    for size in SIZES:
        config = AgentConfig(**asdict(size))
        contestants = {
            RELIVE: relive_step(buffer, config),
            UPDATE: relive_update(buffer, config),
            EAGER: eager_step(buffer, config),
            **({SB3: sb3_step(config)} if HAS_SB3 else {}),
        }
        rows = report[size.name] = measure(contestants, args.seconds, RELIVE)
        console.print(table(size.name, RELIVE, rows))
    base = AgentConfig(**asdict(SIZES[0]))
    variants = {name: relive_step(buffer, replace(base, **options)) for name, options in OPTIONS.items()}
    report["options"] = measure(variants, args.seconds, "plain")
    console.print(table(f"options, {SIZES[0].name}", "plain", report["options"]))
    if HAS_SB3:
        reached = next(row["ratio"] for row in report[SIZES[0].name] if row["name"] == SB3)
        report["target"] = {"reach": REACH, "measured": reached, "reached": reached >= REACH}
        console.print(f"Train steps a second against Stable-Baselines3: {reached:.1f} times (to reach: {REACH:g}).")
    else:
        console.print("Stable-Baselines3 is not installed: pip install stable-baselines3 to compare.")
    if args.json:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
