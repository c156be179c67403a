"""How much a replay buffer should hold: learning curves over capacities and samplers.

The question of Zhang & Sutton 2017 ("A deeper look at experience replay", arXiv:1712.01275). They found that a buffer
can be too small and too large, and that the newest transition in every batch (combined experience replay) mends the
latter. Fedus et al. 2020 (arXiv:2007.06700) ask it for Atari.

Each run is that of `relive train` with the preset of the environment, but for these settings: it trains all its steps
(no early stop), is evaluated 20 times on the way, and ends with its last weights. What is reported of it is the mean
of its evaluations in the last quarter: the greedy policy of DQN changes from one evaluation to the next.
"""

import csv
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from relive.dqn import TrainConfig, preset
from relive.errors import ConfigError
from relive.study.aggregate import interval, iqm
from relive.study.curves import Cell, draw
from relive.study.workers import Job, Report, run_jobs
from relive.train.environments import make_env
from relive.train.log import read_metrics

SamplerName = Literal["uniform", "newest", "prioritized", "rank-based"]

SETTINGS: dict[SamplerName, dict[str, object]] = {
    "uniform": {},
    "newest": {"newest": 1},
    "prioritized": {"sampler": "prioritized"},
    "rank-based": {"sampler": "rank-based", "priority_alpha": 0.7, "priority_beta": 0.5},
}
"""Sampler -> what it changes in a run."""

EVALUATIONS = 20
"""Points of a learning curve."""


@dataclass(frozen=True)
class CapacityConfig:
    """What to run, and where the results go.

    Raises:
        ConfigError: a value outside its range.
    """

    env: str
    """Gymnasium id of the environment; its preset is what the runs start from."""
    capacities: tuple[int, ...] = (100, 1_000, 10_000, 100_000)
    """Transitions that the buffer holds."""
    samplers: tuple[SamplerName, ...] = ("uniform", "newest", "prioritized")
    """How batches are drawn; newest: uniformly, and the newest transition in every batch."""
    seeds: int = 5
    """Runs of each sampler and capacity."""
    steps: int | None = None
    """Environment steps of a run. None: those of the preset."""
    jobs: int = 1
    """Runs at a time, each a process with one thread."""
    out: Path | None = None
    """Directory of the study. None: runs/capacity-ENV. Runs that have finished there are not repeated."""

    def __post_init__(self) -> None:
        """Check every range."""
        for name in ("capacities", "samplers"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ConfigError(f"{name}: expected at least one, each once, got {' '.join(map(str, values))!r}.")
        for name in ("seeds", "jobs"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected an integer >= 1, got {getattr(self, name)}.")

    @property
    def directory(self) -> Path:
        """Where the study lies."""
        return self.out or Path("runs") / f"capacity-{self.env.replace('/', '-')}"


def run(config: CapacityConfig, report: Report = lambda progress: None) -> list[Path] | signal.Signals:
    """Make the runs that are missing, then the table and the figure. To be called from the main thread.

    Args:
        config: what to run.
        report: told how it goes about four times a second, and of every run that ends.

    Returns:
        The paths written (Markdown, CSV, PNG), or the signal that ended the study before it was complete.

    Raises:
        ConfigError: no such environment, settings that a run refuses, or a directory that holds other runs.
        OSError: a run failed, or the results cannot be written.

    Cost: capacities x samplers x seeds training runs.
    """
    jobs = plan(config)
    stopped = run_jobs(list(jobs.values()), config.jobs, report)
    if stopped is not None:
        return stopped
    cells = [
        read_cell(sampler, capacity, [jobs[sampler, capacity, seed] for seed in range(config.seeds)])
        for sampler in config.samplers
        for capacity in config.capacities
    ]
    base = jobs[config.samplers[0], config.capacities[0], 0].config
    paths = [config.directory / f"capacity.{kind}" for kind in ("md", "csv", "png")]
    paths[0].write_text(markdown(cells, base), encoding="utf-8")
    write_csv(cells, paths[1])
    draw(cells, base, paths[2])
    return paths


def plan(config: CapacityConfig) -> dict[tuple[SamplerName, int, int], Job]:
    """Every run by sampler, capacity and seed; one seed after the other, so that half a study is a fair one.

    Raises:
        ConfigError: no such environment, or settings that a run refuses.
    """
    make_env(config.env).close()  # refuses what cannot be trained
    base = preset(config.env)
    steps = base.steps if config.steps is None else config.steps
    base = replace(
        base,
        steps=steps,
        threads=1,
        keep="last",
        stop_return=None,
        eval_every=max(steps // EVALUATIONS, base.num_envs),
        final_eval_episodes=base.eval_episodes,
    )
    jobs: dict[tuple[SamplerName, int, int], Job] = {}
    for seed in range(config.seeds):
        for sampler in config.samplers:
            for capacity in config.capacities:
                settings = replace(base, capacity=capacity, seed=seed, **SETTINGS[sampler])  # type: ignore[arg-type]
                run_dir = config.directory / "runs" / f"{sampler}-{capacity}-{seed}"
                jobs[sampler, capacity, seed] = Job(settings, run_dir)
    return jobs


def read_cell(sampler: str, capacity: int, jobs: Sequence[Job]) -> Cell:
    """The learning curves of one sampler and capacity, a run each seed."""
    settings = jobs[0].config
    due = np.arange(settings.eval_every, settings.steps + 1, settings.eval_every, dtype=np.float64)
    return Cell(sampler, capacity, due, np.stack([_curve(job.run_dir, due) for job in jobs]))


def _curve(run_dir: Path, due: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean returns of the evaluations that were due at these steps, f64 [P].

    Several environments step together: an evaluation comes at the step it is due, or a few later.
    """
    metrics = read_metrics(run_dir)
    there = ~np.isnan(metrics["eval_mean"])
    returns: NDArray[np.float64] = metrics["eval_mean"][there][np.searchsorted(metrics["step"][there], due)]
    return returns


def markdown(cells: Sequence[Cell], base: TrainConfig) -> str:
    """The study in a page: what was run, the table, the figure."""
    samplers = list(dict.fromkeys(cell.sampler for cell in cells))
    capacities = list(dict.fromkeys(cell.capacity for cell in cells))
    table = {(cell.sampler, cell.capacity): cell for cell in cells}
    seeds = len(cells[0].returns)
    lines = [
        f"# Capacity and sampler: {base.env}",
        "",
        f"{base.steps:,} steps, {seeds} seed{'s' if seeds > 1 else ''} each. Return of the greedy policy, mean of the "
        "evaluations in the last quarter of a run: interquartile mean over the seeds and its 95 % bootstrap interval.",
        "",
        f"| capacity | {' | '.join(samplers)} |",
        f"|{'---|' * (len(samplers) + 1)}",
    ]
    lines += [
        f"| {capacity:,} | {' | '.join(_entry(table[sampler, capacity].final) for sampler in samplers)} |"
        for capacity in capacities
    ]
    lines += ["", "![learning curves](capacity.png)"]
    return "\n".join(lines) + "\n"


def _entry(final: NDArray[np.float64]) -> str:
    low, high = interval(final)
    return f"{iqm(final):.1f} [{low:.1f}, {high:.1f}]"


def write_csv(cells: Sequence[Cell], path: Path) -> None:
    """One line a cell: interquartile mean, its interval, and the mean of each seed."""
    seeds = len(cells[0].returns)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["sampler", "capacity", "iqm", "low", "high", *(f"seed{seed}" for seed in range(seeds))])
        for cell in cells:
            numbers = (float(iqm(cell.final)), *map(float, interval(cell.final)), *cell.final.tolist())
            writer.writerow([cell.sampler, cell.capacity, *(round(number, 3) for number in numbers)])
