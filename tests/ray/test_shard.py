"""A shard by itself, without Ray: blocks as they travel, numbers of writers, what a new life finds."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from unions import SCHEMA, fields_of, part

import relive
from model.driving import STEPS, block
from model.kinds import KINDS
from model.reference import Model, leaves
from relive.append import collect, conform_all
from relive.share.ray_blocks import pack, unpack
from relive.share.ray_shard import Shard


def send(shard: Shard, writer: int, first: int, count: int) -> None:
    """A block of a writer."""
    zeros, no = np.zeros((count, 1), np.float32), np.zeros(count, bool)
    given_ = (zeros, np.zeros(count, int), np.arange(first, first + count), no, no, zeros, {})
    values = conform_all(SCHEMA, collect(SCHEMA, *given_), count)
    shard.push(writer, first, [pack(SCHEMA, values, 0, None)])


def again(directory: Any, **options: Any) -> Shard:
    return Shard(part(0, 1, 1_000, directory=directory / "shard-000", every=1e6, **options))


@given(st.sampled_from(sorted(KINDS)), st.lists(STEPS, min_size=1, max_size=12))
@settings(max_examples=60)
def test_blocks_are_unpacked_as_they_were(kind, coming):
    """Byte for byte: NaN, -0.0, episodes that break off, stacks. And an observation in mid-episode travels once."""
    kind = KINDS[kind]
    schema = kind.schema()
    rows = block(kind, Model(100), coming, 0)
    values, extras = fields_of(kind, rows)
    given_ = [values[name] for name in ("obs", "action", "reward", "terminated", "truncated", "next_obs")]
    arrays = conform_all(schema, collect(schema, *given_, extras), len(rows))
    packed = pack(schema, arrays, 3, None)
    back = unpack(schema, packed)
    assert back.pop("lane") == 3 and back.pop("priority") is None
    wanted = {**values, **extras, "reward": np.asarray(values["reward"], np.float32)}
    assert set(back) == set(wanted)
    for name, tree in wanted.items():
        for got, want in zip(leaves(back[name]), leaves(tree), strict=True):
            assert got.tobytes() == np.asarray(want).astype(got.dtype).tobytes(), name
    broken = sum(step.link != "continue" for step in coming[1:])
    assert len(packed.at) <= 1 + broken


def test_what_is_missing_is_known_by_its_numbers(tmp_path):
    shard = again(tmp_path)
    send(shard, 1, 0, 10)
    send(shard, 2, 0, 5)
    send(shard, 1, 13, 2)  # three were dropped
    assert (shard.hello().pushed, shard.hello().missing) == (17, 3)
    shard.save(tmp_path / "shard-000")
    send(shard, 1, 15, 4)  # lost with this life
    shard = again(tmp_path)
    assert (shard.hello().pushed, shard.hello().restored, shard.hello().missing) == (17, 17, 3)
    send(shard, 1, 21, 1)  # and two more on their way
    assert shard.hello().missing == 3 + 4 + 2
    shard.skipped(2, 8)  # closes, having sent eight
    shard.skipped(2, 8)
    assert shard.hello().missing == 9 + 3
    send(shard, 3, 6, 1)  # of an unknown writer, all before
    assert (shard.hello().pushed, shard.hello().missing) == (19, 18)


def test_what_is_pushed_while_a_snapshot_is_made_is_not_missing(tmp_path):
    """The numbers are written down before the snapshot's moment; what came in between is in it."""
    shard = again(tmp_path)
    send(shard, 1, 0, 10)
    save = shard._buffer.save

    def late(directory: Any, **options: Any) -> int:
        send(shard, 1, 10, 7)
        send(shard, 1, 20, 2)  # after three that were dropped
        return save(directory, **options)

    shard._buffer.save = late  # type: ignore[method-assign]
    shard.save(tmp_path / "shard-000")
    shard = again(tmp_path)
    assert shard.hello().pushed == 19
    send(shard, 1, 25, 1)
    assert (shard.hello().pushed, shard.hello().missing) == (20, 6)


def test_a_new_life_has_its_priorities_and_another_name(tmp_path):
    options = {"sampler": relive.Prioritized(1.0, 0.0)}
    shard = again(tmp_path, **options)
    send(shard, 1, 0, 10)
    life = shard.hello().life
    assert shard.update([(life, np.arange(12), np.full(12, 3.0))]).updated == 10
    shard.save(tmp_path / "shard-000")
    new = again(tmp_path, **options)
    assert (new.hello().mass, new.hello().largest) == (30.0, 3.0)
    assert new.hello().life != life
    assert new.update([(life, np.arange(10), np.ones(10))]).updated == 0
    assert new.hello().mass == 30.0


def test_a_damaged_snapshot_is_put_aside(tmp_path):
    shard = again(tmp_path)
    send(shard, 1, 0, 10)
    shard.save(tmp_path / "shard-000")
    for file in (tmp_path / "shard-000").glob("*-records.npy"):
        file.write_bytes(file.read_bytes()[:-1])
    shard = again(tmp_path)
    assert shard.hello().live == 0 and "no use" in shard.about()["problem"]
    assert len(list(tmp_path.glob("shard-000.damaged-*"))) == 1
    send(shard, 1, 10, 5)
    assert shard.save(tmp_path / "shard-000") > 0
    assert (again(tmp_path).hello().live, again(tmp_path).hello().missing) == (5, 10)


def test_snapshots_of_others_are_not_taken(tmp_path):
    shard = again(tmp_path)
    send(shard, 1, 0, 10)
    shard.save(tmp_path / "shard-000")
    other = again(tmp_path, run="another")
    assert other.hello().live == 0 and "another replay" in other.about()["problem"]
    source = again(tmp_path, run="another", source=tmp_path / "shard-000")
    assert source.hello().live == 10 and not source.about()["problem"]
    wrong = Shard(part(1, 1, 1_000, source=tmp_path / "shard-000"))
    assert wrong.hello().live == 0 and "expected shard 1" in wrong.about()["problem"]


def test_rows_of_batches_that_cannot_be_drawn_are_none():
    shard = again_empty = Shard(part(0, 1, 10, sampler=relive.Prioritized(1.0, 0.0)))
    answer = shard.draw([3, 0], 1.0, [])
    assert (answer.counts, answer.fields, len(answer.masses)) == ([0, 0], None, 0)
    send(again_empty, 1, 0, 4)
    answer = shard.draw([3, 0, 2], 1.0, [])
    assert answer.counts == [3, 0, 2] and answer.fields is not None and answer.fields["ids"].shape == (5,)
    assert answer.sums == [(4.0, 0.0)] * 3


def test_the_largest_priority_comes_from_elsewhere():
    shard = Shard(part(0, 1, 10, sampler=relive.Prioritized(1.0, 0.0)))
    send(shard, 1, 0, 2)
    shard.lift(5.0)
    send(shard, 1, 2, 1)
    assert (shard.hello().mass, shard.hello().largest) == (7.0, 5.0)
    shard.lift(2.0)
    assert shard.hello().largest == 5.0
    with pytest.raises(relive.SchemaError):
        shard.update([(shard.hello().life, np.arange(1), np.array([np.nan]))])


WITHOUT = """
import sys

class Gone:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ray":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

import relive, relive.share
assert "ray" not in sys.modules
sys.meta_path.insert(0, Gone())
try:
    import relive.share.ray
except relive.ConfigError as error:
    assert "pip install 'relive[ray]'" in str(error), error
else:
    raise AssertionError("it came from somewhere")
"""


def test_nothing_of_ray_is_imported_unless_asked_for_and_its_absence_is_said():
    subprocess.run([sys.executable, "-c", WITHOUT], check=True, timeout=120)
