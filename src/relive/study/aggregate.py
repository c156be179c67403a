"""A few runs as one number with an interval.

Paper: Agarwal et al. 2021, "Deep reinforcement learning at the edge of the statistical precipice" (arXiv:2108.13264),
section 4.
"""

import numpy as np
from numpy.typing import NDArray


def iqm(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interquartile mean: of the middle half of the runs, so that one lucky or broken run does not decide.

    Where a quarter ends within a run, that run counts by the part inside; of 3 runs the middle one counts four times as
    much as each of the others. (The paper's code drops whole runs, rounded down: of 3 none, the plain mean.)

    Args:
        scores: f64 [R, ...], R >= 1 runs.

    Returns:
        f64 [...].
    """
    runs = len(scores)
    place = np.arange(runs)
    inside = np.clip(np.minimum(place + 1, 0.75 * runs) - np.maximum(place, 0.25 * runs), 0.0, None)  # f64[R]
    means: NDArray[np.float64] = np.tensordot(inside / inside.sum(), np.sort(scores, axis=0), axes=1)
    return means


def interval(
    scores: NDArray[np.float64], *, seed: int = 0, resamples: int = 2_000, level: float = 0.95
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Percentile bootstrap interval of `iqm`, the runs resampled with replacement.

    The strata of the paper are tasks. A study has one task, and calls this for each of its cells by itself. Points of a
    curve are resampled together; the interval holds for each of them alone, not for the curve as a whole.

    Args:
        scores: f64 [R, ...], R >= 1 runs. Few runs give intervals that are too narrow: of one run, none at all.
        seed: of the resampling; the same scores and seed give the same interval.
        resamples: how often.
        level: share of the resampled means inside.

    Returns:
        Lower and upper end, f64 [...] each.
    """
    chosen = np.random.default_rng(seed).integers(len(scores), size=(len(scores), resamples))
    means = iqm(scores[chosen])  # f64[resamples, ...]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return low, high
