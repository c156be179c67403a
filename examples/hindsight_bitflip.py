"""Hindsight experience replay on BitFlip: without it DQN learns nothing once there are more than a few bits.

python examples/hindsight_bitflip.py --bits 8 13          two sizes, with and without hindsight
python examples/hindsight_bitflip.py --plot bitflip.png   8, 13, 20 and 30 bits, and a figure: three minutes

n bits, a goal of n bits, each action flips one. The reward is -1 until the bits equal the goal, and an episode has n
steps: with 30 bits a random policy meets a reward once in tens of millions of episodes. Hindsight learns from failures:
it asks what would have been, had the bits that were reached been the goal.

What to look for: the whole of it is `Transitions(relabel=Hindsight("future", k=4, reward_fn=reward_fn))`. The buffer
stores what happened; goals are replaced as batches are drawn.

After Andrychowicz et al. 2017 (arXiv:1707.01495), section 3.1: DQN, one hidden layer of 256 units, gamma = 0.98.
"""

import argparse
import time
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

import relive
from relive.dqn import DQN, AgentConfig

NUM_ENVS = 16


class BitFlip(VectorEnv):
    """Flip bits until they equal the goal; many environments at once, reset by the caller where an episode ended."""

    metadata: ClassVar = {"autoreset_mode": AutoresetMode.DISABLED}

    def __init__(self, num_bits: int, num_envs: int) -> None:
        bits = MultiBinary(num_bits)
        self.num_envs, self.num_bits = num_envs, num_bits
        self.single_observation_space = Dict(observation=bits, achieved_goal=bits, desired_goal=bits)
        self.single_action_space = Discrete(num_bits)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._bits, self._goals = np.zeros((2, num_envs, num_bits), np.int8)
        self._steps = np.zeros(num_envs, np.int64)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        mask = options["reset_mask"] if options else np.ones(self.num_envs, bool)
        for bits in (self._bits, self._goals):
            bits[mask] = self.np_random.integers(2, size=(mask.sum(), self.num_bits))
        self._steps[mask] = 0
        return self._observe(), {}

    def step(self, actions: NDArray[np.int64]) -> tuple[Any, ...]:
        self._bits[np.arange(self.num_envs), actions] ^= 1
        self._steps += 1
        reward, terminated = reward_fn(self._bits, self._goals)
        return self._observe(), reward, terminated, self._steps == self.num_bits, {}

    def _observe(self) -> dict[str, Any]:
        bits, goals = self._bits.copy(), self._goals.copy()
        return {"observation": bits, "achieved_goal": bits, "desired_goal": goals}


def reward_fn(achieved: NDArray[np.int8], desired: NDArray[np.int8]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Reward [M] and terminated [M] of the goals achieved and desired, [M, n] each."""
    reached = (achieved == desired).all(1)
    return reached - 1.0, reached


def inputs(obs: dict[str, Any]) -> torch.Tensor:
    """What the network sees, f32[B, 2n]: the bits and the goal, -1 or 1."""
    parts = [torch.as_tensor(obs[name]) for name in ("observation", "desired_goal")]
    return torch.cat(parts, 1).float() * 2 - 1


def success_rate(agent: DQN, num_bits: int, episodes: int = 100) -> float:
    """Share of greedy episodes that reach their goal; the same episodes every time."""
    envs = BitFlip(num_bits, episodes)
    obs, _ = envs.reset(seed=10_000)
    reached = np.zeros(episodes, bool)
    for _ in range(num_bits):
        obs, _, terminated, _, _ = envs.step(agent.act(inputs(obs).numpy(), 0.0))
        reached |= terminated  # what an environment does afterwards counts no more
    return float(reached.mean())


def train(num_bits: int, hindsight: bool, steps: int, seed: int) -> list[tuple[int, float]]:
    """DQN with or without hindsight; returns (step, success rate) of twenty evaluations on the way."""
    relabel = relive.Hindsight("future", k=4, reward_fn=reward_fn) if hindsight else None
    envs = BitFlip(num_bits, NUM_ENVS)
    view = relive.Transitions(gamma=0.98, relabel=relabel)
    buffer = relive.ReplayBuffer(200_000, relive.Schema.from_env(envs), view=view, seed=seed)
    config = AgentConfig(hidden=(256,), gamma=0.98, batch_size=128, learning_rate=1e-3, target="soft", tau=0.01)
    agent = DQN(Box(-1, 1, (2 * num_bits,)), envs.single_action_space, config, seed=seed)
    writer = buffer.writer(envs)
    obs, _ = envs.reset(seed=seed)
    writer.reset(obs)
    curve = []
    for step in range(1, steps // NUM_ENVS + 1):
        action = agent.act(inputs(obs).numpy(), 0.1 if step * NUM_ENVS > 2_000 else 1.0)
        obs, reward, terminated, truncated, info = envs.step(action)
        writer.step(action, obs, reward, terminated, truncated, info)
        ended = terminated | truncated
        if ended.any():
            obs, _ = envs.reset(options={"reset_mask": ended})
            writer.reset(obs, ended)
        if step * NUM_ENVS > 1_000:
            batch = buffer.sample(config.batch_size, output="torch")
            flat = {"obs": inputs(batch.obs), "next_obs": inputs(batch.next_obs)}
            agent.update(SimpleNamespace(**flat, action=batch.action, reward=batch.reward, discount=batch.discount))
        if step % max(1, steps // NUM_ENVS // 20) == 0:
            curve.append((step * NUM_ENVS, success_rate(agent, num_bits)))
    return curve


def plot(curves: dict[tuple[int, bool], NDArray[np.float64]], steps: NDArray[np.int64], path: str) -> None:
    """Success rates while learning, a panel for each number of bits: mean over seeds, and lowest to highest."""
    from matplotlib.figure import Figure

    sizes = sorted({num_bits for num_bits, _ in curves})
    figure = Figure(figsize=(8, 3.2), layout="constrained", dpi=150)
    panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
    for num_bits, axes in zip(sizes, panels, strict=True):
        for hindsight, colour, label in ((True, "#0072B2", "with hindsight"), (False, "#D55E00", "DQN alone")):
            rates = 100 * curves[num_bits, hindsight]  # f64[seeds, evaluations]
            axes.fill_between(steps / 1000, rates.min(0), rates.max(0), color=colour, alpha=0.2, linewidth=0)
            axes.plot(steps / 1000, rates.mean(0), "-" if hindsight else "--", color=colour, linewidth=1.8, label=label)
        axes.set_title(f"{num_bits} bits", fontsize="medium")
        axes.set_xlim(left=0)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("greedy episodes that\nreach the goal, %")
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside upper center", ncols=2, frameon=False)
    figure.supxlabel("environment steps, thousands", fontsize="medium")
    figure.savefig(path)


def main(arguments: list[str] | None = None) -> dict[tuple[int, bool], NDArray[np.float64]]:
    """Every size with and without hindsight: a table; returns success rates [seeds, evaluations]."""
    parser = argparse.ArgumentParser(description="DQN on BitFlip, with and without hindsight.")
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 13, 20, 30])
    parser.add_argument("--steps", type=int, default=150_000, help="environment steps of a run")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each kind")
    parser.add_argument("--plot", help="PNG to write")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # small matrices: more threads would wait for each other
    rates = {}
    print("| bits | hindsight | success rate at the end, each seed | CPU seconds a run |\n|---|---|---|---|")
    for num_bits in options.bits:
        for hindsight in (False, True):
            began = time.process_time()
            curves = [train(num_bits, hindsight, options.steps, seed) for seed in range(options.seeds)]
            rates[num_bits, hindsight] = np.array(curves)[..., 1]
            last = ", ".join(f"{rate:.0%}" for rate in rates[num_bits, hindsight][:, -1])
            seconds = (time.process_time() - began) / options.seeds
            print(f"| {num_bits} | {'future, k = 4' if hindsight else 'none'} | {last} | {seconds:.0f} |", flush=True)
    if options.plot:
        plot(rates, np.array(curves[0])[:, 0], options.plot)
    return rates


if __name__ == "__main__":
    main()
