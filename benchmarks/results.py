"""What every preset reaches: runs each over several seeds, then writes docs/results.md and docs/results.png.

    python benchmarks/results.py                    # run what is missing, then report
    python benchmarks/results.py --only CartPole-v1 # of these environments
    python benchmarks/results.py --report           # from the runs that are there

A run that is whole and has today's preset is not repeated; an unfinished or outdated one is removed and run again.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from relive.dqn import PRESETS, TrainConfig, preset
from relive.errors import ConfigError
from relive.train import Evaluation, evaluate, load_config, load_policy
from relive.train.evaluate import FINAL_SEED
from relive.train.log import read_metrics
from relive.train.plot import Curve, draw

ROOT = Path(__file__).resolve().parent.parent
PAGE, FIGURE = ROOT / "docs" / "results.md", ROOT / "docs" / "results.png"


@dataclass(frozen=True)
class Reference:
    """What is published for DQN in an environment: mean greedy return after so many environment steps."""

    mean: float
    std: float | None
    steps: int


REFERENCES = {
    "CartPole-v1": Reference(500.0, 0.0, 50_000),
    "MountainCar-v0": Reference(-100.8, None, 120_000),
    "Acrobot-v1": Reference(-76.6, None, 100_000),
    "LunarLander-v3": Reference(154.0, 79.0, 100_000),
}
"""Stable-Baselines3's tuned DQN (rl-baselines3-zoo, benchmark.md; LunarLander as v2)."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    path: Path
    config: TrainConfig
    result: dict[str, Any]
    last: Evaluation
    """The same final episodes played with the last weights: what stopping without choosing would have given."""


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=list(PRESETS), metavar="ENV", help="of these environments")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at once; more than cores makes the times worthless")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "results", help="where the runs lie")
    parser.add_argument("--report", action="store_true", help="run nothing, report what is there")
    args = parser.parse_args()
    if not args.report:
        configs = [replace(preset(env), seed=seed) for env in args.only for seed in args.seeds]
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(lambda config: make(config, args.runs), configs))
    groups = {env: [load(replace(preset(env), seed=seed), args.runs) for seed in args.seeds] for env in PRESETS}
    there = {env: [run for run in runs if run is not None] for env, runs in groups.items() if any(runs)}
    draw_figure(there)
    PAGE.write_text(page(there, len(args.seeds)), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}, {FIGURE.relative_to(ROOT)}: {sum(map(len, there.values()))} runs.")


def place(config: TrainConfig, root: Path) -> Path:
    """Where the run of this config lies."""
    return root / f"{config.env}-{config.seed}"


def whole(config: TrainConfig, path: Path) -> bool:
    """Whether there is a finished run of exactly this config."""
    try:
        return load_config(path) == config and json.loads((path / "result.json").read_text())["final"] is not None
    except (ConfigError, OSError, ValueError):
        return False


def make(config: TrainConfig, root: Path) -> None:
    """Run the config in a process of its own, by the command that a user types, unless it has been run."""
    path = place(config, root)
    if whole(config, path):
        return
    shutil.rmtree(path, ignore_errors=True)
    command = [sys.executable, "-m", "relive", "train", config.env, "--seed", str(config.seed), "--out", str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if not whole(config, path):  # exit code 1 says only that the threshold was missed, which the page shall say too
        raise SystemExit(f"{' '.join(command[3:])} ended with {done.returncode}")
    print(f"{config.env}, seed {config.seed}: {done.stdout.partition('Greedy')[2].splitlines()[0].strip()}", flush=True)


def load(config: TrainConfig, root: Path) -> Run | None:
    """The run of this config, None if it is not there."""
    path = place(config, root)
    if not whole(config, path):
        return None
    last = evaluate(
        load_policy(path, "last"), config.env, episodes=config.final_eval_episodes, seed=FINAL_SEED, stack=config.stack
    )
    assert last is not None  # nothing asks it to stop
    return Run(path, config, json.loads((path / "result.json").read_text()), last)


def draw_figure(groups: dict[str, list[Run]]) -> None:
    """All learning curves, a panel an environment."""
    figure = Figure(figsize=(11, 4.3 * ((len(groups) + 1) // 2)), layout="constrained", dpi=130)
    panels = figure.subplots((len(groups) + 1) // 2, 2, squeeze=False).ravel()
    for axes, (env, runs) in zip(panels, groups.items(), strict=False):
        reference = REFERENCES[env]
        if reference.mean != runs[0].config.threshold:
            axes.axhline(reference.mean, color="#999999", linewidth=1, label=f"reference {reference.mean:g}", zorder=1)
        draw(axes, env, [Curve(f"seed {run.config.seed}", run.config, read_metrics(run.path)) for run in runs])
    for axes in panels[len(groups) :]:
        axes.set_axis_off()
    figure.savefig(FIGURE)


def page(groups: dict[str, list[Run]], seeds: int) -> str:
    """The whole page."""
    runs = [run for group in groups.values() for run in group]
    made_with = runs[0].result["versions"]
    lines = [
        "# What the presets reach",
        "",
        "Made by `python benchmarks/results.py`: `relive train ENV --seed S` for every preset and seed, nothing",
        "changed by hand. A return is that of the greedy policy: mean ± standard deviation of 100 episodes with seeds",
        "that no decision of the run has seen. Reference: the tuned DQN of Stable-Baselines3 as its authors give it",
        "(rl-baselines3-zoo), one seed, no spread over seeds known.",
        "",
        "| environment | return, mean of seeds (worst, best) | steps | reference | its steps | seeds at or above it |",
        "|---|---|---|---|---|---|",
        *(overview(env, group) for env, group in groups.items()),
        "",
        "![learning curves](results.png)",
        "",
        "Points are greedy evaluations during training, the band is their spread over episodes.",
        "",
        "## Run by run",
        "",
        "| environment | seed | steps | updates | training, s | evaluations, s | CPU of both, s "
        "| return of the kept weights | from step | return of the last weights |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(detail(run) for run in runs),
        "",
        "## Remarks",
        "",
        *remarks(groups, seeds),
        "",
        f"Times: {os.cpu_count()} cores of a {cpu()}, one thread a run. Versions: "
        + ", ".join(f"{name} {version}" for name, version in made_with.items())
        + ".",
    ]
    return "\n".join(lines) + "\n"


def overview(env: str, runs: Sequence[Run]) -> str:
    """A line of the first table."""
    means = [run.result["final"]["mean"] for run in runs]
    reference = REFERENCES[env]
    spread = "" if reference.std is None else f" ± {reference.std:g}"
    steps = sorted({run.result["steps"] for run in runs})
    above = sum(mean >= reference.mean for mean in means)
    return (
        f"| {env} | **{np.mean(means):.1f}** ({min(means):.1f}, {max(means):.1f}) "
        f"| {steps[0]:,}{f' to {steps[-1]:,}' if len(steps) > 1 else ''} | {reference.mean:g}{spread} "
        f"| {reference.steps:,} | {above} of {len(runs)} |"
    )


def detail(run: Run) -> str:
    """A line of the second table."""
    result = run.result
    training = result["seconds"] - result["eval_seconds"]
    return (
        f"| {run.config.env} | {run.config.seed} | {result['steps']:,} | {result['updates']:,} | {training:.1f} "
        f"| {result['eval_seconds']:.1f} | {result['cpu_seconds']:.1f} "
        f"| {result['final']['mean']:.1f} ± {result['final']['std']:.1f} | {result['kept_step']:,} "
        f"| {run.last.mean:.1f} ± {run.last.std:.1f} |"
    )


def remarks(groups: dict[str, list[Run]], seeds: int) -> list[str]:
    """What a careful reader would ask."""
    lines = [
        "- The weights kept are those of the best evaluation on the way (`keep=best`), chosen on other seeds than the",
        "  final episodes. The last column shows what the last weights reach on the same episodes: the difference is",
        "  what the choice brings, and DQN without it is less steady than one number suggests.",
        "- Where the preset has a `stop_return`, a run ends at the first evaluation that reaches it.",
        "- Training time leaves out the evaluations on the way, the final one, and the start of Python.",
        "- Three seeds show that a preset works, not how it ranks.",
    ]
    for env in PRESETS:
        runs = groups.get(env, [])
        if len(runs) < seeds:
            lines.append(f"- {env}: {len(runs)} of {seeds} seeds run so far with the preset as it is.")
    for env, runs in groups.items():
        reference = REFERENCES[env]
        missed = {run.config.seed: run.result["final"]["mean"] for run in runs}
        missed = {seed: mean for seed, mean in missed.items() if mean < reference.mean}
        if missed:
            which = ", ".join(f"seed {seed} ({mean:.1f})" for seed, mean in missed.items())
            lines.append(f"- {env}: below the reference of {reference.mean:g} with {which}.")
        steps = runs[0].config.steps
        if steps > reference.steps:
            lines.append(f"- {env}: the preset may use {steps:,} steps, more than the reference's {reference.steps:,}.")
    return lines


def cpu() -> str:
    """The processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "processor without a name"


if __name__ == "__main__":
    main()
