"""Is a union of shards drawn from as one buffer? Without Ray: shards are objects of this process.

As in tests/statistics: every statistic has a known distribution, is rejected at 1e-6 with fixed seeds, and has a broken
twin that it must reject.
"""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

import relive

pytest.importorskip("ray")

from unions import Union

from model.chance import ALPHA, apart, p_counts, p_drawn, p_independent, p_mean
from relive.share import ray_draws
from relive.share.ray_union import choose, name, parts_of, weigh

PLAIN = relive.Prioritized(alpha=1.0, eps=0.0)
UNEVEN = {"two": [3, 9], "one empty": [7, 0, 9], "wrapped": [1, 30, 5, 9], "one": [12]}
SHAPES = pytest.mark.parametrize("lengths", UNEVEN.values(), ids=UNEVEN.keys())


def errors(count: int) -> np.ndarray:
    """|delta|, over two orders of magnitude, with ties."""
    return np.random.default_rng(0).choice([0.1, 0.5, 1.0, 3.0, 9.0], size=count)


def draw(union: Union, batches: int, size: int) -> np.ndarray:
    return np.stack([union.sample(size).ids for _ in range(batches)])


def prioritized(lengths: list[int], sampler: relive.Prioritized = PLAIN, seed: int = 0) -> tuple[Union, dict]:
    """A union whose transitions have priorities of all sizes, and P(i) of each."""
    union = Union(lengths, 10, seed, sampler=sampler)
    raw = errors(len(union.ids))
    union.update(union.ids, raw)
    p = (raw + sampler.eps) ** sampler.alpha
    return union, dict(zip(union.ids.tolist(), (p / p.sum()).tolist(), strict=True))


def alike(union: Union) -> dict[int, float]:
    return dict.fromkeys(union.ids.tolist(), 1 / len(union.ids))


# Marginals.


@SHAPES
@pytest.mark.parametrize("size", [1, 40])
def test_uniform_over_all(lengths, size):
    union = Union(lengths, 10, seed=1)
    assert p_drawn(draw(union, 3_000 // size, size), alike(union)) > ALPHA


@SHAPES
@pytest.mark.parametrize("size", [1, 40])
def test_in_proportion_to_priorities(lengths, size):
    union, p = prioritized(lengths, relive.Prioritized(0.6), seed=2)
    assert p_drawn(draw(union, 3_000 // size, size), p) > ALPHA


def equally_often(masses, n, sampler, seed, number):
    """Twin: shards with something in them, one as often as the other."""
    return choose((masses > 0).astype(float), n, sampler, seed, number)


def rounded(masses, n, sampler, seed, number):
    """Twin: each shard its share of n, rounded, the first ones given what is over."""
    counts = np.floor(n * masses / masses.sum()).astype(int)
    counts[: n - counts.sum()] += 1
    return np.repeat(np.arange(len(masses)), counts)


@pytest.mark.parametrize("twin", [equally_often, rounded])
def test_marginals_reject_other_shares(monkeypatch, twin):
    monkeypatch.setattr("unions.choose", twin)
    union = Union([1, 30, 5, 9], 10, seed=3)
    assert p_drawn(draw(union, 1_000, 8), alike(union)) < ALPHA
    union, p = prioritized([1, 30, 5, 9], seed=3)
    assert p_drawn(draw(union, 1_000, 8), p) < ALPHA


# Joint.


def test_uniform_rows_do_not_know_of_each_other():
    """As of one buffer: any two rows of a batch, and of two batches, whichever shard they are of."""
    draws = draw(Union([3, 5], 10, seed=4), 1_500, 4)
    for lag in (1, 2, 3):
        assert p_independent(draws[:, :-lag], draws[:, lag:]) > ALPHA
    assert p_independent(*apart(draws)) > ALPHA


def shard_after_shard(masses, n, sampler, seed, number):
    """Twin: as often, but in order."""
    return np.sort(choose(masses, n, sampler, seed, number))


def systematic(masses, n, sampler, seed, number):
    """Twin: each shard as often as it should be, never more than one off; uniform draws of one buffer vary more."""
    return choose(masses, n, PLAIN, seed, number)


@pytest.mark.parametrize("twin", [shard_after_shard, systematic])
def test_rows_reject_an_order(monkeypatch, twin):
    monkeypatch.setattr("unions.choose", twin)
    union = Union([3, 5], 10, seed=4)
    draws = draw(union, 1_500, 4)
    assert p_drawn(draws, alike(union)) > ALPHA  # right as far as that goes
    assert p_independent(draws[:, :-1], draws[:, 1:]) < ALPHA


def test_counts_of_shards_vary_as_those_of_one_buffer():
    """Uniform rows of a shard of three eighths: binomial."""
    union = Union([3, 5], 10, seed=5)
    counts = np.bincount((draw(union, 1_500, 4) >> 56 == 1).sum(axis=1), minlength=5)
    assert p_counts(counts, np.array([5**4, 4 * 3 * 5**3, 6 * 9 * 25, 4 * 27 * 5, 81]) / 8**4) > ALPHA


def test_prioritized_rows_are_strata_of_the_union():
    """Masses 6 and 10 and a batch of eight: three rows of the first shard and five of the other, always."""
    union = Union([6, 10], 10, seed=6, sampler=PLAIN)
    union.update(union.ids, np.ones(16))
    draws = draw(union, 300, 8)
    assert ((draws >> 56) == [1, 1, 1, 2, 2, 2, 2, 2]).all()
    inside = (draws & 0xFF) % 2
    for lag in (1, 4):
        assert p_independent(inside[:, :-lag], inside[:, lag:]) > ALPHA


def test_shards_do_not_share_a_generator():
    """Two shards alike, a row of each: neither tells of the other."""
    union = Union([8, 8], 10, seed=7, sampler=PLAIN)
    union.update(union.ids, np.ones(16))
    draws = draw(union, 1_000, 2) & 0xFF
    assert p_independent(draws[:, 0], draws[:, 1]) > ALPHA
    for number, shard in enumerate(union.shards):  # twin: seeded alike
        union.shards[number] = type(shard)(shard._part.__class__(**{**vars(shard._part), "seed": 0}))
        union.grow(number, 8)
    draws = draw(union, 1_000, 2) & 0xFF
    assert p_independent(draws[:, 0], draws[:, 1]) < ALPHA


def test_batches_are_a_function_of_the_seed():
    one, same, other = (draw(Union([5, 6], 10, seed), 20, 8).tolist() for seed in (1, 1, 2))
    assert one == same != other


# Weights.


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("normalize", ["batch", "buffer"])
def test_weights_are_those_of_one_buffer(normalize, beta):
    """Row by row, against the formula on P(i) over the union."""
    union, p = prioritized([4, 25, 0, 3], relive.Prioritized(0.7, 1e-3, normalize), seed=8)
    for size in (1, 3, 16):
        for _ in range(30):
            batch = union.sample(size, beta)
            chances = np.array([p[identity] for identity in batch.ids.tolist()])
            least = chances.min() if normalize == "batch" else min(p.values())
            np.testing.assert_allclose(batch.weight, (chances / least) ** -beta, rtol=1e-6)
            assert batch.weight.dtype == np.float32


def test_uniform_weights_are_ones():
    union = Union([4, 20, 3], 30, seed=9)
    for _ in range(20):
        assert (union.sample(9, beta=0.7).weight == 1).all()


def f_of(ids: np.ndarray) -> np.ndarray:
    return (ids >> 56) * 3.0 + (ids & 0xFF) % 5


def p_unbiased(union: Union, p: dict[int, float], drawn_with: dict[int, float]) -> float:
    """Is E[w f] the mean of f over the union, one row a batch, weights relative to the largest of the union?"""
    ids = np.array(list(p))
    q = np.array([drawn_with[identity] for identity in ids.tolist()])
    scale = 1 / (len(ids) * q.min())
    values = f_of(ids)
    variance = (values**2 / (len(ids) ** 2 * q)).sum() - values.mean() ** 2
    batches = [union.sample(1, beta=1.0) for _ in range(2_500)]
    return p_mean([batch.weight[0] * scale * f_of(batch.ids)[0] for batch in batches], values.mean(), variance)


STALE = np.array([5.0, 1.0])  # what the learner believes the masses are


def stale_union(seed: int) -> tuple[Union, dict[int, float], dict[int, float]]:
    """Shares go by masses of long ago: P(i), and what rows are really drawn with."""
    union, p = prioritized([6, 12], relive.Prioritized(1.0, 0.0, "buffer"), seed)
    union.masses = STALE
    inside = [sum(chance for i, chance in p.items() if i >> 56 == shard) for shard in (1, 2)]
    share = STALE / STALE.sum()
    return union, p, {i: share[(i >> 56) - 1] * chance / inside[(i >> 56) - 1] for i, chance in p.items()}


def test_stale_masses_are_in_the_weights():
    union, p, q = stale_union(10)
    assert p_unbiased(union, p, q) > ALPHA


def per_shard(group, parts, place, rows, sampler, beta):
    """Twin: weights normalised in each shard, as gluing batches together would have it."""
    weight = np.empty(group.size, np.float32)
    for where, shard in zip(rows, parts.shards, strict=True):
        answer = group.answers[shard][0]
        weight[where] = (answer.masses / answer.sums[0][1]) ** -beta
    return weight


def as_if_fresh(group, parts, place, rows, sampler, beta):
    """Twin: by today's masses, although shards were chosen by those of yesterday."""
    likelihood = np.empty(group.size)
    for where, shard in zip(rows, parts.shards, strict=True):
        likelihood[where] = group.answers[shard][0].masses
    return weigh(likelihood, min(answer.sums[0][1] for answer, _ in group.answers.values()), beta)


@pytest.mark.parametrize("twin", [per_shard, as_if_fresh])
def test_means_reject_other_weights(monkeypatch, twin):
    monkeypatch.setattr(ray_draws, "_weights", twin)
    union, p, q = stale_union(10)
    assert p_unbiased(union, p, q) < ALPHA


def test_masses_of_any_size_have_weights():
    """Quotients that no float64 holds."""
    assert weigh(np.array([1e280, 1e-200]), 1e-300, 0.5).min() > 0
    np.testing.assert_allclose(weigh(np.array([1e280, 1e-300]), 1e-300, 0.01), [10**-5.8, 1], rtol=1e-6)


# Ids.


@given(st.integers(0, 125), st.integers(0, 10_000), st.lists(st.integers(-1, 2**48 - 1), min_size=1, max_size=5))
def test_ids_carry_their_shard_and_life(shard, life, own):
    ids = name(np.array(own), shard, life)
    there = np.array(own) >= 0
    assert (ids[~there] == -1).all()
    shards, lives, back = parts_of(ids[there])
    assert (shards == shard).all() and (lives == life % 256).all() and (back == np.array(own)[there]).all()
    assert (ids[there] > 0).all()


@given(st.lists(st.sampled_from([0.0, 1e-300, 0.5, 3.0, 1e9]), min_size=1, max_size=9), st.integers(1, 64))
def test_every_row_has_a_shard_that_has_something(masses, n):
    if not sum(masses):
        return
    for sampler in (relive.Uniform(), PLAIN):
        chosen = choose(np.array(masses), n, sampler, 1, n)
        assert chosen.shape == (n,) and (np.array(masses)[chosen] > 0).all()
