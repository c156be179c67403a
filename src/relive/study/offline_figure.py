"""The figure of the study on learning from data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from relive.study.aggregate import interval, iqm

if TYPE_CHECKING:
    from relive.study.offline import Cell

COLOURS = {"DQN": "#D55E00", "CQL": "#0072B2", "online alone": "#555555"}
"""Told apart by colour-blind readers too (Okabe and Ito)."""
MARKERS = {"DQN": "o", "CQL": "s", "online alone": "^"}


def draw(env: str, cells: Sequence[Cell], behaviour: Mapping[str, float], out: Path) -> None:
    """A panel for each dataset: learning curves from the data alone, then online, and what the behaviour reached.

    Raises:
        OSError: `out` cannot be written.
    """
    columns = min(2, len(behaviour))
    rows = -(-len(behaviour) // columns)
    figure = Figure(figsize=(4.9 * columns, 3.1 * rows + 0.9), layout="constrained", dpi=150)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    begin = max(cell.begin for cell in cells)
    for number, (axes, name) in enumerate(zip(panels, behaviour, strict=False)):
        for cell in cells:
            if cell.dataset in (name, ""):
                _draw_curve(axes, cell, begin)
        axes.axhline(behaviour[name], color="#000000", linewidth=1, linestyle=(0, (4, 3)), label="behaviour", zorder=1)
        axes.axvline(begin, color="#999999", linewidth=1, linestyle=":", label="begins to act", zorder=1)
        axes.set_title(f"{name} data", loc="left", fontweight="bold")
        if number % columns == 0:
            axes.set_ylabel("return of an episode")
        if number + columns >= len(behaviour):
            axes.set_xlabel("updates from data alone, then steps online")
            axes.xaxis.set_tick_params(labelbottom=True)
        axes.set_xlim(0, 1.03 * cells[0].places[-1])
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(behaviour) :]:
        axes.remove()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=len(labels), frameon=False, fontsize="small")
    seeds = f"{len(cells[0].returns)} seed{'s' if len(cells[0].returns) > 1 else ''}"
    note = f"{env}: greedy return, interquartile mean over {seeds} and 95 % bootstrap interval"
    figure.suptitle(note, x=0.01, ha="left", fontsize="medium")
    figure.savefig(out, format="png")


def _draw_curve(axes: Axes, cell: Cell, begin: int) -> None:
    places = cell.places + (begin - cell.begin)  # who has no data starts where the others begin to act
    low, high = interval(cell.returns)
    colour = COLOURS[cell.learner]
    axes.fill_between(places, low, high, color=colour, alpha=0.13, linewidth=0)
    axes.plot(
        places,
        np.asarray(iqm(cell.returns)),
        color=colour,
        marker=MARKERS[cell.learner],
        markersize=3.5,
        linewidth=1.7,
        label=cell.learner,
    )
