"""Learning curves as PNG."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from relive.dqn import TrainConfig
from relive.train.log import read_metrics
from relive.train.rundir import load_config, naming

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
"""Told apart by colour-blind readers too (Okabe and Ito)."""

DASHES = ("-", "--", ":")
"""Told apart where the colours begin anew."""

SMOOTHING = 0.05
"""Share of the run over which training returns are averaged."""


@dataclass(frozen=True)
class Curve:
    """One run, ready to be drawn."""

    label: str
    config: TrainConfig
    metrics: dict[str, NDArray[np.float64]]

    @property
    def place(self) -> NDArray[np.float64]:
        """f64 [rows], how far the run was: updates from a dataset alone, then environment steps."""
        place: NDArray[np.float64] = np.minimum(self.metrics["updates"], self.config.updates_before)
        return place + self.metrics["step"]


def plot_runs(run_dirs: Sequence[Path], out: Path) -> None:
    """Draw the learning curves of these runs over one another, one panel an environment.

    Raises:
        ConfigError: one of them is not a run.
        OSError: `out` cannot be written.
    """
    curves = [Curve(run.resolve().name, load_config(run), read_metrics(run)) for run in run_dirs]
    names = list(dict.fromkeys(curve.config.env for curve in curves))
    figure = Figure(figsize=(8, 4.2 * len(names) + 0.3), layout="constrained", dpi=150)
    panels = figure.subplots(len(names), squeeze=False)[:, 0]
    for name, axes in zip(names, panels, strict=True):
        draw(axes, name, [curve for curve in curves if curve.config.env == name])
    with naming(out):
        figure.savefig(out, format="png")


def draw(axes: Axes, title: str, curves: Sequence[Curve]) -> None:
    """Draw runs in one environment: greedy evaluations and the threshold.

    One run alone also shows its training returns; more than three show no spread: bands over bands tell nothing.
    """
    for number, curve in enumerate(curves):
        colour, dashes = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
        if len(curves) == 1 and curve.metrics["episodes"][-1:].any():
            _draw_training(axes, curve, colour)
        if len(curves) <= 3:
            _draw_spread(axes, curve, colour)
        label = "greedy evaluation, mean ± std" if len(curves) == 1 else curve.label
        _draw_evaluations(axes, curve, colour, dashes, label)
    for threshold in {curve.config.threshold for curve in curves if curve.config.threshold is not None}:
        axes.axhline(
            threshold, color="#444444", linewidth=1, linestyle=(0, (4, 3)), label=f"threshold {threshold:g}", zorder=1
        )
    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlabel(_measure([curve.config for curve in curves]))
    for begin in {curve.config.updates_before for curve in curves if curve.config.online}:
        axes.axvline(begin, color="#444444", linewidth=1, linestyle=":", zorder=1, label="begins to act")
    axes.set_ylabel("return of an episode")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        # Below the axes, where no curve can run into it.
        heading = None if len(curves) == 1 else f"greedy evaluation, mean{' ± std' if len(curves) <= 3 else ''}"
        axes.legend(
            frameon=False,
            loc="upper left",
            bbox_to_anchor=(0, -0.14),
            ncols=3,
            fontsize="small",
            title=heading,
            title_fontsize="small",
            alignment="left",
        )


def _measure(configs: Sequence[TrainConfig]) -> str:
    """What the horizontal axis counts."""
    if all(config.updates_before == 0 for config in configs):
        return "environment steps"
    if all(config.offline is not None and not config.online for config in configs):
        return "updates from the dataset"
    return "updates from a dataset alone, then environment steps"


def _draw_evaluations(axes: Axes, curve: Curve, colour: str, dashes: str, label: str) -> None:
    there = ~np.isnan(curve.metrics["eval_mean"])
    step, mean = curve.place[there], curve.metrics["eval_mean"][there]
    axes.plot(step, mean, dashes, color=colour, marker="o", markersize=4, linewidth=1.6, label=label, zorder=4)


def _draw_spread(axes: Axes, curve: Curve, colour: str) -> None:
    metrics = curve.metrics
    there = ~np.isnan(metrics["eval_mean"])
    step, mean, std = curve.place[there], metrics["eval_mean"][there], metrics["eval_std"][there]
    # A mean plus its spread can lie beyond any return there is (CartPole never brings more than 500): cut it there.
    low = np.maximum(mean - std, metrics["eval_min"][there])
    high = np.minimum(mean + std, metrics["eval_max"][there])
    axes.fill_between(step, low, high, color=colour, alpha=0.15, linewidth=0, zorder=2)


def _draw_training(axes: Axes, curve: Curve, colour: str) -> None:
    metrics = curve.metrics
    there = ~np.isnan(metrics["return_mean"])
    count = np.diff(metrics["episodes"], prepend=0.0)[there]
    step, value = curve.place[there], metrics["return_mean"][there]
    smoothed = smooth(step, value, count, SMOOTHING * curve.config.length)
    axes.plot(step, smoothed, color=colour, alpha=0.45, linewidth=1, label="training episodes, smoothed", zorder=3)


def smooth(
    step: NDArray[np.float64], value: NDArray[np.float64], weight: NDArray[np.float64], width: float
) -> NDArray[np.float64]:
    """Weighted mean of the values in the `width` steps up to each step.

    Looks back only: what a curve shows at a step was known at that step.

    Args:
        step: f64 [N], ascending.
        value: f64 [N].
        weight: f64 [N], > 0; how many episodes each value is the mean of.
        width: in steps.

    Returns:
        f64 [N].
    """
    first = np.searchsorted(step, step - width, side="right")  # i64[N]
    total = np.concatenate([[0.0], np.cumsum(weight * value)])
    mass = np.concatenate([[0.0], np.cumsum(weight)])
    end = np.arange(1, len(step) + 1)
    smoothed: NDArray[np.float64] = (total[end] - total[first]) / (mass[end] - mass[first])
    return smoothed
