"""Prioritized samplers: is each anchor drawn as often as its priority says, independently, and weighted right?

As in `test_uniform.py`, every statistic has a known distribution, is rejected at 1e-6 with fixed seeds, and has a
broken twin that it must reject.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import relive
from model.chance import ALPHA, apart, buffer_of, draw, grow, p_counts, p_drawn, p_independent, p_mean, twin

PLAIN = relive.Prioritized(alpha=1.0, eps=0.0)


def errors(ids: Any, seed: int = 0) -> np.ndarray:
    """|delta| of each id, over two orders of magnitude, with ties. float32 [B]."""
    rng = np.random.default_rng(seed)
    return rng.choice([0.1, 0.5, 1.0, 3.0, 9.0], size=len(ids)).astype(np.float32)


def shares(ids: Any, raw: Any, alpha: float, eps: float = 1e-6) -> dict[int, float]:
    """P(i) as the paper has it."""
    p = (np.asarray(raw, np.float64) + eps) ** alpha
    return dict(zip(np.asarray(ids).tolist(), (p / p.sum()).tolist(), strict=True))


# Marginals.

UNEVEN = {"one lane": [20], "uneven": [1, 2, 4, 9], "one lane empty": [7, 0, 9], "wrapped": [1, 30, 5, 9]}


@pytest.mark.parametrize("size", [1, 50])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("lengths", UNEVEN.values(), ids=UNEVEN.keys())
def test_anchors_are_drawn_in_proportion(lengths, n, size):
    buffer = buffer_of(lengths, 10 * len(lengths), sampler=relive.Prioritized(0.6), view=relive.Transitions(n), seed=1)
    raw = errors(buffer.ids)
    assert buffer.update_priorities(buffer.ids, raw) == len(buffer)
    assert p_drawn(draw(buffer, 10_000 // size, size), shares(buffer.ids, raw, 0.6)) > ALPHA


def test_sequences_are_drawn_in_proportion():
    buffer = buffer_of([0, 0], 40, sampler=relive.Prioritized(0.6), view=relive.Sequences(5, 2, stride=3), seed=2)
    grow(buffer, [33, 50], end_every=8)
    anchors = buffer.anchors
    assert 6 < len(anchors) < len(buffer) / 2
    raw = errors(anchors)
    buffer.update_priorities(anchors, raw)
    assert p_drawn(draw(buffer, 200, 50), shares(anchors, raw, 0.6)) > ALPHA


def test_proportions_reject_alpha_applied_twice():
    ids = np.arange(20)
    p = shares(ids, errors(ids) ** 0.6, 0.6)
    draws = twin(0).choice(ids, size=10_000, p=list(p.values()))
    assert p_drawn(draws, shares(ids, errors(ids), 0.6)) < ALPHA


def test_priorities_that_were_overwritten_leave_nothing_behind():
    """A ring that wrapped many times under priorities of all sizes, updated all the time."""
    buffer = buffer_of([9, 9], 18, sampler=PLAIN, seed=3)
    rng = twin(1)
    for _ in range(300):
        grow(buffer, [rng.integers(3), rng.integers(1, 3)])
        buffer.update_priorities(buffer.ids, 10.0 ** rng.integers(-9, 18, size=18))
    raw = errors(buffer.ids)
    buffer.update_priorities(buffer.ids, raw)
    assert p_drawn(draw(buffer, 300, 50), shares(buffer.ids, raw, 1.0, 0.0)) > ALPHA


def test_proportions_reject_a_sum_kept_by_differences():
    """Twin: the same history, the sums of two halves adjusted by what changed; their error is of the largest ever."""
    rng = twin(1)
    sums, p = np.zeros(2), np.zeros(18)
    for _ in range(300):
        for place, value in enumerate(10.0 ** rng.integers(-9, 18, size=18)):
            sums[place // 9] += value - p[place]
            p[place] = value
    raw = errors(range(18)).astype(np.float64)
    for place in range(18):
        sums[place // 9] += raw[place] - p[place]
    half = (twin(2).random(15_000) * sums.sum() > sums[0]).astype(int)
    inside = [twin(3 + side).choice(9, 15_000, p=raw[9 * side :][:9] / raw[9 * side :][:9].sum()) for side in (0, 1)]
    draws = 9 * half + np.where(half, inside[1], inside[0])
    assert p_drawn(draws, shares(range(18), raw, 1.0, 0.0)) < ALPHA


BIG, SMALL, MANY = 1e9, 30.0, 20_000


def test_small_priorities_beside_a_large_one():
    buffer = buffer_of([1], MANY + 1, sampler=PLAIN, seed=4)
    zeros = np.zeros((MANY, 1), np.float32)
    buffer.extend(zeros, np.zeros(MANY, np.int64), np.zeros(MANY), np.zeros(MANY, bool), zeros, priority=SMALL)
    buffer.update_priorities(buffer.ids[:1], np.array([BIG]))
    draws = draw(buffer, 150, 2_048)
    counts = np.array([(draws == 0).sum(), (draws > 0).sum()])
    assert p_counts(counts, np.array([BIG, SMALL * MANY])) > ALPHA


def test_small_priorities_reject_float32_sums():
    """Twin: a float32 running sum, in which 1e9 + 30 is 1e9."""
    sums = np.cumsum(np.append(BIG, np.full(MANY, SMALL)), dtype=np.float32)
    draws = np.searchsorted(sums, twin(5).random(150 * 2_048) * sums[-1], side="right")
    counts = np.array([(draws == 0).sum(), (draws > 0).sum()])
    assert p_counts(counts, np.array([BIG, SMALL * MANY])) < ALPHA


def test_zero_is_never_drawn():
    buffer = buffer_of([40, 41], 80, sampler=PLAIN, seed=6)
    ids = buffer.ids
    raw = np.where(ids % 3 == 0, 0.0, errors(ids))
    buffer.update_priorities(ids, raw)
    assert buffer.anchors.tolist() == ids[ids % 3 != 0].tolist()
    assert p_drawn(draw(buffer, 100, 200), shares(ids, raw, 1.0, 0.0)) > ALPHA
    buffer.update_priorities(ids, np.where(ids == ids[5], 1e-300, 0.0))
    assert set(draw(buffer, 10, 200).ravel().tolist()) == {int(ids[5])}
    buffer.update_priorities(ids, np.zeros(len(ids)))
    with pytest.raises(relive.NotEnoughDataError):
        buffer.sample(1)


def test_proportions_reject_a_zero_that_is_drawn_once():
    """Twin: all in proportion, but for one draw in 20,000."""
    ids = np.arange(80)
    p = shares(ids, np.where(ids % 3 == 0, 0.0, errors(ids)), 1.0, 0.0)
    draws = twin(7).choice(ids, size=20_000, p=list(p.values()))
    assert p_drawn(draws, p) > ALPHA
    draws[77] = 3
    assert p_drawn(draws, p) == 0


# Priorities of new transitions.


def with_new_ones(sampler: Any) -> tuple[relive.ReplayBuffer, np.ndarray]:
    """One transition was once at 16, all are small now, then four more arrive. Also: the expected p before alpha."""
    buffer = buffer_of([8], 32, sampler=sampler, seed=8)
    buffer.update_priorities(buffer.ids[3:4], np.array([16.0]))
    buffer.update_priorities(buffer.ids, np.linspace(0.5, 4.0, 8))
    grow(buffer, [4])
    return buffer, np.append(np.linspace(0.5, 4.0, 8), np.full(4, 16.0))


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_new_transitions_get_the_largest_priority_so_far(alpha):
    buffer, raw = with_new_ones(relive.Prioritized(alpha, eps=0.0))
    assert p_drawn(draw(buffer, 200, 50), shares(buffer.ids, raw, alpha, 0.0)) > ALPHA


@pytest.mark.parametrize("p_of_new", [1.0, 4.0**0.5, 16.0**0.25], ids=["one", "largest now", "alpha twice"])
def test_new_transitions_reject_another_priority(p_of_new):
    """Twins: the initial priority for ever; the largest of today; the transformed largest, transformed again."""
    p = np.append(np.linspace(0.5, 4.0, 8) ** 0.5, np.full(4, p_of_new))
    draws = twin(9).choice(12, size=10_000, p=p / p.sum())
    raw = np.append(np.linspace(0.5, 4.0, 8), np.full(4, 16.0))
    assert p_drawn(draws, shares(range(12), raw, 0.5, 0.0)) < ALPHA


def test_a_priority_given_with_the_push_is_transformed_like_others():
    buffer = buffer_of([0], 16, sampler=relive.Prioritized(0.5, eps=0.0), seed=10)
    zero = np.zeros(1, np.float32)
    raw = [0.25, 9.0, 1.0, 4.0]
    for value in raw:
        buffer.push(zero, 0, 0.0, False, zero, priority=value)
    buffer.push(zero, 0, 0.0, False, zero)
    assert p_drawn(draw(buffer, 100, 50), shares(buffer.ids, [*raw, 9.0], 0.5, 0.0)) > ALPHA


# One batch: strata.


def test_equal_parts_of_the_sum_have_one_draw_each():
    """Priorities are whole numbers and the batch is their sum: everyone comes exactly as often as its number says."""
    buffer = buffer_of([7, 20], 40, sampler=PLAIN, seed=11)
    raw = twin(10).integers(0, 5, size=len(buffer))
    buffer.update_priorities(buffer.ids, raw)
    expected = np.repeat(buffer.ids, raw).tolist()
    for _ in range(50):
        assert sorted(buffer.sample(int(raw.sum())).ids.tolist()) == expected


def test_strata_reject_independent_draws():
    """Twin: right marginals, no strata."""
    raw = twin(10).integers(0, 5, size=27)
    draws = twin(11).choice(27, size=(50, raw.sum()), p=raw / raw.sum())
    assert p_drawn(draws, shares(range(27), raw, 1.0, 0.0)) > ALPHA
    assert not any(sorted(row) == np.repeat(np.arange(27), raw).tolist() for row in draws.tolist())


def of_strata(seed: int) -> np.ndarray:
    """Sixteen strata of four alike: which of the four was drawn in each. int64 [batches, 16]."""
    buffer = buffer_of([64], 64, sampler=PLAIN, seed=seed)
    draws = draw(buffer, 2_000, 16)
    assert (draws // 4 == np.arange(16)).all()
    return draws % 4


def test_strata_do_not_know_of_each_other():
    inside = of_strata(12)
    assert p_counts(np.bincount(inside.ravel(), minlength=4), np.ones(4)) > ALPHA
    for lag in (1, 2, 8):
        assert p_independent(inside[:, :-lag], inside[:, lag:]) > ALPHA
    first, second = apart(inside)
    assert p_independent(first, second) > ALPHA  # nor does one batch of the next


def test_strata_reject_one_offset_for_all():
    """Twin: systematic draws, one random number a batch."""
    inside = np.repeat(twin(13).integers(4, size=(2_000, 1)), 16, axis=1)
    assert p_counts(np.bincount(inside[:, 0], minlength=4), np.ones(4)) > ALPHA
    assert p_independent(inside[:, :-1], inside[:, 1:]) < ALPHA


def test_lanes_are_drawn_at_their_own_time_steps():
    """One draw a lane: eight lanes are eight strata. Sub-buffers seeded alike would draw the same step of each."""
    buffer = buffer_of([64] * 8, 512, sampler=PLAIN, seed=14)
    draws = draw(buffer, 1_500, 8)
    assert (np.sort(draws % 8) == np.arange(8)).all()
    steps = draws // 8 // 8  # stretches of eight steps
    assert p_counts(np.bincount(steps.ravel(), minlength=8), np.ones(8)) > ALPHA
    for lag in (1, 4, 7):
        assert p_independent(steps[:, :-lag], steps[:, lag:]) > ALPHA


def test_lanes_reject_generators_seeded_alike():
    """Twin: a generator a lane, all with the same seed, each drawing from its own half of a batch."""
    steps = np.stack([np.random.default_rng(15).integers(64, size=1_500) for _ in range(8)], axis=1) // 8
    assert p_counts(np.bincount(steps[:, 0], minlength=8), np.ones(8)) > ALPHA
    assert p_independent(steps[:, :-1], steps[:, 1:]) < ALPHA


# Seeds.


def test_equal_seeds_give_equal_batches_and_others_do_not():
    buffers = [buffer_of([16], 16, sampler=relive.Prioritized(), seed=seed) for seed in (1, 1, 2)]
    for buffer in buffers:
        buffer.update_priorities(buffer.ids, errors(buffer.ids))
    one, same, other = (draw(buffer, 5, 16).tolist() for buffer in buffers)
    assert one == same
    assert all(a != b for a, b in zip(one, other, strict=True))


def test_seeds_do_not_know_of_each_other():
    draws = np.stack([draw(buffer_of([8], 8, sampler=PLAIN, seed=seed), 2, 2) for seed in range(1_000)])
    for row in range(2):  # each has its own stratum
        assert p_independent(draws[:-1:2, 0, row], draws[1::2, 0, row]) > ALPHA
        assert p_independent(draws[1::2, 0, row], draws[:-1:2, 1, row]) > ALPHA
        assert p_independent(draws[:-1:2, 0, row], draws[1::2, 1, row]) > ALPHA


def test_pairs_reject_seeds_that_are_added_to_the_counter():
    """Twin: batch 1 of a seed is batch 0 of the next."""
    draws = np.stack([[twin(seed + k).integers(8, size=2) for k in range(2)] for seed in range(1_000)])
    assert p_independent(draws[1::2, 0], draws[:-1:2, 1]) < ALPHA


# Weights.


def weighted(alpha: float, seed: int) -> tuple[Any, Any, Any, Any]:
    """Draws one at a time of known priorities: (f of the draws, their weights, f of all, P of all)."""
    buffer = buffer_of([5, 15], 40, sampler=relive.Prioritized(alpha, 0.0, "buffer"), seed=seed)
    raw = errors(buffer.ids)
    buffer.update_priorities(buffer.ids, raw)
    batches = [buffer.sample(1, beta=1.0) for _ in range(10_000)]
    value = {identity: float(place % 7) for place, identity in enumerate(buffer.ids.tolist())}
    f = np.array([value[int(batch.ids[0])] for batch in batches])
    p = np.array(list(shares(buffer.ids, raw, alpha, 0.0).values()))
    return f, np.array([batch.weight[0] for batch in batches]), np.array(list(value.values())), p


def p_unbiased(f: Any, weight: Any, values: Any, p: Any) -> float:
    """Is E[w f] the mean of f over the buffer, with weights relative to the largest of the buffer?"""
    largest = 1 / (len(p) * p.min())
    variance = (values**2 / (len(p) ** 2 * p)).sum() - values.mean() ** 2
    return p_mean(weight * largest * f, values.mean(), variance)


def test_weights_make_means_unbiased():
    assert p_unbiased(*weighted(0.6, seed=16)) > ALPHA


def test_means_reject_weights_of_the_wrong_sign_and_none():
    f, weight, values, p = weighted(0.6, seed=16)
    largest = 1 / (len(p) * p.min())
    assert p_unbiased(f, 1 / weight / (1 / weight).max(), values, p) < ALPHA
    assert p_unbiased(f, np.full_like(weight, 1 / largest), values, p) < ALPHA
    assert p_unbiased(f, weight ** (1 / 0.6), values, p) < ALPHA  # of p before alpha


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_weights_of_a_batch_are_relative_to_its_largest_or_the_buffers(beta):
    for normalize in ("batch", "buffer"):
        buffer = buffer_of([30], 30, sampler=relive.Prioritized(1.0, 0.0, normalize), seed=17)
        raw = np.linspace(1.0, 8.0, 30)
        buffer.update_priorities(buffer.ids, raw)
        for _ in range(20):
            batch = buffer.sample(4, beta=beta)
            p = raw[batch.ids]
            smallest = p.min() if normalize == "batch" else 1.0
            np.testing.assert_allclose(batch.weight, (p / smallest) ** -beta, rtol=1e-6)


# By rank.


def ranked(normalize: str = "buffer", seed: int = 18) -> tuple[relive.ReplayBuffer, np.ndarray]:
    """Just sorted, since the same values were given over and over; also the rank of each, from 1."""
    sampler = relive.samplers.RankBased(alpha=0.7, normalize=normalize)
    buffer = buffer_of([12, 18], 60, sampler=sampler, seed=seed)
    raw = twin(19).permutation(30) ** 2
    for _ in range(100):
        buffer.update_priorities(buffer.ids, raw)
    return buffer, 1.0 + np.argsort(np.argsort(-raw))


def test_ranks_are_drawn_in_proportion():
    buffer, rank = ranked()
    assert p_drawn(draw(buffer, 400, 50), shares(buffer.ids, rank, -0.7, 0.0)) > ALPHA


def test_ranks_reject_those_from_zero_and_those_of_the_least():
    """Twins: (1 + rank)^-alpha, and rank 1 for the smallest error."""
    rank = 1.0 + twin(20).permutation(30)
    for wrong in (1 + rank, 31 - rank):
        draws = twin(21).choice(30, size=20_000, p=list(shares(range(30), wrong, -0.7, 0.0).values()))
        assert p_drawn(draws, shares(range(30), rank, -0.7, 0.0)) < ALPHA


@pytest.mark.parametrize("normalize", ["batch", "buffer"])
def test_weights_of_ranks(normalize):
    buffer, rank = ranked(normalize)
    rank = dict(zip(buffer.ids.tolist(), rank.tolist(), strict=True))
    for _ in range(20):
        batch = buffer.sample(6, beta=0.5)
        drawn = np.array([rank[identity] for identity in batch.ids.tolist()])
        last = drawn.max() if normalize == "batch" else 30
        np.testing.assert_allclose(batch.weight, (drawn / last) ** (0.7 * 0.5), rtol=1e-6)


def test_no_error_is_drawn_as_the_last_rank():
    buffer, _ = ranked()
    raw = np.arange(30) % 29.0  # two zeros
    for _ in range(100):
        buffer.update_priorities(buffer.ids, raw)
    assert len(buffer.anchors) == 30
    draws = draw(buffer, 300, 50)
    zeros = buffer.ids[raw == 0]
    expected = (29.0**-0.7 + 30.0**-0.7) / (np.arange(1, 31) ** -0.7).sum()
    counts = np.array([np.isin(draws, zeros).sum(), (~np.isin(draws, zeros)).sum()])
    assert p_counts(counts, np.array([expected, 1 - expected])) > ALPHA
