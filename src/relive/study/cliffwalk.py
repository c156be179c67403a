"""The Blind Cliffwalk: how many updates a table needs when successes are rare, by sampler.

The study of Schaul et al. 2016 (arXiv:1511.05952, section 3.1, appendix B.1). n states in a row, two actions: the
right one leads to the next state, the wrong one ends the episode; only the right action in the last state is rewarded,
with 1. Every one of the 2^n sequences of actions was executed once, until it ended: 2^(n+1) - 2 transitions, as often
as a random policy meets them, one of them rewarded. Q-learning with a table learns from them, one transition an update.

As in the paper: which action is right alternates from state to state; gamma = 1 - 1/n; step size 1/4; converged when
the mean squared error of all 2n values against the true ones is below 1e-3; no target network, no importance weights.

Where the paper leaves a choice, here:

- Q starts from a normal distribution of standard deviation 0.1 ("N(0, 0.1)"), the same table for every sampler.
- The sequences come in random order, the transitions of one in order of time.
- All transitions are in memory before the first update, so all start with the same priority, 1. Priorities are
  those of the last visit; an update renews that of its own transition alone.
- proportional: `relive.Prioritized(alpha=0.6, eps=1e-6)`; rank-based: `relive.samplers.RankBased(alpha=0.7)`. These are
  the paper's exponents for Atari, taken as they are; nothing was tuned for this task.
- greedy: the largest |delta| as of its last visit, of equals the oldest.
- oracle: the transition whose update leaves the smallest error. Copies of a transition have the same effect, so one of
  each kind is tried.
- Uniform draws do not depend on what was learned: they are drawn many at a time and applied one by one.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

import relive
from relive.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STEP_SIZE = 0.25
TOLERANCE = 1e-3
"""Mean squared error below which values count as learned."""

SAMPLERS = ("uniform", "rank-based", "proportional", "greedy", "oracle")
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#333333")
"""In the order of SAMPLERS; told apart by colour-blind readers too (Okabe and Ito)."""
MARKERS = ("o", "s", "D", "^", "v")

_UNIFORM_DRAWS = 1024


@dataclass(frozen=True)
class CliffwalkConfig:
    """What to run, and where the results go.

    Raises:
        ConfigError: a value out of range.
    """

    sizes: tuple[int, ...] = tuple(range(2, 13))
    """Numbers of states n; a memory holds 2^(n+1) - 2 transitions."""
    seeds: int = 10
    """Runs of each sampler and size."""
    max_updates: int = 5_000_000
    """A run that has not converged by then ends there, and is marked as one that has not."""
    out: Path = Path("runs/cliffwalk")
    """Directory for cliffwalk.csv and cliffwalk.png."""

    def __post_init__(self) -> None:
        """Check every range."""
        if not self.sizes or not all(isinstance(size, int) and 2 <= size <= 20 for size in self.sizes):
            raise ConfigError(f"sizes: expected numbers of states in [2, 20], got {self.sizes}.")
        if len(set(self.sizes)) < len(self.sizes):
            raise ConfigError(f"sizes: expected each number of states once, got {self.sizes}.")
        for name in ("seeds", "max_updates"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected an integer >= 1, got {getattr(self, name)}.")


@dataclass(frozen=True)
class Run:
    """One line of the table."""

    sampler: str
    states: int
    transitions: int
    seed: int
    updates: int
    """To convergence, or all that were allowed."""
    converged: bool


class Transition(NamedTuple):
    """One transition as plain numbers; discount is 0 where the episode ended."""

    state: int
    action: int
    reward: float
    next_state: int
    discount: float


class Table:
    """Q of every state and action, and how far it is from the truth."""

    def __init__(self, num_states: int, rng: np.random.Generator) -> None:
        """Values near zero."""
        # Python's numbers, not NumPy's: a run reads and writes them one by one, up to millions of times.
        self.values: list[list[float]] = rng.normal(0.0, 0.1, (num_states, 2)).tolist()
        self.values.append([0.0, 0.0])  # where an episode has ended; multiplied by a discount of 0
        self._truth: list[list[float]] = true_values(num_states).tolist()
        errors = itertools.chain.from_iterable(
            zip(row, true, strict=True) for row, true in zip(self.values[:-1], self._truth, strict=True)
        )
        self._squares: float = sum((value - true) ** 2 for value, true in errors)
        self._count = 2 * num_states

    @property
    def error(self) -> float:
        """Mean squared error over all states and actions."""
        return self._squares / self._count

    def delta(self, step: Transition) -> float:
        """The TD error of a transition."""
        target = step.reward + step.discount * max(self.values[step.next_state])
        return target - self.values[step.state][step.action]

    def gain(self, step: Transition) -> float:
        """By how much an update with this transition would lower the sum of squared errors."""
        before = self.values[step.state][step.action] - self._truth[step.state][step.action]
        after = before + STEP_SIZE * self.delta(step)
        return before * before - after * after

    def update(self, step: Transition) -> float:
        """Q-learning (Watkins & Dayan 1992); returns the TD error before the update."""
        delta = self.delta(step)
        self._squares -= self.gain(step)
        self.values[step.state][step.action] += STEP_SIZE * delta
        return delta


class Greedy:
    """A sampler of one's own: always the largest |delta|, as it was at the last visit; of equals the oldest."""

    def __init__(self) -> None:
        """New transitions have priority 1, as in the library's own samplers."""
        self._priority = np.ones(0)

    def draw(self, ids: NDArray[np.int64], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """The same id n times: nothing changes while a batch is drawn."""
        self._grow(int(ids[-1]) + 1)
        return np.full(n, ids[self._priority[ids].argmax()])

    def update_priorities(self, ids: NDArray[np.int64], abs_td: NDArray[np.float64]) -> None:
        """Remembers |delta|."""
        self._grow(int(ids.max()) + 1)
        self._priority[ids] = abs_td

    def _grow(self, size: int) -> None:
        if size > len(self._priority):
            self._priority = np.append(self._priority, np.ones(size - len(self._priority)))


class Oracle:
    """A sampler of one's own: the transition whose update leaves the smallest error. It knows the true values."""

    def __init__(self, table: Table, buffer: relive.ReplayBuffer) -> None:
        """Finds one transition of each kind in the buffer, which stays as it is."""
        ids = buffer.ids
        steps = _transitions(buffer.get(ids))
        self._table = table
        self._kinds = dict(zip(reversed(steps), reversed(ids.tolist()), strict=True))  # the oldest of each kind

    def draw(self, ids: NDArray[np.int64], n: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """The same id n times."""
        return np.full(n, self._kinds[max(self._kinds, key=self._table.gain)])


def true_values(num_states: int) -> NDArray[np.float64]:
    """Q* f64 [n, 2]: gamma^(n - 1 - s) for the right action in state s, 0 for the wrong one."""
    states = np.arange(num_states)
    values = np.zeros((num_states, 2))
    values[states, states % 2] = (1 - 1 / num_states) ** (num_states - 1 - states)
    return values


def fill(num_states: int, rng: np.random.Generator, seed: int) -> relive.ReplayBuffer:
    """A buffer with every sequence of actions executed once: 2^(n+1) - 2 transitions."""
    steps: list[tuple[int, int, float, bool, int]] = []
    for bits in rng.permutation(2**num_states).tolist():
        for state in range(num_states):
            action = bits >> state & 1
            right, last = action == state % 2, state == num_states - 1
            ended = last or not right
            steps.append((state, action, float(right and last), ended, num_states if ended else state + 1))
            if ended:
                break
    state_field = relive.Field("int64", (), low=0, high=num_states)
    schema = relive.Schema(obs=state_field, action=relive.Field("int64", (), low=0, high=1))
    view = relive.Transitions(gamma=1 - 1 / num_states)
    buffer = relive.ReplayBuffer(len(steps), schema, view=view, seed=seed)
    obs, action_column, reward, terminated, next_obs = (np.array(column) for column in zip(*steps, strict=True))
    buffer.extend(obs, action_column, reward.astype(np.float32), terminated, next_obs)
    return buffer


def learn(name: str, buffer: relive.ReplayBuffer, table: Table, max_updates: int, seed: int) -> tuple[int, bool]:
    """Updates the table with what one sampler draws.

    Args:
        name: one of SAMPLERS.
        buffer: filled; only read.
        table: of this run alone.
        max_updates: after which the run ends anyhow.
        seed: of the sampler's generator.

    Returns:
        updates made, and whether the values have converged.
    """
    reader = buffer.reader(sampler=_sampler(name, buffer, table), seed=seed)
    draws, keeps = (_UNIFORM_DRAWS if name == "uniform" else 1), name not in ("uniform", "oracle")
    updates = 0
    while updates < max_updates:
        batch = reader.sample(draws)
        for step in _transitions(batch)[: max_updates - updates]:
            delta = table.update(step)
            updates += 1
            if table.error < TOLERANCE:
                return updates, True
        if keeps:
            reader.update_priorities(batch.ids, np.array([abs(delta)]))
    return updates, False


def run(config: CliffwalkConfig, report: Callable[[str], None] = print) -> list[Path]:
    """Runs the study.

    Args:
        config: what to run.
        report: told a line for each number of states.

    Returns:
        the paths written: cliffwalk.csv with every run, cliffwalk.png.

    Cost: the default takes minutes on one core; twice as long for each further state. Needs matplotlib.
    """
    runs: list[Run] = []
    for num_states in config.sizes:
        for seed in range(config.seeds):
            memory_rng, table_seed = np.random.default_rng([num_states, seed, 0]), [num_states, seed, 1]
            buffer = fill(num_states, memory_rng, seed)
            for name in SAMPLERS:
                table = Table(num_states, np.random.default_rng(table_seed))
                updates, converged = learn(name, buffer, table, config.max_updates, seed)
                runs.append(Run(name, num_states, len(buffer), seed, updates, converged))
        report(_line(num_states, runs))
    config.out.mkdir(parents=True, exist_ok=True)
    paths = [config.out / "cliffwalk.csv", config.out / "cliffwalk.png"]
    write_csv(runs, paths[0])
    plot(runs, paths[1])
    return paths


def write_csv(runs: Sequence[Run], path: Path) -> None:
    """Every run, one a line."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in fields(Run)])
        writer.writerows(astuple(run) for run in runs)


def plot(runs: Sequence[Run], path: Path) -> None:
    """Updates to convergence against transitions in memory, both logarithmic: medians, and quartiles as bands."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained", dpi=150)
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.set_yscale("log")
    ends: dict[str, float] = {}
    for name, colour, marker in zip(SAMPLERS, COLOURS, MARKERS, strict=True):
        ends[name] = _draw(axes, [run for run in runs if run.sampler == name], colour, marker)
    seeds = 1 + max(run.seed for run in runs)
    axes.set_title("Blind Cliffwalk: updates until the values are learned", loc="left", fontweight="bold")
    axes.set_xlabel(
        "transitions in memory, one of them rewarded: $2^{n+1} - 2$ for n = 2, 3, ... states\n"
        f"lines: medians of {seeds} seeds; bands: quartiles"
    )
    axes.set_ylabel("updates, one transition each")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    _label(axes, max(run.transitions for run in runs), ends)
    figure.savefig(path, format="png")


def _draw(axes: Axes, runs: Sequence[Run], colour: str, marker: str) -> float:
    """One sampler's line; returns the height of its end. Medians of runs that were cut are hollow: lower bounds."""
    sizes = sorted({run.transitions for run in runs})
    groups = [[run for run in runs if run.transitions == size] for size in sizes]
    low, median, high = np.array([np.quantile([run.updates for run in group], [0.25, 0.5, 0.75]) for group in groups]).T
    cut = [2 * sum(not run.converged for run in group) >= len(group) for group in groups]
    axes.fill_between(sizes, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(sizes, median, color=colour, linewidth=1.8)
    for size, value, hollow in zip(sizes, median, cut, strict=True):
        axes.plot(size, value, marker, color=colour, markersize=5, markerfacecolor="white" if hollow else colour)
    return float(median[-1])


def _label(axes: Axes, right: int, ends: dict[str, float]) -> None:
    """Names beside the ends of the lines, moved up where they would lie on one another."""
    bottom, top = np.log(axes.get_ylim())
    place = -np.inf
    for name in sorted(ends, key=lambda name: ends[name]):
        place = max(np.log(ends[name]), place + 0.042 * (top - bottom))
        axes.annotate(
            name,
            (right, float(np.exp(place))),
            xytext=(9, 0),
            textcoords="offset points",
            va="center",
            color=COLOURS[SAMPLERS.index(name)],
            fontweight="bold",
            annotation_clip=False,
        )


def _sampler(name: str, buffer: relive.ReplayBuffer, table: Table) -> relive.samplers.BuiltIn | relive.samplers.Sampler:
    if name == "rank-based":
        return relive.samplers.RankBased(alpha=0.7)
    if name == "proportional":
        return relive.Prioritized(alpha=0.6, eps=1e-6)
    if name == "greedy":
        return Greedy()
    return Oracle(table, buffer) if name == "oracle" else relive.Uniform()


def _transitions(batch: relive.Batch) -> list[Transition]:
    columns = (batch.obs, batch.action, batch.reward, batch.next_obs, batch.discount)
    return [Transition(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _line(num_states: int, runs: Sequence[Run]) -> str:
    """The medians of one number of states."""
    own = [run for run in runs if run.states == num_states]
    medians = (f"{name} {np.median([run.updates for run in own if run.sampler == name]):,.0f}" for name in SAMPLERS)
    return f"n = {num_states:2}, {own[0].transitions:6,} transitions, updates: {', '.join(medians)}"
