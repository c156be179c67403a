"""What a run writes down while it goes on: one row at a time, to metrics.csv and to TensorBoard."""

import csv
import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from relive.errors import ConfigError
from relive.train.rundir import naming, write_file

METRICS = "metrics.csv"

LARGE_LOSS, LOSS_GROWTH = 1e3, 1e3
"""A last loss above both, the second times the smallest one, is no learning."""


@dataclass(frozen=True)
class Row:
    """One line of metrics.csv. NaN, written as an empty cell: nothing to tell since the row before."""

    step: int
    """Environment steps so far."""
    updates: int
    """Gradient steps so far."""
    episodes: int
    """Training episodes ended so far."""
    seconds: float
    """Wall time since the run began, evaluations included."""
    steps_per_second: float
    """Environment steps a second since the row before (updates, before the first), evaluations left out."""
    epsilon: float
    """Probability of a random action; none before the first step."""
    loss: float
    """Mean loss of the updates since the row before, of the first and every eighth."""
    q_mean: float
    """Mean Q(s, a) over the same batches."""
    return_mean: float
    """Mean return of the training episodes (actions partly random) that ended since the row before."""
    eval_mean: float
    """Mean return of the greedy evaluation at this step."""
    eval_std: float
    """Standard deviation of the same over its episodes."""
    eval_min: float
    """Its worst episode."""
    eval_max: float
    """Its best episode."""


COLUMNS = tuple(field.name for field in fields(Row))


class RunLog:
    """Writes rows to `run_dir`; whatever has been written survives the process.

    Args:
        run_dir: the run.
        before: the text of metrics.csv to go on after, as `text` gave it; other rows that are there are dropped. Empty
            for a new run.
        step: the step to go on after; TensorBoard forgets what is later. None for a new run.
        updates_before: updates from a dataset alone, which TensorBoard counts before the steps.
    """

    def __init__(self, run_dir: Path, before: str = "", step: int | None = None, updates_before: int = 0) -> None:
        self._updates_before, self._run_dir = updates_before, run_dir
        write_file(run_dir / METRICS, before.encode())
        self._file = (run_dir / METRICS).open("a+", newline="", encoding="utf-8")
        self._csv = csv.writer(self._file)
        if not before:
            self._csv.writerow(COLUMNS)
        with naming(run_dir):
            self._board = SummaryWriter(str(run_dir), purge_step=None if step is None else step + 1)

    def text(self) -> str:
        """All of metrics.csv. TensorBoard's file, which a thread of PyTorch's writes, is brought up to the same row."""
        with naming(self._run_dir):
            self._board.flush()
        with naming(self._run_dir / METRICS):
            self._file.flush()
        self._file.seek(0)
        return self._file.read()

    def write(self, row: Row) -> None:
        """Add one row."""
        with naming(self._run_dir / METRICS):
            self._csv.writerow("" if math.isnan(value) else value for value in astuple(row))
            self._file.flush()
        for name in COLUMNS[1:]:
            value = getattr(row, name)
            if not math.isnan(value):
                group = "evaluation" if name.startswith("eval_") else "train"
                place = min(row.updates, self._updates_before) + row.step
                with naming(self._run_dir):  # TensorBoard's file
                    self._board.add_scalar(f"{group}/{name.removeprefix('eval_')}", value, place)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with naming(self._run_dir / METRICS):  # it still writes what could not be written before
                self._file.close()
        finally:
            with naming(self._run_dir):
                self._board.close()


def read_metrics(run_dir: Path) -> dict[str, NDArray[np.float64]]:
    """The columns of a run's metrics.csv by name, each float64 [rows], NaN where a cell is empty.

    Raises:
        ConfigError: there is no such file, or it has other columns.
    """
    path = run_dir / METRICS
    if not path.is_file():
        raise ConfigError(
            f"{run_dir}: expected a run directory with {METRICS} in it, found none. Give one that `relive train` made."
        )
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        names = next(reader, [])
        rows = [[float(cell) if cell else math.nan for cell in row] for row in reader if len(row) == len(names)]
    if tuple(names) != COLUMNS:
        raise ConfigError(f"{path}: expected the columns {', '.join(COLUMNS)}, got {', '.join(names)}.")
    table = np.array(rows, np.float64).reshape(-1, len(COLUMNS))
    return {name: table[:, column] for column, name in enumerate(COLUMNS)}


def has_diverged(metrics: Mapping[str, NDArray[np.float64]]) -> bool:
    """Whether the loss of a run ended without bound: not finite, or beyond all measure of where it has been.

    Args:
        metrics: as `read_metrics` gives them.
    """
    learned = np.diff(metrics["updates"], prepend=0) > 0  # else there is no loss, which is NaN too
    loss = metrics["loss"][learned]
    if not len(loss):
        return False
    return not np.isfinite(loss[-1]) or bool(loss[-1] > max(LARGE_LOSS, LOSS_GROWTH * np.nanmin(loss)))
