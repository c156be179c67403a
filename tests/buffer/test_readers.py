"""Readers: several readings of the same bytes that know nothing of each other; priorities, limits, refusals."""

from __future__ import annotations

import gc
import os
import re
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

import relive
from model.compare import fingerprint
from relive import Field, Hindsight, Prioritized, Schema, Sequences, Shuffled, Transitions, Uniform
from relive.samplers import RankBased, Recent

PLAIN = Prioritized(alpha=1, eps=0)
"""P is |delta| itself."""
SCHEMA = Schema(Field("float32", (1,)), Field("int64"))


def fill(buffer: relive.ReplayBuffer, count: int, start: int = 0, **options) -> list[int]:
    """Push steps `start` .. of episodes of five; their ids. The action is the step."""
    return [
        buffer.push(
            np.float32([step]),
            step,
            float(step),
            step % 5 == 4,
            np.float32([step + 1]),
            lane=step % buffer.lanes,
            **options,
        )
        for step in range(start, start + count)
    ]


def made(count: int = 12, capacity: int = 16, seed: int = 1, lanes: int = 1, **options) -> relive.ReplayBuffer:
    buffer = relive.ReplayBuffer(capacity, SCHEMA, seed=seed, lanes=lanes, **options)
    fill(buffer, count)
    return buffer


def drawn(source, batches: int = 5, size: int = 8) -> list[list[int]]:
    return [source.sample(size).ids.tolist() for _ in range(batches)]


SAMPLERS = [
    Uniform(),
    Uniform(newest=2),
    Uniform(max_uses=20),
    Prioritized(),
    Prioritized(normalize="buffer"),
    RankBased(),
    Shuffled(),
    Recent(period=3, min_size=4, eta=0.999),
]
VIEWS = [Transitions(), Transitions(n=3), Sequences(3, burn_in=1, stride=2), Sequences("episode")]


# The same bytes.


@pytest.mark.parametrize("sampler", SAMPLERS, ids=str)
@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_a_reader_reads_what_a_buffer_of_its_own_would(sampler, view):
    """Of the same view, sampler and seed; however late it was made and however often the ring went round meanwhile."""
    buffer, alone = made(30, seed=1), made(30, seed=9, view=view, sampler=sampler)
    reader = buffer.reader(view=view, sampler=sampler, seed=9)
    for count in (0, 1, 7, 100):
        fill(buffer, count)
        fill(alone, count)
        assert reader.anchors.tolist() == alone.anchors.tolist()
        for _ in range(3):
            ours, own = reader.sample(4, beta=0.5), alone.sample(4, beta=0.5)
            for name, value in vars(own).items():
                assert np.array_equal(getattr(ours, name), value), name
    assert (reader.view, reader.sampler, reader.seed, len(reader)) == (view, sampler, 9, len(alone))
    assert reader.schema == SCHEMA


def test_a_reader_has_the_axes_of_its_buffer_unless_told_otherwise():
    buffer = made(view=Transitions(n=3), sampler=Prioritized())
    assert buffer.reader().view == Transitions(n=3)
    assert buffer.reader().sampler == Prioritized()
    assert buffer.reader(sampler=Uniform()).view == Transitions(n=3)
    for piece in ("Reader", "n=3", "Prioritized", "seed=5"):
        assert piece in repr(buffer.reader(seed=5))


def test_seeds_of_readers_come_from_the_buffers_and_their_number():
    one, same, other = made(seed=3), made(seed=3), made(seed=4)
    of_one = [one.reader() for _ in range(3)]
    assert [reader.seed for reader in of_one] == [same.reader().seed for _ in range(3)]
    assert len({reader.seed for reader in of_one} | {other.reader().seed, 3, 4}) == 6
    batches = [drawn(reader) for reader in of_one]
    assert batches[0] != batches[1] != batches[2]


def test_readers_have_generators_of_their_own():
    buffer, twin = made(), made()
    beside = [buffer.reader(sampler=sampler) for sampler in SAMPLERS]
    for _ in range(5):
        for reader in beside:
            reader.sample(4)
        assert buffer.sample(8).ids.tolist() == twin.sample(8).ids.tolist()
    assert drawn(buffer.reader(seed=5)) == drawn(twin.reader(seed=5))


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("sampler", [Uniform(), Uniform(newest=2), Shuffled(), Shuffled(newest=1)])
def test_a_reader_goes_on_from_the_position_of_another(sampler, lanes):
    """Bug: a pass that begins anew, in another order, or at another place of it; an open episode counted as none."""
    ours, theirs = (made(35, 30, lanes=lanes) for _ in range(2))
    reader = ours.reader(sampler=sampler, seed=4)
    for _ in range(25):
        other = theirs.reader(sampler=sampler, seed=9)
        other.go_on(reader.position())
        assert other.position() == reader.position()
        reader.sample(3)
        other.sample(3)
        assert np.array_equal(reader.sample(4).ids, other.sample(4).ids)
        assert (other.draws, other.epochs) == (reader.draws, reader.epochs)


def test_a_position_that_says_too_little_is_none():
    """Bug: priorities or uses that begin anew without a word; draws that go on in other transitions."""
    for sampler in (Prioritized(), RankBased(), Recent(), Shuffled(max_uses=2)):
        with pytest.raises(AssertionError, match="says too little"):
            made().reader(sampler=sampler).position()
    reader = made(12).reader(sampler=Shuffled())
    reader.sample(5)
    with pytest.raises(AssertionError, match="refused to go on"):
        made(11).reader(sampler=Shuffled()).go_on(reader.position())


def test_readers_have_priorities_of_their_own():
    buffer = made(sampler=PLAIN)
    left, right = buffer.reader(), buffer.reader()
    ids = buffer.ids
    assert left.update_priorities(ids, (ids == 3).astype(float)) == 12
    assert right.update_priorities(ids, (ids % 2).astype(float)) == 12
    assert set(np.ravel(drawn(left))) == {3}
    assert set(np.ravel(drawn(right))) == {1, 3, 5, 7, 9, 11}
    assert set(np.ravel(drawn(buffer, 30))) == set(range(12))
    assert left.anchors.tolist() == [3]
    assert buffer.anchors.tolist() == list(range(12))


def test_readers_count_uses_of_their_own():
    buffer = made(sampler=Uniform(max_uses=2))
    reader = buffer.reader()
    buffer.sample(24)
    assert buffer.anchors.tolist() == []
    assert reader.anchors.tolist() == list(range(12))
    assert sorted(reader.sample(24).ids.tolist()) == sorted([*range(12)] * 2)


def test_a_reader_made_late_or_used_late_catches_up():
    buffer = made(3, capacity=8)
    early = buffer.reader(sampler=PLAIN)
    early.update_priorities([0, 1, 2], [0.0, 0.0, 4.0])
    fill(buffer, 4)
    late = buffer.reader(sampler=PLAIN)
    assert early.anchors.tolist() == [2, 3, 4, 5, 6]
    assert late.anchors.tolist() == list(range(7))
    fill(buffer, 8 * 50)  # the whole ring, many times over
    for reader in (early, late):
        assert reader.anchors.tolist() == buffer.ids.tolist()
        assert set(np.ravel(drawn(reader, 40))) == set(buffer.ids.tolist())
        assert reader.update_priorities([2, *buffer.ids[:2]], [9.0, 0.0, 0.0]) == 2
        assert reader.anchors.tolist() == buffer.ids[2:].tolist()


def test_a_clear_is_seen_by_all():
    buffer = made()
    readers = [buffer.reader(sampler=sampler) for sampler in SAMPLERS]
    for reader in readers:
        reader.sample(4)
    buffer.clear()
    for reader in readers:
        assert len(reader) == 0
        assert reader.anchors.tolist() == []
        with pytest.raises(relive.NotEnoughDataError, match="empty"):
            reader.sample(4)
        with pytest.raises(relive.StaleIdError):
            reader.get([0])
    new = fill(buffer, 3, start=20)
    assert new == [12, 13, 14]
    for reader in readers:
        assert set(np.ravel(drawn(reader, 5, 4))) == set(new)


def test_a_reader_keeps_the_bytes_it_reads():
    buffer = made()
    readers = [buffer.reader(sampler=Prioritized()), buffer.reader(view=Sequences(3))]
    expected = [drawn(made().reader(sampler=Prioritized(), seed=readers[0].seed))]
    del buffer
    gc.collect()
    junk = [made(16, seed=seed) for seed in range(20)]
    assert [drawn(readers[0])] == expected
    assert readers[1].get([2]).obs[0, :, 0].tolist() == [2, 3, 4]
    assert readers[0].update_priorities([3], [2.0]) == 1
    assert len(junk) == 20


def test_batches_of_a_reader():
    buffer = made(sampler=PLAIN)
    readers = [buffer.reader(seed=4) for _ in range(3)]
    expected = [readers[0].sample(6, beta=0.5) for _ in range(4)]
    for reader, prefetch in zip(readers[1:], (0, 2), strict=True):
        with reader.batches(6, beta=lambda: 0.5, prefetch=prefetch) as batches:
            for batch, alike in zip(islice(batches, 4), expected, strict=True):
                assert batch.ids.tolist() == alike.ids.tolist()
                assert batch.weight.tolist() == alike.weight.tolist()


def test_readers_that_make_no_sense():
    with pytest.raises(relive.ConfigError, match=r"^reader: expected a schema, got none yet.*push first"):
        relive.ReplayBuffer(8).reader()
    buffer = made(view=Transitions(stack=2))
    for view in (Transitions(stack=3), Sequences(4, stack=4)):
        with pytest.raises(relive.ConfigError, match=r"^reader: expected a stack of at most 2, .*got [34]\. Give the"):
            buffer.reader(view=view)
    assert buffer.reader(view=Sequences(4, stack=2)).get([0]).obs.shape == (1, 4, 2, 1)
    for options, piece in (
        ({"view": "n-step"}, r"^view: expected Transitions, Sequences or Hindsight, got 'n-step'"),
        ({"sampler": "uniform"}, r"^sampler: expected a sampler, .*got 'uniform'"),
        ({"sampler": Uniform}, r"^sampler: expected a sampler, .*got the class Uniform. Call it"),
        ({"seed": -1}, r"^seed: expected an integer in \[0, 2\^64\)"),
        ({"seed": 1.5}, r"^seed: .*1\.5"),
        ({"view": Hindsight("future", reward_fn=print)}, r"^Hindsight: expected observations with achieved_goal"),
        ({"view": Sequences(4, state=("carry",))}, r"^Sequences: expected state to be among the extras \[\], got"),
    ):
        with pytest.raises(relive.ConfigError, match=piece):
            buffer.reader(**options)


# Priorities.


def shares(source, draws: int = 4_000) -> dict[int, float]:
    """How often each id is drawn."""
    ids, counts = np.unique(source.sample(draws).ids, return_counts=True)
    return dict(zip(ids.tolist(), (counts / draws).round(1).tolist(), strict=True))


def test_priorities_of_pushes_go_to_the_buffers_own_sampler():
    buffer = made(0, sampler=PLAIN)
    reader = buffer.reader()
    for step, priority in enumerate((3.0, 1.0, 0.0, None)):
        buffer.push(np.float32([step]), step, 0.0, False, np.float32([step + 1]), priority=priority)
    assert shares(buffer) == {0: 0.4, 1: 0.1, 3: 0.4}  # 3 : 1 : 0 : the largest so far
    assert reader.anchors.tolist() == [0, 1, 2, 3]
    assert set(np.ravel(drawn(reader, 30))) == {0, 1, 2, 3}


def test_priorities_of_lanes_and_blocks():
    buffer = relive.ReplayBuffer(16, Schema(Field("float32", (1,)), Field("int64"), lanes=2), sampler=PLAIN, seed=0)
    step = np.float32([[0], [1]])
    fields = step, [0, 1], [0.0, 0.0], [True, True], step
    assert buffer.push(*fields, priority=[2.0, 0.0]).tolist() == [0, 1]
    assert buffer.push(*fields, priority=2).tolist() == [2, 3]
    assert buffer.push(*fields, priority=[2, 9], mask=[True, False]).tolist() == [4, -1]
    assert buffer.extend(*fields, priority=[0.0, 2.0], lane=1).tolist() == [5, 7]
    assert shares(buffer) == {0: 0.2, 2: 0.2, 3: 0.2, 4: 0.2, 7: 0.2}


def test_new_ones_get_the_largest_so_far():
    buffer = made(2, sampler=PLAIN)
    buffer.update_priorities([0, 1], [0.0, 8.0])
    fill(buffer, 1, start=2)
    assert shares(buffer) == {1: 0.5, 2: 0.5}


def test_the_last_of_an_id_holds_and_stale_ones_are_skipped():
    buffer = made(10, capacity=4, sampler=PLAIN)
    assert buffer.ids.tolist() == [6, 7, 8, 9]
    ids = [6, 2, 7, 6, 8, 99, 9, -1]
    assert buffer.update_priorities(ids, [9, 9, 0, 1, 0, 9, 1, 9]) == 5
    assert shares(buffer) == {6: 0.5, 9: 0.5}
    assert buffer.update_priorities([], []) == 0
    assert buffer.update_priorities([0, 1], [1.0, 1.0]) == 0


def test_priorities_before_the_first_push():
    buffer = relive.ReplayBuffer(4, sampler=PLAIN)
    assert buffer.update_priorities([0], [1.0]) == 0


@pytest.mark.parametrize("kind", ["list", "uint8", "float16", "float32", "strided", "column of a matrix"])
def test_errors_of_any_kind_of_numbers_become_priorities(kind):
    values = {
        "list": [0, 1, 0],
        "uint8": np.array([0, 1, 0], np.uint8),
        "float16": np.array([0, 1, 0], np.float16),
        "float32": np.array([0, 1, 0], np.float32),
        "strided": np.array([0, 7, 1, 7, 0, 7.0])[::2],
        "column of a matrix": np.array([[0, 7], [1, 7], [0, 7.0]])[:, 0],
    }[kind]
    buffer = made(3, sampler=PLAIN)
    assert buffer.update_priorities([0, 1, 2], values) == 3
    assert buffer.anchors.tolist() == [1]


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int64"])
def test_errors_that_are_tensors_become_priorities(dtype):
    torch = pytest.importorskip("torch")
    buffer = made(3, sampler=PLAIN)
    delta = torch.tensor([0, 1, 0], dtype=getattr(torch, dtype))
    if delta.is_floating_point():
        delta = delta.requires_grad_() * 1  # part of a graph
    assert buffer.update_priorities(torch.tensor([0, 1, 2]), delta) == 3
    assert buffer.anchors.tolist() == [1]


def test_the_priority_of_a_sequence_is_that_of_the_steps_it_learns_from():
    view = Sequences(3, burn_in=1)
    buffer = made(8, view=view, sampler=Prioritized(alpha=1, eps=0, eta=0.5))
    assert buffer.anchors.tolist() == [0, 1, 2, 5]
    errors = np.float32([[4, 0, 0], [99, 0, 0], [99, 2, 4], [0, 0, 0]])
    assert buffer.update_priorities([0, 1, 2, 5], errors) == 4
    # 0 starts its episode and has no burn-in: (4 + 4/3) / 2; 2: (4 + 3) / 2
    assert buffer.anchors.tolist() == [0, 2]
    assert shares(buffer, 20_000)[0] == round((4 + 4 / 3) / (4 + 4 / 3 + 7), 1)
    with pytest.raises(relive.SchemaError, match=r"^abs_td: expected numbers \(B,\) or \(B, 3\), got float32 \(4, 2\)"):
        buffer.update_priorities([0, 1, 2, 5], errors[:, :2])
    errors[1, 1] = np.nan
    with pytest.raises(relive.SchemaError, match=r"^abs_td: expected finite numbers of at least 0, .*\(at \[1\]\)"):
        buffer.update_priorities([0, 1, 2, 5], errors)
    assert buffer.anchors.tolist() == [0, 2]


def test_errors_on_padding_are_not_looked_at():
    """What a network makes of zeros, or of nothing."""
    buffer = made(5, view=Sequences(4, stride=4), sampler=Prioritized(alpha=1, eps=0, eta=0))
    fill(buffer, 4, start=20)
    assert buffer.anchors.tolist() == [0, 4, 5]
    assert buffer.update_priorities([4], [[4.0, np.nan, np.inf, -1.0]]) == 1
    buffer.update_priorities([0, 5], np.ones((2, 4)))
    assert shares(buffer) == {0: 0.2, 4: 0.7, 5: 0.2}  # the mean of one step


def test_priorities_of_sequences_may_be_tensors():
    torch = pytest.importorskip("torch")
    buffer = made(12, view=Sequences(3), sampler=PLAIN)
    batch = buffer.sample(8, output="torch", beta=1.0)
    delta = batch.reward * torch.zeros(3, requires_grad=True)
    assert buffer.update_priorities(batch.ids, delta.abs()) == 8
    assert not set(batch.ids.tolist()) & set(buffer.anchors.tolist())


def test_priorities_of_whole_episodes():
    buffer = made(14, view=Sequences("episode"), sampler=PLAIN)
    batch = buffer.sample(8)
    assert buffer.update_priorities(batch.ids, np.ones(batch.mask.shape) * batch.mask) == 8
    assert buffer.update_priorities([0, 5], np.float64([[0, 0, 0, 0, 0], [0, 1, 0, 0, 0]])) == 2
    assert buffer.anchors.tolist() == [5]


BAD_PRIORITIES = {
    "too many": (([0], [1.0, 2.0]), ["abs_td", "1 ids", "(2,)"]),
    "too few": (([0, 1], [1.0]), ["abs_td", "2 ids", "(1,)"]),
    "a number": (([0], 1.0), ["abs_td", "(B,)", "()"]),
    "a matrix": (([0], [[1.0]]), ["abs_td", "(B,)", "(1, 1)"]),
    "NaN": (([0, 1], [1.0, np.nan]), ["abs_td", "finite", "nan", "[1]", "Nothing changed"]),
    "infinite": (([0], [np.inf]), ["abs_td", "finite", "inf"]),
    "negative": (([0, 1], [1, -1]), ["abs_td", "at least 0", "-1", "[1]"]),
    "NaN of a stale id": (([0, 99], [1.0, np.nan]), ["abs_td", "nan", "[1]"]),
    "complex": (([0], [1j]), ["abs_td", "complex128"]),
    "bool": (([0], [True]), ["abs_td", "bool"]),
    "text": (([0], ["high"]), ["abs_td", "<U4"]),
    "None": (([0], None), ["abs_td", "object"]),
    "ragged": (([0, 1], [[1.0], [1.0, 2.0]]), ["abs_td"]),
    "ids that are floats": (([0.0], [1.0]), ["ids", "int64 (B,)", "float64"]),
    "ids in a matrix": (([[0]], [1.0]), ["ids", "(1, 1)"]),
    "one id": ((0, [1.0]), ["ids", "()"]),
}


@pytest.mark.parametrize("name", BAD_PRIORITIES)
@pytest.mark.parametrize("sampler", [PLAIN, RankBased()], ids=["prioritized", "ranked"])
def test_priorities_that_are_refused_change_nothing(name, sampler):
    arguments, pieces = BAD_PRIORITIES[name]
    buffer, twin = made(sampler=sampler), made(sampler=sampler)
    for source in (buffer, buffer.reader(seed=1)):
        assert_refused(lambda source=source: source.update_priorities(*arguments), relive.SchemaError, pieces)
    assert drawn(buffer) == drawn(twin)


def test_samplers_that_keep_no_priorities():
    for sampler in (Uniform(), Shuffled(), Recent()):
        pieces = ["update_priorities", type(sampler).__name__, "sampler=Prioritized()"]
        buffer = made(sampler=sampler)
        assert_refused(lambda b=buffer: b.update_priorities([0], [1.0]), relive.ConfigError, pieces)
        pieces = ["priority", "expected none, got 1.0", type(sampler).__name__]
        assert_refused(lambda b=buffer: fill(b, 1, priority=1.0), relive.ConfigError, pieces)


def assert_refused(call, error, pieces) -> None:
    """Ours, and every piece in the message, whose first piece is the subject."""
    with pytest.raises(error) as raised:
        call()
    message = str(raised.value)
    assert re.match(rf"{re.escape(pieces[0])}[^:]*: expected ", message), message
    for piece in pieces:
        assert piece in message, f"{piece!r} not in: {message}"


BAD_INITIAL = {
    "NaN": (np.nan, "nan"),
    "negative": (-0.5, "-0.5"),
    "infinite": (np.inf, "inf"),
    "text": ("high", "'high'"),
    "bool": (True, "True"),
    "complex": (1j, "1j"),
    "two": ([1.0, 2.0], "[1.0, 2.0]"),
    "object": ([None], "[None]"),
}


@pytest.mark.parametrize("name", BAD_INITIAL)
def test_priorities_of_a_push_that_are_refused(name):
    value, piece = BAD_INITIAL[name]
    buffer, twin = made(sampler=PLAIN), made(sampler=PLAIN)
    before = fingerprint(buffer)
    assert_refused(lambda: fill(buffer, 1, priority=value), relive.SchemaError, ["priority", piece])
    block = np.zeros((3, 1), np.float32), [0] * 3, [0.0] * 3, [False] * 3, np.ones((3, 1), np.float32)
    for bad in (value, [1.0, 2.0, np.nan], np.ones((3, 1)), [-1, 0, 0]):
        assert_refused(lambda bad=bad: buffer.extend(*block, priority=bad), relive.SchemaError, ["priority", "or 3 of"])
    assert fingerprint(buffer) == before
    assert drawn(buffer) == drawn(twin)


def test_a_step_of_a_sequence_has_no_priority():
    buffer = made(view=Sequences(3), sampler=Prioritized())
    pieces = ["priority", "got 2.0", "sequence", "update_priorities"]
    assert_refused(lambda: fill(buffer, 1, priority=2.0), relive.ConfigError, pieces)
    assert len(buffer) == 12


def test_priorities_that_are_all_zero():
    buffer = made(sampler=PLAIN)
    assert buffer.update_priorities(buffer.ids, np.zeros(12)) == 12
    assert buffer.anchors.tolist() == []
    with pytest.raises(relive.NotEnoughDataError, match=r"^sample\(3\): 0 valid ids.*12 transitions; priority 0 is"):
        buffer.sample(3)
    assert buffer.get([3]).action.tolist() == [3]
    buffer.update_priorities([4], [0.5])
    assert set(buffer.sample(8).ids.tolist()) == {4}
    everyone = buffer.reader(sampler=Prioritized())
    everyone.update_priorities(buffer.ids, np.zeros(12))
    assert set(np.ravel(drawn(everyone, 30))) == set(range(12))  # eps is added: alike


# Weights.


def test_weights_are_there_where_beta_is_given():
    for sampler in SAMPLERS:
        buffer = made(sampler=sampler)
        assert not hasattr(buffer.sample(4), "weight")
        weight = buffer.sample(4, beta=1).weight
        assert (weight.dtype, weight.shape, weight.max()) == (np.float32, (4,), 1)
        if not isinstance(sampler, Prioritized | RankBased):
            assert (weight == 1).all()
    buffer = made(2, sampler=PLAIN)
    buffer.update_priorities([0, 1], [1.0, 4.0])
    for beta, rare in ((0, 1.0), (0.5, 0.5), (1, 0.25), (np.float32(2), 1 / 16)):
        batch = buffer.sample(64, beta=beta)
        assert (batch.weight == np.where(batch.ids == 0, 1, np.float32(rare))).all()


@pytest.mark.parametrize(
    "beta", [-1, -1e-9, np.nan, np.inf, "1", True, [0.5], np.array(0.5), 1j, Prioritized()], ids=repr
)
def test_a_beta_that_is_none(beta):
    for sampler in (Uniform(), PLAIN):
        buffer, twin = made(sampler=sampler), made(sampler=sampler)
        pieces = ["sample", "beta", "at least 0, finite", f"got {beta!r}"]
        assert_refused(lambda b=buffer: b.sample(4, beta=beta), relive.ConfigError, pieces)
        assert_refused(lambda b=buffer: b.reader().sample(4, beta=beta), relive.ConfigError, pieces)
        with buffer.batches(4, beta=lambda: beta) as batches:
            assert_refused(lambda batches=batches: next(batches), relive.ConfigError, ["sample", "beta"])
        assert drawn(buffer) == drawn(twin)


# The newest, and limits of use.


def test_the_newest_are_the_first_rows():
    buffer = made(10, lanes=2, sampler=Uniform(newest=3))
    for _ in range(5):
        assert buffer.sample(6).ids[:3].tolist() == [9, 8, 7]
    for n in (2, 1):
        pieces = ["sample", "at least 3", "newest", f"got {n}"]
        assert_refused(lambda n=n: buffer.sample(n), relive.ConfigError, pieces)
    few = made(2, sampler=Prioritized(newest=3))
    assert few.sample(3).ids[:2].tolist() == [1, 0]  # as many as there are; the others are drawn


@pytest.mark.parametrize("sampler", [Uniform(max_uses=2), Prioritized(max_uses=2), RankBased(max_uses=2)], ids=str)
def test_a_batch_that_asks_for_more_uses_than_are_left_changes_nothing(sampler):
    buffer, twin = made(6, sampler=sampler), made(6, sampler=sampler)
    first = buffer.sample(9)
    twin.sample(9)
    for n in (4, 100):
        with pytest.raises(relive.NotEnoughDataError, match=rf"^sample\({n}\): expected .*3 are left.*most 2 times"):
            buffer.sample(n)
    last = buffer.sample(3)
    assert last.ids.tolist() == twin.sample(3).ids.tolist()
    used = np.bincount(np.concatenate([first.ids, last.ids]), minlength=6)
    assert used.tolist() == [2] * 6
    with pytest.raises(relive.NotEnoughDataError, match=r"^sample\(1\): 0 valid ids.*6 transitions; .*at most 2 times"):
        buffer.sample(1)
    assert buffer.get([0, 0, 0]).ids.tolist() == [0, 0, 0]  # not limited
    fill(buffer, 1, start=6)
    assert buffer.sample(2).ids.tolist() == [6, 6]


# Constructors.


@pytest.mark.parametrize(
    ("kind", "options", "pieces"),
    [
        (Prioritized, {"alpha": -0.1}, ["alpha", "[0, 100]", "-0.1"]),
        (Prioritized, {"alpha": float("nan")}, ["alpha", "nan"]),
        (Prioritized, {"alpha": "0.6"}, ["alpha", "'0.6'"]),
        (Prioritized, {"alpha": None}, ["alpha", "None"]),
        (Prioritized, {"eps": -1e-6}, ["eps", "-1e-06"]),
        (Prioritized, {"eps": float("inf")}, ["eps", "inf"]),
        (Prioritized, {"eta": 1.1}, ["eta", "[0, 1]", "1.1"]),
        (Prioritized, {"normalize": "all"}, ["normalize", "'batch', 'buffer'", "'all'"]),
        (Prioritized, {"normalize": None}, ["normalize", "None"]),
        (RankBased, {"alpha": -1}, ["alpha", "-1"]),
        (RankBased, {"eta": -1}, ["eta", "-1"]),
        (RankBased, {"normalize": ""}, ["normalize", "''"]),
        (Recent, {"eta": 0}, ["eta", "got 0"]),
        (Recent, {"eta": 1.5}, ["eta", "1.5"]),
        (Recent, {"period": 0}, ["period", "got 0"]),
        (Recent, {"period": 10.0}, ["period", "10.0"]),
        (Recent, {"min_size": 0}, ["min_size", "got 0"]),
    ]
    + [
        (kind, {name: value}, [name, repr(value)])
        for kind in (Uniform, Prioritized, RankBased, Shuffled, Recent)
        for name, value in (("newest", -1), ("newest", 1.0), ("newest", True), ("max_uses", 0), ("max_uses", "2"))
    ],
    ids=str,
)
def test_samplers_that_make_no_sense(kind, options, pieces):
    assert_refused(lambda: kind(**options), relive.ConfigError, [kind.__name__, *pieces])


# Memory.


def tree_bytes(rows: int, minima: bool) -> int:
    """Sums of eight by eight, a node a cache line, up to one node; minima beside all but the lowest level."""
    levels = [rows]
    while levels[-1] > 8:
        levels.append(-(-levels[-1] // 8))
    return sum(-(-size // 8) * 64 for size in levels + levels[1:] * minima)


def pages(size: int) -> int:
    return -(-size // 4096) * 4096


def lines(size: int) -> int:
    return -(-size // 64) * 64


@pytest.mark.parametrize("lanes", [1, 8])
@pytest.mark.parametrize("capacity", [8, 1_000, 100_000])
def test_plans_include_what_the_sampler_keeps_to_the_byte(capacity, lanes):
    goals = {"achieved_goal": Field("float32", (2,)), "desired_goal": Field("float32", (2,))}
    flat, goal = SCHEMA, Schema(goals, Field("int64"))
    hindsight = Hindsight("final", reward_fn=print)
    head = 128 + 64 * lanes
    rows = capacity + lanes  # each lane has one more, so that its newest next_obs has a place
    tree, minima, each = tree_bytes(rows, False), tree_bytes(rows, True), lines(4 * rows)
    ranks = 64 + 2 * each + 2 * lines(8 * rows)
    for schema, view, sampler, front, back in (
        (flat, None, Uniform(), head, 0),
        (flat, None, Shuffled(), head, 0),
        (flat, None, Uniform(newest=3), head, 0),
        (flat, None, Uniform(max_uses=2), head + each, tree),
        (flat, None, Prioritized(), head, tree),
        (flat, None, Prioritized(normalize="buffer"), head, minima),
        (flat, None, Prioritized(max_uses=2), head + each, tree),
        (flat, None, RankBased(), head, ranks),
        (flat, None, Recent(), head, tree),
        (flat, Sequences(4), Uniform(), head, tree),
        (flat, Sequences("episode"), Prioritized(normalize="buffer"), head, minima),
        (goal, hindsight, Uniform(), head + each, 0),
        (goal, hindsight, Prioritized(max_uses=1), head + 2 * each, tree),
    ):
        without = relive.plan(schema, capacity, lanes=lanes)
        with_it = relive.plan(schema, capacity, view, lanes=lanes, sampler=sampler)
        assert with_it.sampler_bytes == pages(front) + pages(back), (view, sampler)
        for name in ("full_bytes", "max_bytes"):
            more = with_it.sampler_bytes - without.sampler_bytes
            assert getattr(with_it, name) - getattr(without, name) == more, (view, sampler)
        assert with_it.transition_bytes == without.transition_bytes


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="measured by Linux")
def test_what_a_sampler_would_keep_of_an_empty_buffer_costs_nothing():
    """900 MB of sums, reserved and not used; the same again for a reader."""
    before = resident()
    buffer = relive.ReplayBuffer(10**8, SCHEMA, sampler=Prioritized(normalize="buffer"), seed=0)
    reader = buffer.reader()
    fill(buffer, 5)
    assert len(drawn(buffer)) == len(drawn(reader)) == 5
    assert resident() - before < 96 * 2**20  # a page of each level, of 2 MiB where the system likes them large


def resident() -> int:
    """Bytes of this process that lie in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
