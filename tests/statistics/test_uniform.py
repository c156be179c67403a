"""The uniform sampler: is each transition equally likely, and is each draw independent of every other?

Marginals alone prove little: a library whose sub-buffers are seeded alike draws every transition equally often and
still fills a batch with the same few time steps. So there is a test for each way in which draws could depend on one
another. Every statistic has a known distribution and is rejected at 1e-6 with fixed seeds; every test is also given a
broken sampler (its twin), which it must reject, so that a test that cannot fail would itself fail.
"""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

import relive

ALPHA = 1e-6
Ids = NDArray[np.int64]

# The statistics: each returns the probability of data at least this odd, were the sampler right.


def p_marginal(draws: Ids, live: Ids) -> float:
    """Every live id equally often, none that is not live: chi-square against exact probabilities."""
    place = np.searchsorted(live, draws.ravel()).clip(max=len(live) - 1)
    if (live[place] != draws.ravel()).any():
        return 0.0
    return p_counts(np.bincount(place, minlength=len(live)))


def p_counts(counts: NDArray[np.int64]) -> float:
    """Equal probabilities of all cells."""
    expected = counts.sum() / counts.size
    assert expected >= 5, "too few draws for a chi-square"
    return float(stats.chi2.sf(((counts - expected) ** 2 / expected).sum(), counts.size - 1))


def p_pairs(first: Ids, second: Ids, live: Ids) -> float:
    """Two sets of draws, one beside the other: every pair of ids equally often, so neither tells of the other."""
    a, b = np.searchsorted(live, first.ravel()), np.searchsorted(live, second.ravel())
    return p_counts(np.bincount(a * len(live) + b, minlength=len(live) ** 2))


def apart(draws: Ids, lag: int) -> tuple[Ids, Ids]:
    """Rows and the rows `lag` after them, no row used twice, so that the pairs are independent of each other."""
    starts = np.arange(len(draws) - lag)
    starts = starts[starts // lag % 2 == 0]
    return draws[starts], draws[starts + lag]


def p_distinct(steps: Ids, num_steps: int) -> float:
    """How many different time steps are in a batch: mean and variance of the occupancy problem, two-sided.

    Args:
        steps: int64 [batches, size], the time step of each draw, lanes set aside.
        num_steps: how many time steps there are, each equally likely.
    """
    batches, size = steps.shape
    missed, both = (1 - 1 / num_steps) ** size, (1 - 2 / num_steps) ** size
    mean = num_steps * (1 - missed)
    variance = num_steps * missed + num_steps * (num_steps - 1) * both - (num_steps * missed) ** 2
    total = sum(len(np.unique(row)) for row in steps)
    return math.erfc(abs(total - batches * mean) / math.sqrt(2 * batches * variance))


# The sampler under test.


def filled(lengths: list[int], capacity: int, seed: int) -> relive.ReplayBuffer:
    """Lanes of these lengths, by masked pushes."""
    lanes = len(lengths)
    schema = relive.Schema(relive.Field("float32", (1,)), relive.Field("int64"), lanes=lanes)
    buffer = relive.ReplayBuffer(capacity, schema, seed=seed)
    zeros = np.zeros((lanes, 1), np.float32)
    for step in range(max(lengths)):
        mask = np.array([step < length for length in lengths])
        buffer.push(zeros, np.zeros(lanes, np.int64), np.zeros(lanes), np.zeros(lanes, bool), zeros, mask=mask)
    return buffer


def draw(buffer: relive.ReplayBuffer, batches: int, size: int) -> Ids:
    return np.stack([buffer.sample(size).ids for _ in range(batches)])


def twin(seed: int) -> np.random.Generator:
    """Randomness of the broken samplers."""
    return np.random.default_rng(seed)


UNEVEN = {"even": [4, 4, 4, 4], "uneven": [1, 2, 4, 9], "one lane empty": [7, 0, 9], "wrapped": [1, 30, 5, 9]}


@pytest.mark.parametrize("lengths", UNEVEN.values(), ids=UNEVEN.keys())
def test_every_live_transition_is_equally_likely(lengths):
    buffer = filled(lengths, 10 * len(lengths), seed=1)
    draws = draw(buffer, 400, 100)
    assert p_marginal(draws, buffer.ids) > ALPHA


def test_marginal_rejects_a_lane_drawn_first():
    """Twin: a lane at random, then a transition of it - wrong as soon as the lanes are of different length."""
    live = filled([1, 2, 4, 9], 40, seed=0).ids
    rng = twin(0)
    lanes = [live[live % 4 == lane] for lane in range(4)]
    draws = np.array([rng.choice(lanes[rng.integers(4)]) for _ in range(20_000)])
    assert p_marginal(draws, live) < ALPHA


def test_marginal_rejects_a_newest_that_is_never_drawn():
    """Twin: the newest transition, whose next observation is not yet stored, left out."""
    live = np.arange(100)
    draws = twin(1).integers(99, size=40_000)
    assert p_marginal(draws, live) < ALPHA
    assert p_marginal(np.append(draws, 100), live) == 0  # nor may anything else be drawn


def test_after_eviction_and_clear_only_the_living_are_drawn():
    buffer = filled([50, 41], 32, seed=3)
    assert p_marginal(draw(buffer, 400, 100), buffer.ids) > ALPHA
    buffer.clear()
    for _ in range(5):
        buffer.push(np.zeros(1, np.float32), 0, 0.0, False, np.zeros(1, np.float32), lane=1)
    assert p_marginal(draw(buffer, 100, 50), buffer.ids) > ALPHA


def large(size: int) -> relive.ReplayBuffer:
    buffer = relive.ReplayBuffer(size, seed=5)
    zeros = np.zeros((size, 1), np.float32)
    buffer.push(zeros[0], 0, 0.0, False, zeros[0])
    buffer.extend(zeros[1:], np.zeros(size - 1, np.int64), np.zeros(size - 1), np.zeros(size - 1, bool), zeros[1:])
    return buffer


def test_a_large_buffer_is_drawn_from_everywhere():
    """High and low bits of the id: equal stretches, and equal residues."""
    buffer = large(300_000)
    draws = draw(buffer, 100, 4_096).ravel()
    assert p_counts(np.bincount(draws // 3_000, minlength=100)) > ALPHA
    assert p_counts(np.bincount(draws % 75, minlength=75)) > ALPHA
    assert p_counts(np.bincount(draws % 125, minlength=125)) > ALPHA


def test_residues_reject_too_few_random_bits():
    """Twin: a draw of 16 random bits scaled up to the buffer misses most transitions and favours residues."""
    draws = (twin(2).integers(2**16, size=409_600) * 300_000) >> 16
    assert p_counts(np.bincount(draws // 3_000, minlength=100)) > ALPHA  # stretches alone would not notice
    assert p_distinct(draws.reshape(100, -1), 300_000) < ALPHA


def test_a_large_buffer_repeats_itself_as_often_as_chance():
    assert p_distinct(draw(large(300_000), 100, 4_096), 300_000) > ALPHA


# Joint: one batch.


@pytest.mark.parametrize("lag", [1, 2, 7, 32])
def test_draws_of_one_batch_do_not_know_of_each_other(lag):
    buffer = filled([3, 5, 8], 30, seed=7)
    draws = draw(buffer, 800, 64)
    assert p_pairs(*apart(draws.T, lag), buffer.ids) > ALPHA


def test_pairs_reject_draws_without_replacement():
    """Twin: shuffled batches; no transition twice."""
    rng, live = twin(3), np.arange(16)
    draws = np.stack([rng.permutation(16)[:2] for _ in range(20_000)])
    assert p_marginal(draws, live) > ALPHA
    assert p_pairs(draws[:, 0], draws[:, 1], live) < ALPHA


def test_pairs_reject_a_run_of_neighbours():
    """Twin: each second draw is the transition after the first."""
    first = twin(4).integers(16, size=20_000)
    assert p_marginal((first + 1) % 16, np.arange(16)) > ALPHA
    assert p_pairs(first, (first + 1) % 16, np.arange(16)) < ALPHA


def test_lanes_are_drawn_at_their_own_time_steps():
    """Eight environments, a batch of 256: as many distinct time steps as chance gives."""
    buffer = filled([100] * 8, 800, seed=11)
    assert p_distinct(draw(buffer, 300, 256) // 8, 100) > ALPHA


def test_lane_and_time_step_do_not_know_of_each_other():
    buffer = filled([16] * 16, 256, seed=12)
    draws = draw(buffer, 400, 256)
    assert p_pairs(draws % 16, draws // 16, np.arange(16)) > ALPHA
    assert p_pairs(draws[:, :-1:2] % 16, draws[:, 1::2] // 16, np.arange(16)) > ALPHA
    assert p_pairs(draws[:, :-1:2] // 16, draws[:, 1::2] // 16, np.arange(16)) > ALPHA


def seeded_alike(batches: int, lanes: int, steps: int, each: int) -> Ids:
    """Twin: a sub-buffer a lane, all seeded alike. int64 ids [batches, lanes * each]."""
    rng = twin(5)
    same = rng.integers(steps, size=(batches, 1, each))
    return (same * lanes + np.arange(lanes)[:, None]).reshape(batches, -1)


def test_distinct_time_steps_reject_lanes_seeded_alike():
    draws = seeded_alike(300, lanes=8, steps=100, each=32)
    assert p_marginal(draws, np.arange(800)) > ALPHA  # the marginals look right
    assert p_distinct(draws // 8, 100) < ALPHA


# Joint: batch after batch, seed beside seed.


@pytest.mark.parametrize("lag", [1, 2, 16])
def test_batches_do_not_know_of_each_other(lag):
    buffer = filled([3, 5, 8], 30, seed=13)
    draws = draw(buffer, 800, 64)
    first, second = apart(draws, lag)
    assert p_pairs(first, second, buffer.ids) > ALPHA
    assert p_pairs(first[:, :-1], second[:, 1:], buffer.ids) > ALPHA


def test_pairs_reject_a_counter_that_overlaps():
    """Twin: batch k starts one draw after batch k - 1 instead of after its end."""
    stream = twin(6).integers(16, size=1_000)
    draws = np.stack([stream[k : k + 64] for k in range(800)])
    first, second = apart(draws, 1)
    assert p_pairs(first[:, 1:], second[:, :-1], np.arange(16)) < ALPHA


@pytest.mark.parametrize("shift", [-1, 0, 1])
def test_overlap_is_looked_for_in_both_directions(shift):
    """Draw i of a batch against draw i + shift of the next: the overlap of the twin above, in ours."""
    buffer = filled([16], 16, seed=14)
    draws = draw(buffer, 800, 64)
    first, second = apart(draws, 1)
    assert p_pairs(first[:, 1:63], second[:, 1 + shift : 63 + shift], buffer.ids) > ALPHA


def test_seeds_do_not_know_of_each_other():
    """Neighbouring seeds, the commonest choice: same batch number, and one batch apart (seed + counter mixed up)."""
    draws = np.stack([draw(filled([16], 16, seed=seed), 2, 128) for seed in range(400)])
    live = np.arange(16)
    assert p_marginal(draws[:, 0], live) > ALPHA
    first, second = apart(draws, 1)
    assert p_pairs(first[:, 0], second[:, 0], live) > ALPHA
    assert p_pairs(first[:, 1], second[:, 0], live) > ALPHA
    assert p_pairs(first[:, 0], second[:, 1], live) > ALPHA


def test_pairs_reject_seeds_that_are_added_to_the_counter():
    """Twin: the generator starts at seed + k, so batch 1 of seed 0 is batch 0 of seed 1."""
    draws = np.stack([[twin(seed + k).integers(16, size=128) for k in range(2)] for seed in range(400)])
    live = np.arange(16)
    first, second = apart(draws, 1)
    assert p_pairs(first[:, 0], second[:, 0], live) > ALPHA
    assert p_pairs(first[:, 1], second[:, 0], live) < ALPHA


# A batch is a function of seed, number and contents.


def test_a_batch_is_a_function_of_seed_number_and_contents():
    """Another way to the same contents, other reads in between, a refused call: the same batches."""
    plain = filled([16], 16, seed=21)
    zeros = np.zeros((16, 1), np.float32)
    other = relive.ReplayBuffer(16, plain.schema, seed=21)
    other.extend(zeros, np.zeros(16, np.int64), np.zeros(16), np.zeros(16, bool), zeros)
    for size in (1, 5, 64, 1_000, 3):
        expected = plain.sample(size).ids
        other.get(other.ids)
        with pytest.raises(relive.ReplayError):
            other.sample(0)
        assert other.sample(size).ids.tolist() == expected.tolist()


def test_the_generator_does_not_care_when_transitions_arrived():
    """Batch 1 after batch 0 was drawn from fewer transitions is the batch 1 of a buffer that always held them all."""
    early, late = filled([8], 16, seed=22), filled([16], 16, seed=22)
    early.sample(32)
    late.sample(32)
    zeros = np.zeros((8, 1), np.float32)
    early.extend(zeros, np.zeros(8, np.int64), np.zeros(8), np.zeros(8, bool), zeros)
    assert early.sample(32).ids.tolist() == late.sample(32).ids.tolist()


def test_an_empty_buffer_uses_up_no_batch_number():
    tried = filled([0, 0], 32, seed=23)
    for _ in range(3):
        with pytest.raises(relive.NotEnoughDataError):
            tried.sample(8)
    zeros = np.zeros((2, 1), np.float32)
    for _ in range(16):
        tried.push(zeros, np.zeros(2, np.int64), np.zeros(2), np.zeros(2, bool), zeros)
    assert tried.sample(8).ids.tolist() == filled([16, 16], 32, seed=23).sample(8).ids.tolist()


def test_torch_and_numpy_draw_the_same():
    pytest.importorskip("torch")
    first, second = filled([16], 16, seed=24), filled([16], 16, seed=24)
    for _ in range(3):
        assert first.sample(32).ids.tolist() == second.sample(32, output="torch").ids.tolist()


def test_without_a_seed_every_buffer_has_its_own():
    buffers = [filled([16], 16, seed=None) for _ in range(3)]
    assert len({buffer.seed for buffer in buffers}) == 3
    for buffer in buffers:
        again = filled([16], 16, seed=buffer.seed)
        assert buffer.sample(32).ids.tolist() == again.sample(32).ids.tolist()


def test_large_seeds_are_different_seeds():
    seeds = [0, 1, 2**31, 2**32, 2**32 + 1, 2**63]
    batches = {tuple(filled([16], 16, seed=seed).sample(64).ids.tolist()) for seed in seeds}
    assert len(batches) == len(seeds)


def test_global_generators_are_neither_read_nor_touched():
    torch = pytest.importorskip("torch")
    buffer, again = filled([16], 16, seed=25), filled([16], 16, seed=25)
    before = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()  # noqa: NPY002
    expected = buffer.sample(32).ids
    relive.ReplayBuffer(8)
    after = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()  # noqa: NPY002
    assert before == after
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    random.seed(1)
    assert again.sample(32).ids.tolist() == expected.tolist()
