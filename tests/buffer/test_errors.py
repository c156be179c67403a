"""Every bad input: the right class, a message that names what was wrong, and a buffer that did not change.

Each case is a call that must be refused on a buffer that already holds something. The class is checked twice: the child
of `ReplayError` for those who catch ours, the built-in for those who do not.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import relive
from model.compare import fingerprint
from model.reference import map_tree

Call = Callable[[relive.ReplayBuffer], Any]


def schema(lanes: int = 1) -> relive.Schema:
    return relive.Schema(
        relive.Field("float32", (4,)),
        relive.Field("int64", (), low=0, high=2),
        {"logp": relive.Field("float32"), "tag": relive.Field("int8", (2,))},
        lanes=lanes,
    )


def one(**changes: Any) -> dict[str, Any]:
    """The fields of one good transition, with changes; a change to `...` removes the field."""
    fields = {
        "obs": np.arange(4, dtype=np.float32),
        "action": np.int64(1),
        "reward": 0.5,
        "terminated": False,
        "next_obs": np.arange(1, 5, dtype=np.float32),
        "truncated": False,
        "logp": np.float32(-1),
        "tag": np.array([1, 2], np.int8),
        **changes,
    }
    return {name: value for name, value in fields.items() if value is not ...}


def many(length: int = 3, **changes: Any) -> dict[str, Any]:
    """The fields of several good transitions, with changes."""
    return one(**{name: np.stack([value] * length) for name, value in one().items()} | changes)


def held(lanes: int = 1) -> relive.ReplayBuffer:
    """A buffer that has wrapped and in which an episode is open."""
    buffer = relive.ReplayBuffer(4 * lanes, schema(lanes), seed=0)
    for lane in range(lanes):
        buffer.extend(**many(6, terminated=np.arange(6) == 3), lane=lane)
    return buffer


def refused(buffer: relive.ReplayBuffer, call: Call, error: type[Exception], builtin: Any, *pieces: str) -> None:
    """The call raises `error`, says every piece, and changes nothing."""
    before = fingerprint(buffer)
    with pytest.raises(error) as raised:
        call(buffer)
    assert isinstance(raised.value, relive.ReplayError)
    assert isinstance(raised.value, builtin)
    message = str(raised.value)
    assert re.match(r"[^:]+: \S", message), f"no subject: {message}"
    for piece in pieces:
        assert piece in message, f"{piece!r} not in: {message}"
    assert fingerprint(buffer) == before


F32 = np.float32
PUSH_ONE = {
    "missing extra": (one(logp=...), ["logp"]),
    "unknown field": (one(colour=1.0), ["colour"]),
    "misspelt field": (one(logp=..., log_p=1.0), ["log"]),
    "obs shape": (one(obs=np.zeros(3, F32)), ["obs", "expected float32 (4,)", "got float32 (3,)"]),
    "next_obs shape": (one(next_obs=np.zeros((4, 1), F32)), ["next_obs", "float32 (4,)", "(4, 1)"]),
    "obs scalar": (one(obs=F32(1)), ["obs", "(4,)"]),
    "obs dtype": (one(obs=np.zeros(4)), ["obs", "expected float32 (4,)", "got float64 (4,)"]),
    "obs dtype integer": (one(obs=np.full(4, 2**25 + 1)), ["obs", "float32", "int64"]),
    "obs complex": (one(obs=np.zeros(4, np.complex64)), ["obs", "float32", "complex64"]),
    "obs text": (one(obs=np.array(["a"] * 4)), ["obs", "float32"]),
    "obs object": (one(obs=np.array([object()] * 4)), ["obs", "float32", "object"]),
    "obs None": (one(obs=None), ["obs", "float32"]),
    "obs list of objects": (one(obs=[object(), 1, 2, 3]), ["obs"]),
    "obs ragged": (one(obs=[[1.0], [1.0, 2.0], [], 0.5]), ["obs"]),
    "obs a dict": (one(obs={"x": np.zeros(4, F32)}), ["obs"]),
    "obs a tuple of arrays": (one(obs=(np.zeros(4, F32), np.zeros(4, F32))), ["obs"]),
    "action above": (one(action=3), ["action", "3"]),
    "action below": (one(action=-1), ["action", "-1"]),
    "action numpy above": (one(action=np.uint8(7)), ["action", "7"]),
    "action float": (one(action=np.float64(1.0)), ["action", "int64", "float64"]),
    "action half": (one(action=0.5), ["action", "int64"]),
    "action shape": (one(action=np.zeros(2, np.int64)), ["action", "int64", "(2,)"]),
    "action text": (one(action="left"), ["action"]),
    "reward shape": (one(reward=np.zeros(2, F32)), ["reward", "float32", "(2,)"]),
    "reward text": (one(reward="much"), ["reward", "float32"]),
    "reward complex": (one(reward=1j), ["reward", "float32"]),
    "reward None": (one(reward=None), ["reward"]),
    "terminated half": (one(terminated=0.5), ["terminated", "bool"]),
    "terminated two": (one(terminated=2), ["terminated", "bool"]),
    "truncated text": (one(truncated="no"), ["truncated", "bool"]),
    "truncated shape": (one(truncated=np.zeros(2, bool)), ["truncated"]),
    "extra dtype": (one(logp=np.zeros((), np.complex128)), ["logp", "float32", "complex128"]),
    "extra shape": (one(tag=np.zeros(3, np.int8)), ["tag", "int8 (2,)", "(3,)"]),
    "extra overflow": (one(tag=np.array([1, 300])), ["tag", "int8", "int64"]),
    "extra unsigned overflow": (one(tag=np.array([128, 0], np.uint8)), ["tag", "int8", "uint8"]),
    "extra from float": (one(tag=np.array([1.0, 2.0])), ["tag", "int8", "float64"]),
}


@pytest.mark.parametrize("name", PUSH_ONE)
def test_push_of_one_bad_transition(name):
    fields, pieces = PUSH_ONE[name]
    refused(held(), lambda b: b.push(**fields), relive.SchemaError, ValueError, *pieces)
    refused(held(3), lambda b: b.push(**fields, lane=2), relive.SchemaError, ValueError, *pieces)


def last_bad(field: str, value: Any) -> dict[str, Any]:
    """Three transitions of which only the last is bad."""
    values = np.stack([np.asarray(one()[field])] * 3).astype(np.asarray(value).dtype)
    values[-1] = value
    return many(3, **{field: values})


PUSH_MANY = {
    "missing extra": (many(logp=...), ["logp"]),
    "unknown field": (many(colour=np.zeros(3)), ["colour"]),
    "action of the last lane": (last_bad("action", np.int64(3)), ["action", "3"]),
    "extra of the last lane": (last_bad("tag", np.int64(200)), ["tag", "int8", "int64"]),
    "obs dtype": (many(obs=np.zeros((3, 4))), ["obs", "float32", "float64"]),
    "obs frame shape": (many(obs=np.zeros((3, 5), F32)), ["obs", "float32", "(3, 5)"]),
    "reward too short": (many(reward=np.zeros(2, F32)), ["expected", "got"]),
    "obs too long": (many(obs=np.zeros((4, 4), F32)), ["obs", "(4, 4)"]),
    "next_obs of one": (many(next_obs=np.zeros(4, F32)), ["next_obs"]),
    "reward ragged": (many(reward=[[1.0], [1.0, 2.0], []]), ["reward"]),
    "reward object": (many(reward=np.array([1.0, None, 2.0], object)), ["reward"]),
    "terminated too long": (many(terminated=np.zeros(4, bool)), ["terminated", "(4,)"]),
    "truncated too long": (many(truncated=np.zeros(4, bool)), ["truncated", "(4,)"]),
    "extra too short": (many(logp=np.zeros(2, F32)), ["logp", "(2,)"]),
}


@pytest.mark.parametrize("name", PUSH_MANY)
def test_push_of_a_bad_step_of_every_lane(name):
    fields, pieces = PUSH_MANY[name]
    refused(held(3), lambda b: b.push(**fields), relive.SchemaError, ValueError, *pieces)
    kept = np.array([False, True, True])
    refused(held(3), lambda b: b.push(**fields, mask=kept), relive.SchemaError, ValueError, *pieces)


@pytest.mark.parametrize("name", PUSH_MANY)
def test_extend_with_a_bad_block(name):
    fields, pieces = PUSH_MANY[name]
    refused(held(), lambda b: b.extend(**fields), relive.SchemaError, ValueError, *pieces)
    refused(held(3), lambda b: b.extend(**fields, lane=1), relive.SchemaError, ValueError, *pieces)


@pytest.mark.parametrize("priority", [float("nan"), -1.0, float("inf"), 1.0, "high", np.ones(2)])
def test_a_priority_is_refused_where_the_sampler_has_none(priority):
    refused(held(), lambda b: b.push(**one(), priority=priority), relive.ReplayError, ValueError, "priority")
    refused(held(3), lambda b: b.push(**many(), priority=priority), relive.ReplayError, ValueError, "priority")


@pytest.mark.parametrize("lane", [3, -1, 1.5, "first", np.array([0, 1])])
def test_a_lane_that_does_not_exist(lane):
    refused(held(3), lambda b: b.push(**one(), lane=lane), relive.ReplayError, ValueError, "lane", "[0, 2]")
    refused(held(3), lambda b: b.extend(**many(), lane=lane), relive.ReplayError, ValueError, "lane", "[0, 2]")


def test_a_lane_must_be_named_where_there_are_several():
    refused(held(3), lambda b: b.push(**one()), relive.ReplayError, ValueError, "lane")
    refused(held(3), lambda b: b.extend(**many(5)), relive.ReplayError, ValueError, "lane")
    refused(held(), lambda b: b.push(**one(), lane=1), relive.ReplayError, ValueError, "lane")


@pytest.mark.parametrize(
    "mask",
    [
        np.ones(2, bool),
        np.ones((3, 1), bool),
        np.ones(3),
        np.array(True),
        np.array([0, 1, 2]),
        "all",
        [None] * 3,
        [[True], []],
    ],
)
def test_a_mask_that_does_not_fit(mask):
    refused(held(3), lambda b: b.push(**many(), mask=mask), relive.ReplayError, ValueError, "mask")


def test_a_mask_or_lane_makes_no_sense_with_the_other_form():
    refused(held(3), lambda b: b.push(**one(), lane=0, mask=np.ones(3, bool)), relive.ReplayError, ValueError, "mask")
    refused(held(3), lambda b: b.push(**many(), lane=0), relive.ReplayError, ValueError)


def test_fields_of_one_transition_cannot_be_left_out():
    buffer = held()
    before = fingerprint(buffer)
    for name in ("obs", "action", "reward", "terminated", "next_obs"):
        with pytest.raises(TypeError, match=name):
            buffer.push(**one(**{name: ...}))
    assert fingerprint(buffer) == before


@pytest.mark.parametrize("size", [0, -1, 2.5, "many", None, np.array([1, 2])])
def test_a_batch_of_no_size(size):
    refused(held(), lambda b: b.sample(size), relive.ReplayError, ValueError, "sample")


@pytest.mark.parametrize("made", [lambda: relive.ReplayBuffer(4, schema()), lambda: relive.ReplayBuffer(4)])
def test_an_empty_buffer(made):
    for buffer in (made(), cleared(made())):
        assert len(buffer) == 0
        with pytest.raises(relive.NotEnoughDataError, match=r"sample\(32\).*empty") as raised:
            buffer.sample(32)
        assert isinstance(raised.value, RuntimeError)
        with pytest.raises(relive.StaleIdError):
            buffer.get(np.array([0]))
        assert len(buffer) == 0


def cleared(buffer: relive.ReplayBuffer) -> relive.ReplayBuffer:
    buffer.push(**one())
    buffer.clear()
    return buffer


@pytest.mark.parametrize("identity", [0, 1, -1, 6, 2**62])
def test_ids_that_are_not_live(identity):
    """Ids 2 to 5 are live; before them overwritten, after them never pushed."""
    asked = np.array([2, identity, 5])
    refused(held(), lambda b: b.get(asked), relive.StaleIdError, IndexError, str(identity))
    refused(held(), lambda b: b.get(np.array([identity])), relive.StaleIdError, IndexError, str(identity))


def test_ids_of_lanes_of_different_length():
    buffer = relive.ReplayBuffer(8, schema(2))
    buffer.extend(**many(3), lane=1)  # ids 1, 3, 5
    assert buffer.get(np.array([1, 5])).ids.tolist() == [1, 5]
    for identity in (0, 2, 4, 7):
        refused(buffer, lambda b, i=identity: b.get(np.array([i])), relive.StaleIdError, IndexError, str(identity))


@pytest.mark.parametrize(
    "ids",
    [
        [[1], [1, 2]],
        np.array([2.0]),
        np.array([True]),
        np.array(["2"]),
        np.array([None]),
        np.array([[2]]),
        np.array(2),
        "ids",
        None,
    ],
    ids=repr,
)
def test_ids_that_are_no_ids(ids):
    refused(held(), lambda b: b.get(ids), relive.ReplayError, (ValueError, IndexError), "ids")


def test_outputs_that_do_not_exist():
    refused(held(), lambda b: b.sample(2, output="jax"), relive.ReplayError, ValueError, "output", "jax")
    refused(held(), lambda b: b.get(np.array([2]), output="jax"), relive.ReplayError, ValueError, "output", "jax")
    refused(
        held(), lambda b: b.sample(2, device="cpu:nowhere", output="numpy"), relive.ReplayError, ValueError, "device"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"obs": None},
        {"obs": np.array([object()])},
        {"obs": [[1.0], [1.0, 2.0]]},
        {"next_obs": np.zeros(3, F32)},
        {"next_obs": np.zeros(4, np.float64)},
        {"reward": "much"},
        {"terminated": 0.5},
        {"tag": np.array([None, 1], object)},
        {"lane": 3},
        {"priority": 1.0},
    ],
    ids=str,
)
def test_a_refused_first_push_leaves_no_schema(changes):
    buffer = relive.ReplayBuffer(4)
    with pytest.raises(relive.ReplayError):
        buffer.push(**one(**changes))
    assert buffer.schema is None
    assert len(buffer) == 0
    other = {"obs": np.zeros(7, np.int16), "next_obs": np.ones(7, np.int16)}
    assert buffer.push(other["obs"], 0, 0.0, False, other["next_obs"]) == 0
    assert buffer.get(np.array([0])).next_obs.tolist() == [[1] * 7]


def nested() -> relive.ReplayBuffer:
    leaf = relive.Field("float32", (2,))
    tree = {"eye": {"left": leaf, "right": leaf}, "pair": (leaf, relive.Field("uint8", (600,)))}
    buffer = relive.ReplayBuffer(4, relive.Schema(tree, {"move": relive.Field("int64", (), low=1, high=3)}))
    buffer.push(**nested_fields())
    return buffer


def nested_fields(**changes: Any) -> dict[str, Any]:
    def state() -> dict[str, Any]:
        eye = {"left": np.zeros(2, F32), "right": np.ones(2, F32)}
        return {"eye": eye, "pair": (np.zeros(2, F32), np.zeros(600, np.uint8))}

    fields = {"obs": state(), "action": {"move": 1}, "reward": 0.0, "terminated": False, "next_obs": state()}
    return fields | changes


def spoiled(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """A good observation with the leaf at `path` replaced (or removed, where the value is `...`)."""
    obs = nested_fields()["obs"]
    if isinstance(path[-1], int):
        obs["pair"] = tuple(value if i == path[-1] else leaf for i, leaf in enumerate(obs["pair"]))
        return obs
    node = obs
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    if value is ...:
        del node[path[-1]]
    return obs


@pytest.mark.parametrize(
    ("changes", "pieces"),
    [
        ({"obs": spoiled(("eye", "left"), np.zeros(3, F32))}, ["obs", "left", "(2,)", "(3,)"]),
        ({"next_obs": spoiled(("eye", "right"), np.zeros(2))}, ["next_obs", "right", "float32", "float64"]),
        ({"obs": spoiled(("eye", "left"), ...)}, ["obs", "left"]),
        ({"obs": spoiled(("eye", "third"), np.zeros(2, F32))}, ["obs", "third"]),
        ({"next_obs": spoiled(("pair", 1), np.zeros(599, np.uint8))}, ["next_obs", "pair", "(600,)", "(599,)"]),
        ({"obs": nested_fields()["obs"] | {"pair": nested_fields()["obs"]["pair"][:1]}}, ["obs", "pair"]),
        ({"obs": np.zeros(2, F32)}, ["obs"]),
        ({"action": {"move": 0}}, ["action", "move", "0"]),
        ({"action": {"jump": 1}}, ["action"]),
        ({"action": 1}, ["action"]),
    ],
)
def test_errors_name_the_leaf_of_a_tree(changes, pieces):
    refused(nested(), lambda b: b.push(**nested_fields(**changes)), relive.SchemaError, ValueError, *pieces)


def rolling() -> tuple[relive.ReplayBuffer, dict[str, Any]]:
    buffer = relive.ReplayBuffer(
        8, relive.Schema(relive.Field("uint8", (3, 2)), relive.Field("int64"), stacked=3, lanes=2)
    )
    stack = np.arange(8, dtype=np.uint8).reshape(4, 2)
    fields = {"obs": stack[:3], "action": 0, "reward": 0.0, "terminated": False, "next_obs": stack[1:]}
    buffer.push(**fields, lane=0)
    return buffer, fields


def test_stacks_that_do_not_roll():
    buffer, good = rolling()
    bad = good | {"next_obs": good["next_obs"][::-1].copy()}
    refused(buffer, lambda b: b.push(**bad, lane=0), relive.SchemaError, ValueError, "next_obs")
    both = map_tree(lambda a, b: np.stack([a, b]), good, bad)
    refused(buffer, lambda b: b.push(**both), relive.SchemaError, ValueError, "next_obs")
    refused(buffer, lambda b: b.extend(**both, lane=1), relive.SchemaError, ValueError, "next_obs")
    flat = good | {"obs": good["obs"][0], "next_obs": good["obs"][1]}
    refused(buffer, lambda b: b.push(**flat, lane=0), relive.SchemaError, ValueError, "obs")


def test_lossless_casts_are_done():
    """What may be cast is cast: the other side of all the refusals."""
    buffer = held()
    identity = buffer.push(
        **one(
            obs=np.arange(4, dtype=np.float16),
            next_obs=np.arange(4, dtype=np.uint8),
            action=np.uint8(2),
            reward=np.float64(0.1),
            logp=0.25,
            tag=np.array([-128, 127]),
        )
    )
    row = buffer.get(np.array([identity]))
    assert (row.obs.dtype, row.next_obs.dtype) == (np.float32, np.float32)
    assert row.obs.tolist() == row.next_obs.tolist() == [[0, 1, 2, 3]]
    assert row.action.dtype == np.int64
    assert row.action.tolist() == [2]
    assert row.reward.tolist() == [np.float32(0.1)]
    assert row.tag.tolist() == [[-128, 127]]
    assert row.logp.tolist() == [0.25]
    assert buffer.push(**one(terminated=np.bool_(True), truncated=np.True_, reward=3)) == identity + 1
    assert buffer.get(np.array([identity + 1])).reward.tolist() == [3]


def test_a_schema_of_other_lanes_says_how_to_change_it():
    """Bug: "Leave it out", to who wants another number of lanes than the dataset has whose schema it is."""
    with pytest.raises(relive.ConfigError, match=r"got 2\..* dataclasses\.replace\(schema, lanes=2\)\.$"):
        relive.ReplayBuffer(8, schema(4), lanes=2)
