"""How odd the draws of a sampler are: the statistics, and buffers to draw from.

Each `p_...` returns the probability of data at least this odd, were the sampler right. Tests reject at ALPHA, and give
each statistic a broken sampler (a twin) that it must reject.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

import relive

ALPHA = 1e-6
Ids = NDArray[np.int64]


def p_counts(counts: NDArray[np.int64], probability: NDArray[np.float64]) -> float:
    """Cells hit this often against their exact probabilities: chi-square; 0 where a cell of probability 0 was hit."""
    if (counts[probability == 0] > 0).any():
        return 0.0
    counts, probability = counts[probability > 0], probability[probability > 0]
    expected = counts.sum() * probability / probability.sum()
    assert expected.min() >= 5, "too few draws for a chi-square"
    return float(stats.chi2.sf(((counts - expected) ** 2 / expected).sum(), counts.size - 1))


def p_drawn(draws: Any, probability: Mapping[int, float]) -> float:
    """Every id as often as its probability says, and no other id."""
    drawn = np.asarray(draws).ravel()
    ids = np.array(sorted(probability))
    place = np.searchsorted(ids, drawn).clip(max=len(ids) - 1)
    if (ids[place] != drawn).any():
        return 0.0
    return p_counts(np.bincount(place, minlength=len(ids)), np.array([probability[i] for i in ids.tolist()], float))


def p_independent(first: Any, second: Any) -> float:
    """Two sets of draws, one beside the other: neither tells of the other, whatever each is distributed like."""
    _, a = np.unique(np.asarray(first).ravel(), return_inverse=True)
    _, b = np.unique(np.asarray(second).ravel(), return_inverse=True)
    table = np.bincount(a * (b.max() + 1) + b, minlength=(a.max() + 1) * (b.max() + 1)).reshape(a.max() + 1, -1)
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    assert expected.min() >= 5, "too few draws for a chi-square"
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1)
    return float(stats.chi2.sf(((table - expected) ** 2 / expected).sum(), freedom))


def p_mean(values: Any, mean: float, variance: float) -> float:
    """Independent values whose mean and variance are known: their sum, two-sided."""
    values = np.asarray(values, np.float64)
    return math.erfc(abs(values.mean() - mean) / math.sqrt(2 * variance / values.size))


def twin(seed: int) -> np.random.Generator:
    """Randomness of the broken samplers."""
    return np.random.default_rng(seed)


def buffer_of(lengths: Sequence[int], capacity: int, **options: Any) -> relive.ReplayBuffer:
    """Lanes of these lengths, one endless episode each, by masked pushes."""
    lanes = len(lengths)
    schema = relive.Schema(relive.Field("float32", (1,)), relive.Field("int64"), lanes=lanes)
    buffer = relive.ReplayBuffer(capacity, schema, **options)
    grow(buffer, lengths)
    return buffer


def grow(buffer: relive.ReplayBuffer, lengths: Sequence[int], end_every: int = 0) -> None:
    """Push this many transitions to each lane; with `end_every`, episodes end after so many steps."""
    lanes = len(lengths)
    zeros, no = np.zeros((lanes, 1), np.float32), np.zeros(lanes, bool)
    for step in range(max(lengths)):
        ends = np.full(lanes, end_every > 0 and step % end_every == end_every - 1)
        mask = np.array([step < length for length in lengths])
        fields = (zeros, np.zeros(lanes, np.int64), np.zeros(lanes), ends, zeros)
        if lanes == 1:
            buffer.push(*(field[0] for field in fields))
        else:
            buffer.push(*fields, truncated=no, mask=mask)


def draw(reader: Any, batches: int, size: int) -> Ids:
    """int64 ids [batches, size]."""
    return np.stack([reader.sample(size).ids for _ in range(batches)])


def apart(draws: Ids, lag: int = 1) -> tuple[Ids, Ids]:
    """Batches and the batches `lag` after them, none used twice, so that the pairs are independent of each other."""
    starts = np.arange(len(draws) - lag)
    starts = starts[starts // lag % 2 == 0]
    return draws[starts], draws[starts + lag]
