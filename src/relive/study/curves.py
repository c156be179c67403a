"""The figure of a study over capacities and samplers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from relive.dqn import TrainConfig
from relive.study.aggregate import interval, iqm

NAMES = {
    "uniform": "uniform",
    "newest": "uniform, newest in every batch",
    "prioritized": "prioritized",
    "rank-based": "rank-based",
}
COLOURS = {"uniform": "#D55E00", "newest": "#009E73", "prioritized": "#0072B2", "rank-based": "#CC79A7"}
"""Told apart by colour-blind readers too (Okabe and Ito)."""
MARKERS = {"uniform": "o", "newest": "^", "prioritized": "s", "rank-based": "D"}


@dataclass(frozen=True)
class Cell:
    """The runs of one sampler and capacity."""

    sampler: str
    capacity: int
    steps: NDArray[np.float64]
    """f64 [P], when evaluations were due."""
    returns: NDArray[np.float64]
    """f64 [seeds, P], mean returns of the evaluations."""

    @property
    def final(self) -> NDArray[np.float64]:
        """f64 [seeds], the mean of each run's evaluations in its last quarter."""
        late = self.steps > 0.75 * self.steps[-1]
        means: NDArray[np.float64] = self.returns[:, late].mean(axis=1)
        return means


def draw(cells: Sequence[Cell], base: TrainConfig, out: Path) -> None:
    """A panel of learning curves for each sampler, and one of what the last quarter brought over the capacities.

    Raises:
        OSError: `out` cannot be written.
    """
    samplers = list(dict.fromkeys(cell.sampler for cell in cells))
    capacities = sorted({cell.capacity for cell in cells})
    rows = math.ceil((len(samplers) + 1) / 2)
    figure = Figure(figsize=(9.5, 3.5 * rows + 0.8), layout="constrained", dpi=150)
    panels = figure.subplots(rows, 2, squeeze=False).ravel()
    # An order of capacities is an order of lightness, which every eye sees; the lightest end is lost on white.
    shades = matplotlib.colormaps["viridis"](np.linspace(0.88, 0.0, len(capacities)))
    shade = dict(zip(capacities, shades, strict=True))
    for axes, sampler in zip(panels, samplers, strict=False):
        own = [cell for cell in cells if cell.sampler == sampler]
        for cell in sorted(own, key=lambda cell: cell.capacity):
            _draw_curve(axes, cell, shade[cell.capacity])
        axes.set_title(NAMES[sampler], loc="left", fontweight="bold")
        axes.set_xlabel("environment steps")
        axes.set_xlim(0, base.steps)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    summary = panels[len(samplers)]
    _draw_summary(summary, cells, samplers, capacities)
    for axes in panels[: len(samplers) + 1]:
        _dress(axes)
        if base.threshold is not None:
            label = f"threshold {base.threshold:g}" if axes is summary else None
            axes.axhline(base.threshold, color="#444444", linewidth=1, linestyle=(0, (4, 3)), zorder=1, label=label)
    summary.legend(frameon=False, fontsize="small")
    for axes in panels[len(samplers) + 1 :]:
        axes.remove()
    for axes in panels[1 : len(samplers) + 1]:
        axes.sharey(panels[0])
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=len(labels), frameon=False, fontsize="small")
    seeds = f"{len(cells[0].returns)} seed{'s' if len(cells[0].returns) > 1 else ''}"
    note = f"{base.env}: return of the greedy policy, interquartile mean over {seeds} and 95 % bootstrap interval"
    figure.suptitle(note, x=0.01, ha="left", fontsize="medium")
    figure.savefig(out, format="png")


def _draw_curve(axes: Axes, cell: Cell, colour: NDArray[np.float64]) -> None:
    low, high = interval(cell.returns)
    axes.fill_between(cell.steps, low, high, color=colour, alpha=0.13, linewidth=0)
    label = f"capacity {cell.capacity:,}"
    axes.plot(cell.steps, iqm(cell.returns), color=colour, linewidth=1.8, marker="o", markersize=3, label=label)


def _draw_summary(axes: Axes, cells: Sequence[Cell], samplers: Sequence[str], capacities: Sequence[int]) -> None:
    for number, sampler in enumerate(samplers):
        own = sorted((cell for cell in cells if cell.sampler == sampler), key=lambda cell: cell.capacity)
        middle = np.array([iqm(cell.final) for cell in own])
        ends = np.array([interval(cell.final) for cell in own]).T  # f64[2, capacities]
        # Side by side, or equal intervals would hide each other.
        place = np.arange(len(own)) + 0.08 * (number - (len(samplers) - 1) / 2)
        axes.errorbar(
            place,
            middle,
            np.abs(ends - middle),
            color=COLOURS[sampler],
            marker=MARKERS[sampler],
            markersize=5,
            linewidth=1.6,
            elinewidth=1.2,
            capsize=3,
            label=NAMES[sampler],
        )
    axes.set_title("mean over the last quarter", loc="left", fontweight="bold")
    axes.set_xlabel("capacity")
    axes.set_xticks(range(len(capacities)), [f"{capacity:,}" for capacity in capacities])


def _dress(axes: Axes) -> None:
    axes.set_ylabel("return of an episode")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
