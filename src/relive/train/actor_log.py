"""What a run writes down of each of its actors: actors.csv."""

import csv
import math
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relive.errors import ConfigError
from relive.train.actor import Report
from relive.train.rundir import ACTORS, naming, write_file


@dataclass(frozen=True)
class ActorRow:
    """One line of actors.csv: one actor, at a row of metrics.csv. NaN, written as an empty cell: nothing to tell."""

    step: int
    """Environment steps of the run so far, as in metrics.csv."""
    actor: int
    """Its number, from 0."""
    epsilon: float
    """Its probability of a random action."""
    steps: int
    """Transitions it has handed over so far."""
    steps_per_second: float
    """The same a second since the row before, evaluations included: actors play on meanwhile."""
    episodes: int
    """Episodes it has ended so far."""
    return_mean: float
    """Mean return of those since the row before."""
    restarts: int
    """How often it died and was replaced."""
    waited: float
    """Seconds for which it was held, so far, as the learner was behind."""
    age: int
    """Updates made since the weights that it last acted with."""


COLUMNS = tuple(one.name for one in fields(ActorRow))


@dataclass
class Tally:
    """What one actor, in all its lives, has done so far."""

    steps: int = 0
    episodes: int = 0
    restarts: int = 0
    waited: float = 0.0
    updates: int = 0
    """Updates that had made the weights it last acted with."""
    returns: list[float] = field(default_factory=list)
    """Of the episodes that ended since the last row."""
    row_steps: int = 0
    """`steps` at the last row."""

    def add(self, report: Report) -> None:
        """Take in what a round came to."""
        self.steps += report.steps
        self.episodes += len(report.returns)
        self.returns += report.returns
        self.waited += report.waited
        self.updates = report.updates

    def row(self, step: int, actor: int, epsilon: float, seconds: float, updates: int) -> ActorRow:
        """The line to be written now, `seconds` after the one before; begins anew what is counted by row."""
        row = ActorRow(
            step=step,
            actor=actor,
            epsilon=round(epsilon, 6),
            steps=self.steps,
            steps_per_second=round((self.steps - self.row_steps) / max(seconds, 1e-9), 1),
            episodes=self.episodes,
            return_mean=float(np.mean(self.returns)) if self.returns else math.nan,
            restarts=self.restarts,
            waited=round(self.waited, 3),
            age=updates - self.updates,
        )
        self.row_steps = self.steps
        self.returns.clear()
        return row

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps, as plain values."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Tally":
        """Go on from `state_dict()`; the rate of the next row is that from here on."""
        return cls(**{**state, "row_steps": state["steps"]})


class ActorLog:
    """Writes rows to `run_dir`; whatever has been written survives the process.

    Args:
        run_dir: the run.
        before: the text to go on after, as `text` gave it; other rows that are there are dropped.
    """

    def __init__(self, run_dir: Path, before: str = "") -> None:
        self._path = run_dir / ACTORS
        write_file(self._path, before.encode())
        self._file = self._path.open("a+", newline="", encoding="utf-8")
        self._csv = csv.writer(self._file)
        if not before:
            with naming(self._path):
                self._csv.writerow(COLUMNS)
                self._file.flush()

    def write(self, row: ActorRow) -> None:
        """Add one row."""
        values = astuple(row)
        with naming(self._path):
            self._csv.writerow("" if isinstance(value, float) and math.isnan(value) else value for value in values)
            self._file.flush()

    def text(self) -> str:
        """All of actors.csv."""
        with naming(self._path):
            self._file.flush()
        self._file.seek(0)
        return self._file.read()

    def close(self) -> None:
        """Close the file. Idempotent."""
        with naming(self._path):  # it still writes what could not be written before
            self._file.close()


def read_actors(run_dir: Path) -> dict[str, NDArray[np.float64]]:
    """The columns of a run's actors.csv by name, each float64 [rows], NaN where a cell is empty.

    Raises:
        ConfigError: there is no such file: the run had no actors.
    """
    path = run_dir / ACTORS
    if not path.is_file():
        raise ConfigError(f"{run_dir}: expected a run with actors, found no {ACTORS} in it. Train with --actors.")
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        names = next(reader, list(COLUMNS))
        rows = [[float(cell) if cell else math.nan for cell in line] for line in reader if len(line) == len(names)]
    table = np.array(rows, np.float64).reshape(-1, len(names))
    return {name: table[:, column] for column, name in enumerate(names)}
