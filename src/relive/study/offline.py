"""Learning from data alone: what DQN and conservative Q-learning reach on data of mixed quality, and with steps after.

Two behaviours are trained first: `medium`, a run of the preset stopped half way, and `expert`, the preset itself. With
them four datasets are recorded, from worthless to perfect:

    random   actions at random
    medium   the medium policy, 3 actions in 10 at random
    mixed    a third each of the two above and of the next
    expert   the expert's policy, 1 action in 20 at random

From each dataset a run learns by updates alone, then goes on in the environment with half of every batch from the
data. DQN and CQL differ in `cql_alpha` and in nothing else; `online alone` is the same DQN without any data. No run
stops early, and none picks its best weights: whoever has nothing but data has no evaluations to pick by. What is
reported of a run is the mean of its evaluations in the last quarter of either phase.

Papers: Kumar et al. 2020 (arXiv:2006.04779); Ball et al. 2023 (arXiv:2302.02948), section 4.1; Fu et al. 2020, "D4RL"
(arXiv:2004.07219), for the kinds of data.
"""

import csv
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import relive
from relive import interop
from relive.dqn import TrainConfig, preset
from relive.errors import ConfigError
from relive.interop.summary import Spread, summarise
from relive.study.aggregate import interval, iqm
from relive.study.offline_figure import draw
from relive.study.workers import Job, Report, run_jobs
from relive.train import load_policy
from relive.train.collect import collect
from relive.train.environments import make_env
from relive.train.evaluate import Act
from relive.train.log import read_metrics

DATASETS: dict[str, tuple[tuple[str | None, float, float], ...]] = {
    "random": ((None, 1.0, 1.0),),
    "medium": (("medium", 0.3, 1.0),),
    "mixed": ((None, 1.0, 1 / 3), ("medium", 0.3, 1 / 3), ("expert", 0.05, 1 / 3)),
    "expert": (("expert", 0.05, 1.0),),
}
"""Dataset -> its parts: whose policy (None: nobody's), how probable random actions are, the share of the data."""

LEARNERS = ("DQN", "CQL")
ALONE = "online alone"

RECORDING_SEED = 3_000_000
"""First seed of the recordings: no evaluation plays these episodes."""


@dataclass(frozen=True)
class OfflineConfig:
    """What to run, and where the results go.

    Raises:
        ConfigError: a value outside its range.
    """

    env: str
    """Gymnasium id of the environment; its preset is what the runs start from."""
    datasets: tuple[str, ...] = tuple(DATASETS)
    """Which of random, medium, mixed, expert."""
    transitions: int = 10_000
    """Of each dataset."""
    medium_steps: int = 2_000
    """Steps after which the training of the medium behaviour stops."""
    updates: int = 10_000
    """From the data alone."""
    steps: int = 10_000
    """In the environment after that."""
    cql_alpha: float = 1.0
    """Weight of CQL's conservative term."""
    learning_rate: float = 3e-4
    """Of all learners: what a preset has is tuned for data that the agent gathers itself."""
    target_every: int = 200
    """Likewise."""
    evaluations: int = 10
    """Points of a learning curve before the first step; after it as many steps apart as these are updates."""
    seeds: int = 5
    """Runs of each learner and dataset. The data are the same for all."""
    jobs: int = 1
    """Runs at a time, each a process with one thread."""
    out: Path | None = None
    """Directory of the study. None: runs/offline-ENV. Runs that have finished there are not repeated."""

    def __post_init__(self) -> None:
        """Check every range."""
        known = ", ".join(DATASETS)
        if not self.datasets or len(set(self.datasets)) < len(self.datasets) or set(self.datasets) - set(DATASETS):
            raise ConfigError(f"datasets: expected some of {known}, each once, got {' '.join(self.datasets)!r}.")
        for name in ("seeds", "jobs", "transitions", "medium_steps", "updates", "steps", "evaluations"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected an integer >= 1, got {getattr(self, name)}.")
        if not self.cql_alpha > 0:
            raise ConfigError(f"cql_alpha: expected a number > 0, got {self.cql_alpha}. At 0 it is DQN.")

    @property
    def directory(self) -> Path:
        """Where the study lies."""
        return self.out or Path("runs") / f"offline-{self.env.replace('/', '-')}"

    def dataset(self, name: str) -> Path:
        """Where a dataset lies."""
        return self.directory / "data" / f"{name}.npz"


@dataclass(frozen=True)
class Cell:
    """The runs of one learner on one dataset."""

    dataset: str
    """Empty for `online alone`."""
    learner: str
    places: NDArray[np.float64]
    """f64 [P], when evaluations were due: updates from the data alone, then steps in the environment."""
    returns: NDArray[np.float64]
    """f64 [seeds, P], mean returns of the evaluations."""
    begin: int
    """Updates from the data alone."""

    def late(self, *, online: bool) -> NDArray[np.float64]:
        """f64 [seeds], the mean of each run's evaluations in the last quarter of a phase."""
        first, last = (self.begin, self.places[-1]) if online else (0, self.begin)
        inside = (self.places > first + 0.75 * (last - first)) & (self.places <= last)
        means: NDArray[np.float64] = self.returns[:, inside].mean(axis=1)
        return means


def run(config: OfflineConfig, report: Report = lambda progress: None) -> list[Path] | signal.Signals:
    """Train the behaviours, record the data, make the runs that are missing, then table and figure.

    To be called from the main thread.

    Args:
        config: what to run.
        report: told how it goes about four times a second, and of every run that ends.

    Returns:
        The paths written (Markdown, CSV, PNG), or the signal that ended the study before it was complete.

    Raises:
        ConfigError: no such environment, settings that a run refuses, or a directory that holds other runs.
        OSError: a run failed, or the results cannot be written.

    Cost: two training runs, then (2 datasets + 1) x seeds more.
    """
    behaviours, jobs = plan_behaviours(config), plan(config)
    stopped = run_jobs(list(behaviours.values()), config.jobs, report)
    if stopped is not None:
        return stopped
    for name in config.datasets:
        if not config.dataset(name).exists():
            record(config, name, behaviours)
    stopped = run_jobs(list(jobs.values()), config.jobs, report)
    if stopped is not None:
        return stopped
    cells = [
        read_cell(dataset, learner, [jobs[dataset, learner, seed] for seed in range(config.seeds)])
        for dataset, learner in dict.fromkeys(key[:2] for key in jobs)
    ]
    behaviour = {name: summarise(interop.open(config.dataset(name))).returns for name in config.datasets}
    paths = [config.directory / f"offline.{kind}" for kind in ("md", "csv", "png")]
    paths[0].write_text(markdown(config, cells, behaviour), encoding="utf-8")
    write_csv(cells, behaviour, paths[1])
    draw(config.env, cells, {name: returns.mean for name, returns in behaviour.items()}, paths[2])
    return paths


def plan_behaviours(config: OfflineConfig) -> dict[str, Job]:
    """The runs whose policies record the data.

    Raises:
        ConfigError: no such environment.
    """
    make_env(config.env).close()  # refuses what cannot be trained
    expert = replace(preset(config.env), stop_return=None, threads=1)
    settings = {"medium": replace(expert, steps=config.medium_steps, keep="last"), "expert": expert}
    needed = {who for name in config.datasets for who, *_ in DATASETS[name]}
    return {who: Job(settings[who], config.directory / "behaviours" / who) for who in settings if who in needed}


def plan(config: OfflineConfig) -> dict[tuple[str, str, int], Job]:
    """Every run by dataset, learner and seed; one seed after the other, so that half a study is a fair one.

    Raises:
        ConfigError: settings that a run refuses.
    """
    base = preset(config.env)
    base = replace(
        base,
        steps=config.steps,
        threads=1,
        keep="last",
        stop_return=None,
        eval_every=max(config.updates // config.evaluations, base.num_envs),
        final_eval_episodes=base.eval_episodes,
        agent=replace(base.agent, learning_rate=config.learning_rate, target_every=config.target_every),
    )
    alphas = dict(zip(LEARNERS, (0.0, config.cql_alpha), strict=True))
    jobs: dict[tuple[str, str, int], Job] = {}
    for seed in range(config.seeds):
        for dataset in config.datasets:
            path = str(config.dataset(dataset))
            both = replace(base, seed=seed, offline=path, offline_updates=config.updates, online=True)
            for learner, alpha in alphas.items():
                settings = replace(both, agent=replace(both.agent, cql_alpha=alpha))
                jobs[dataset, learner, seed] = Job(settings, config.directory / "runs" / f"{dataset}-{learner}-{seed}")
        jobs["", ALONE, seed] = Job(replace(base, seed=seed), config.directory / "runs" / f"alone-{seed}")
    return jobs


def record(config: OfflineConfig, name: str, behaviours: dict[str, Job]) -> None:
    """Play one dataset and write it, whole or not at all."""
    policies = {who: load_policy(job.run_dir, job.config.keep) for who, job in behaviours.items()}
    parts = [(policies[who] if who else None, epsilon, share) for who, epsilon, share in DATASETS[name]]
    torch.set_num_threads(1)  # one observation at a time: threads would only wait for one another
    buffer = play(config.env, parts, config.transitions)
    path = config.dataset(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    interop.write(interop.of_buffer(buffer), path)


def play(env: str, parts: Sequence[tuple[Act | None, float, float]], transitions: int) -> relive.ReplayBuffer:
    """Episodes of several policies, one after the other; the last of each is cut short as by a time limit.

    Args:
        env: Gymnasium id.
        parts: policy (None: random), probability of a random action, share of the transitions.
        transitions: in all.

    Returns:
        ReplayBuffer: one lane, in order of time.
    """
    shares = np.cumsum([share for *_, share in parts])
    ends = np.rint(shares / shares[-1] * transitions).astype(int).tolist()
    buffer = relive.ReplayBuffer(transitions, seed=0)
    for part, (act, epsilon, _) in enumerate(parts):
        steps = ends[part] - len(buffer)
        source = collect(env, act, steps=steps, seed=RECORDING_SEED + part, epsilon=epsilon if act else 0.0)
        for block in source.blocks():
            buffer.extend(
                block.obs, block.action, block.reward, block.terminated, block.next_obs, truncated=block.truncated
            )
    return buffer


def read_cell(dataset: str, learner: str, jobs: Sequence[Job]) -> Cell:
    """The learning curves of one learner on one dataset, a run each seed."""
    settings = jobs[0].config
    begin, every = settings.updates_before, settings.eval_every
    due = np.concatenate(
        [np.append(np.arange(every, length, every), length) + start for start, length in _phases(settings)]
    ).astype(np.float64)
    return Cell(dataset, learner, due, np.stack([_curve(job, due) for job in jobs]), begin)


def _phases(settings: TrainConfig) -> list[tuple[int, int]]:
    """Where each phase begins and how long it is."""
    phases = [(0, settings.updates_before)] if settings.updates_before else []
    return [*phases, (settings.updates_before, settings.steps)]


def _curve(job: Job, due: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean returns of the evaluations that were due at these places, f64 [P].

    Several environments step together: an evaluation comes at the place it is due, or a few later.
    """
    metrics = read_metrics(job.run_dir)
    there = ~np.isnan(metrics["eval_mean"])
    place = np.minimum(metrics["updates"], job.config.updates_before) + metrics["step"]
    returns: NDArray[np.float64] = metrics["eval_mean"][there][np.searchsorted(place[there], due)]
    return returns


def markdown(config: OfflineConfig, cells: Sequence[Cell], behaviour: dict[str, Spread]) -> str:
    """The study in a page: what was run, the table, the figure."""
    table = {(cell.dataset, cell.learner): cell for cell in cells}
    names = [*LEARNERS, *(f"{learner}, then online" for learner in LEARNERS)]
    lines = [
        f"# Learning from data: {config.env}",
        "",
        f"{config.transitions:,} transitions a dataset, {config.updates:,} updates from it alone, then "
        f"{config.steps:,} steps with half of each batch from it; {config.seeds} seed{'s' if config.seeds > 1 else ''} "
        f"each, cql_alpha {config.cql_alpha:g}. Return of the greedy policy, mean of the evaluations in the last "
        "quarter of the phase: interquartile mean over the seeds and its 95 % bootstrap interval. Behaviour: mean "
        "return of the episodes in the data, from the worst to the best.",
        "",
        f"| data | behaviour | {' | '.join(names)} |",
        f"|{'---|' * (len(names) + 2)}",
    ]
    for name, returns in behaviour.items():
        entries = [_entry(table[name, learner].late(online=online)) for online in (False, True) for learner in LEARNERS]
        spread = f"{returns.mean:.1f}, {returns.low:.0f} to {returns.high:.0f}"
        lines.append(f"| {name} | {spread} | {' | '.join(entries)} |")
    alone = _entry(table["", ALONE].late(online=True))
    lines.append(f"| none: {ALONE} | | | | {alone} | |")
    lines += ["", "![learning curves](offline.png)"]
    return "\n".join(lines) + "\n"


def _entry(late: NDArray[np.float64]) -> str:
    low, high = interval(late)
    return f"{iqm(late):.1f} [{low:.1f}, {high:.1f}]"


def write_csv(cells: Sequence[Cell], behaviour: dict[str, Spread], path: Path) -> None:
    """One line a cell and phase: interquartile mean, its interval, and the mean of each seed."""
    seeds = len(cells[0].returns)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        head = ["data", "behaviour", "learner", "phase", "iqm", "low", "high"]
        writer.writerow([*head, *(f"seed{seed}" for seed in range(seeds))])
        for cell in cells:
            mean = round(behaviour[cell.dataset].mean, 3) if cell.dataset else ""
            for phase in ("online",) if cell.begin == 0 else ("offline", "online"):
                late = cell.late(online=phase == "online")
                numbers = (float(iqm(late)), *map(float, interval(late)), *late.tolist())
                writer.writerow([cell.dataset, mean, cell.learner, phase, *(round(number, 3) for number in numbers)])
