"""Schemas: from spaces, from the first push, written out; and every dtype through the buffer and back."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from gymnasium.wrappers import FrameStackObservation, TransformObservation

import relive
from model.compare import assert_same
from model.kinds import KINDS
from model.reference import Model, Tree, View, map_tree

Field = relive.Field

SPACES = {
    "Box": (spaces.Box(-1, 1, (3, 2), np.float32), Field("float32", (3, 2))),
    "Box of one number": (spaces.Box(0, 1, (), np.float64), Field("float64", ())),
    "Box of bytes": (spaces.Box(0, 255, (84, 84), np.uint8), Field("uint8", (84, 84))),
    "Discrete": (spaces.Discrete(4), Field("int64", (), 0, 3)),
    "Discrete from -2": (spaces.Discrete(5, start=-2), Field("int64", (), -2, 2)),
    "Discrete int32": (spaces.Discrete(3, dtype=np.int32), Field("int32", (), 0, 2)),
    "MultiDiscrete": (spaces.MultiDiscrete([2, 5]), Field("int64", (2,), (0, 0), (1, 4))),
    "MultiDiscrete from": (spaces.MultiDiscrete([2, 5], start=[3, -1]), Field("int64", (2,), (3, -1), (4, 3))),
    "MultiDiscrete grid": (
        spaces.MultiDiscrete([[2, 3], [4, 5]]),
        Field("int64", (2, 2), (0, 0, 0, 0), (1, 2, 3, 4)),
    ),
    "MultiBinary": (spaces.MultiBinary(3), Field("int8", (3,), 0, 1)),
    "MultiBinary grid": (spaces.MultiBinary([2, 2]), Field("int8", (2, 2), 0, 1)),
    "Tuple": (
        spaces.Tuple((spaces.Discrete(2), spaces.Box(0, 1, (2,), np.float32))),
        (Field("int64", (), 0, 1), Field("float32", (2,))),
    ),
    "Dict": (
        spaces.Dict({"b": spaces.MultiBinary(2), "a": spaces.Discrete(2)}),
        {"b": Field("int8", (2,), 0, 1), "a": Field("int64", (), 0, 1)},
    ),
    "nested": (
        spaces.Dict({"x": spaces.Tuple((spaces.Dict({"y": spaces.Discrete(2)}), spaces.Box(0, 1, (1,), np.float16)))}),
        {"x": ({"y": Field("int64", (), 0, 1)}, Field("float16", (1,)))},
    ),
}


@pytest.mark.parametrize("name", SPACES)
def test_a_space_becomes_fields_and_its_samples_are_kept(name):
    space, expected = SPACES[name]
    schema = relive.Schema.from_spaces(space, space)
    assert schema.obs == expected
    assert schema.action == expected
    space.seed(0)
    buffer, model = relive.ReplayBuffer(6, schema, seed=0), Model(6)
    for _ in range(10):
        obs, action, after = (map_tree(np.array, plain(space.sample())) for _ in range(3))
        assert buffer.push(obs, action, 1.0, False, after) == model.push(obs, action, 1.0, False, after)
    assert_same(buffer, model, View(gamma=0.99))


def plain(sample: Tree) -> Tree:
    """Gymnasium's samples with builtin dicts."""
    if isinstance(sample, dict):
        return {name: plain(child) for name, child in sample.items()}
    return tuple(plain(child) for child in sample) if isinstance(sample, tuple) else sample


@pytest.mark.parametrize("name", ["Discrete from -2", "MultiDiscrete", "MultiDiscrete from", "MultiBinary", "nested"])
def test_values_outside_a_discrete_space_are_refused(name):
    space, fields = SPACES[name]
    buffer = relive.ReplayBuffer(6, relive.Schema.from_spaces(space, space))
    good = lowest(fields, 0)
    buffer.push(good, good, 0.0, False, lowest(fields, 0))
    below = lowest(fields, -1)
    for bad, word in (((below, good, good), "obs"), ((good, below, good), "action"), ((good, good, below), "next_obs")):
        with pytest.raises(relive.SchemaError, match=word):
            buffer.push(bad[0], bad[1], 0.0, False, bad[2])
    assert len(buffer) == 1


def lowest(tree: Tree, offset: int) -> Tree:
    """The lowest value of each bounded leaf, plus `offset`."""

    def value(leaf: Field) -> np.ndarray:
        if leaf.low is None:
            return np.zeros(leaf.shape, leaf.dtype)
        low = np.broadcast_to(np.reshape(leaf.low, np.shape(leaf.low) and leaf.shape), leaf.shape)
        return (low + offset).astype(leaf.dtype)

    return map_tree(value, tree)


def test_bounds_hold_for_each_element_of_each_lane():
    schema = relive.Schema.from_spaces(spaces.Box(0, 1, (1,), np.float32), spaces.MultiDiscrete([2, 5]), lanes=2)
    buffer = relive.ReplayBuffer(8, schema)
    obs, flags = np.zeros((2, 1), np.float32), np.zeros(2, bool)
    buffer.push(obs, np.array([[1, 4], [0, 3]]), np.zeros(2), flags, obs)
    for action in ([[1, 4], [2, 3]], [[1, 5], [0, 0]], [[0, 0], [-1, 0]]):
        with pytest.raises(relive.SchemaError, match="action"):
            buffer.push(obs, np.array(action), np.zeros(2), flags, obs)
    assert len(buffer) == 2


@pytest.mark.parametrize(
    "space",
    [
        spaces.Text(5),
        spaces.Sequence(spaces.Discrete(2)),
        spaces.Graph(spaces.Discrete(2), None),
        spaces.OneOf((spaces.Discrete(2), spaces.Discrete(3))),
        spaces.Dict({"note": spaces.Text(3)}),
    ],
    ids=lambda space: type(space).__name__,
)
def test_spaces_without_a_fixed_shape_are_refused(space):
    with pytest.raises(relive.ReplayError, match=r"obs.*(Text|Sequence|Graph|OneOf)"):
        relive.Schema.from_spaces(space, spaces.Discrete(2))
    with pytest.raises(relive.ReplayError, match="action"):
        relive.Schema.from_spaces(spaces.Discrete(2), space)


def cartpole():
    import gymnasium

    return gymnasium.make("CartPole-v1")


def test_from_env():
    single = relive.Schema.from_env(cartpole())
    assert single == relive.Schema(Field("float32", (4,)), Field("int64", (), 0, 1))
    vector = relive.Schema.from_env(SyncVectorEnv([cartpole] * 3), extras={"logp": Field("float32")})
    assert vector == relive.Schema(single.obs, single.action, {"logp": Field("float32")}, lanes=3)
    assert relive.ReplayBuffer(9, vector).lanes == 3
    stacked = relive.Schema.from_env(FrameStackObservation(cartpole(), 4), stacked=4)
    assert stacked == relive.Schema(Field("float32", (4, 4)), single.action, stacked=4)


def test_from_env_sees_through_wrappers():
    box = spaces.Box(0, 1, (2,), np.float64)
    env = TransformObservation(cartpole(), lambda obs: obs[:2].astype(np.float64), box)
    assert relive.Schema.from_env(env).obs == Field("float64", (2,))


# From the first push.


def test_the_first_push_makes_the_schema():
    buffer = relive.ReplayBuffer(4)
    assert buffer.schema is None
    assert len(buffer) == 0
    assert buffer.ids.tolist() == []
    obs = {"x": np.zeros((2, 3), np.float16), "y": (np.int8(1), np.zeros(1))}
    buffer.push(obs, 1, 0.5, False, obs, logp=np.float32(-1), carry=np.zeros(3))
    assert buffer.schema == relive.Schema(
        {"x": Field("float16", (2, 3)), "y": (Field("int8"), Field("float64", (1,)))},
        Field("int64"),
        {"logp": Field("float32"), "carry": Field("float64", (3,))},
    )
    assert buffer.get(np.array([0])).obs["y"][0].tolist() == [1]


def test_the_first_push_of_all_lanes_makes_the_schema():
    buffer = relive.ReplayBuffer(9, lanes=3)
    obs = np.zeros((3, 5), np.uint8)
    ids = buffer.push(obs, np.zeros((3, 2), np.float32), np.zeros(3), np.zeros(3, bool), obs, tag=np.arange(3))
    assert ids.tolist() == [0, 1, 2]
    expected = relive.Schema(Field("uint8", (5,)), Field("float32", (2,)), {"tag": Field("int64")}, lanes=3)
    assert buffer.schema == expected
    assert buffer.get(ids).tag.tolist() == [0, 1, 2]


def test_the_first_push_of_one_lane_makes_the_schema():
    buffer = relive.ReplayBuffer(9, lanes=3)
    obs = np.zeros(3, np.float32)  # as long as there are lanes: what is meant must not be guessed from it
    assert buffer.push(obs, 0, 0.0, False, obs, lane=1) == 1
    assert buffer.schema.obs == Field("float32", (3,))


def test_the_first_extend_makes_the_schema():
    buffer = relive.ReplayBuffer(9, lanes=3)
    obs = np.zeros((4, 5), np.int16)
    assert buffer.extend(obs, np.zeros(4, np.int32), np.zeros(4), np.zeros(4, bool), obs, lane=2).tolist() == [
        2,
        5,
        8,
        11,
    ]
    assert buffer.schema == relive.Schema(Field("int16", (5,)), Field("int32"), lanes=3)


def test_a_schema_fixes_the_lanes():
    schema = relive.Schema(Field("float32", (1,)), Field("int64"), lanes=2)
    assert relive.ReplayBuffer(8, schema).lanes == 2
    assert relive.ReplayBuffer(8, schema, lanes=2).lanes == 2
    assert relive.ReplayBuffer(8).lanes == 1


# Values.


def test_equality_and_json():
    assert Field("float32", [3]) == Field(np.float32, (3,)) == Field(np.dtype("<f4"), (np.int64(3),))
    assert Field("float32") != Field("float64")
    assert Field("int64", (), 0, 3) != Field("int64")
    for kind in KINDS.values():
        schema = kind.schema(3)
        assert schema == kind.schema(3)
        assert schema != kind.schema(4)
        assert relive.Schema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema
    for space, _ in SPACES.values():
        schema = relive.Schema.from_spaces(space, space, extras={"tag": Field("S5", (2,)), "when": Field("M8[ms]")})
        assert relive.Schema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema


def test_bounds_may_be_numpy_integers():
    assert Field("int64", (), np.int64(0), np.uint8(3)) == Field("int64", (), 0, 3)
    assert Field("int64", (2,), np.array([0, 1]), np.array([3, 4])) == Field("int64", (2,), (0, 1), (3, 4))


def test_a_structured_dtype_survives_json():
    record = np.dtype([("position", "f4", (2,)), ("name", "U3")])
    schema = relive.Schema(Field("float32"), Field("int64"), {"record": Field(record, (2,))})
    assert relive.Schema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema
    value = np.array([([1, 2], "abc"), ([3, 4], "d")], record)
    buffer = relive.ReplayBuffer(2, schema)
    buffer.push(0.0, 0, 0.0, False, 1.0, record=value)
    assert buffer.get([0]).record.tobytes() == value.tobytes()


def test_a_schema_does_not_follow_the_dict_it_was_made_of():
    tree, extras = {"x": Field("float32")}, {"tag": Field("int8")}
    schema = relive.Schema(tree, tree, extras)
    before = schema.to_dict()
    tree["y"] = Field("float64")
    extras["more"] = Field("int8")
    assert schema.to_dict() == before


def test_a_schema_is_frozen():
    schema = KINDS["vector"].schema()
    with pytest.raises(dataclasses.FrozenInstanceError):
        schema.lanes = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        schema.obs.shape = (9,)


@pytest.mark.parametrize(
    "made",
    [
        lambda: Field(object),
        lambda: Field("no such dtype"),
        lambda: Field("float32", (-1,)),
        lambda: Field("float32", "ab"),
        lambda: Field("float32", 3),
        lambda: Field("float32", (2.5,)),
        lambda: Field("U"),
        lambda: Field("int64", (), 3, 1),
        lambda: Field("int64", (), 0),
        lambda: Field("int64", (2,), (0, 0, 0), (1, 1, 1)),
        lambda: Field("int64", (), 0.5, 1.5),
        lambda: Field("float32", (), 0, 1),
        lambda: Field("int8", (), 0, 300),
        lambda: Field("int64", (), 0, 2**70),
        lambda: Field(np.dtype(("float32", (2,)))),
        lambda: relive.Schema("obs", Field("int64")),
        lambda: relive.Schema(Field("int64"), None),
        lambda: relive.Schema({}, Field("int64")),
        lambda: relive.Schema(Field("int64"), Field("int64"), {"reward": Field("float32")}),
        lambda: relive.Schema(Field("int64"), Field("int64"), {"ids": Field("float32")}),
        lambda: relive.Schema(Field("int64"), Field("int64"), {"not a name": Field("float32")}),
        lambda: relive.Schema(Field("int64"), Field("int64"), {"x": "float32"}),
        lambda: relive.Schema(Field("int64"), Field("int64"), lanes=0),
        lambda: relive.Schema(Field("int64"), Field("int64"), stacked=0),
        lambda: relive.Schema(Field("int64"), Field("int64"), stacked=2),
        lambda: relive.Schema(Field("int64", (3, 1)), Field("int64"), stacked=2),
    ],
)
def test_schemas_that_make_no_sense(made):
    with pytest.raises((relive.ConfigError, relive.SchemaError), match=r"expected .*got"):
        made()


DTYPES = [
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "longdouble", "complex64", "complex128"),
    *("S1", "S5", "U1", "U7", "V3", "M8[ns]", "M8[D]", "m8[us]", ">i4", ">f8"),
]


@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (0,), (1, 1), (20, 30)], ids=str)
@pytest.mark.parametrize("name", DTYPES)
def test_every_dtype_is_kept_bit_for_bit(name, shape):
    """As obs, as action and as an extra, in the packed record or in a column, with 0 and 600 elements too."""
    dtype = np.dtype(name)
    schema = relive.Schema(Field(dtype, shape), Field(dtype, shape), {"extra": Field(dtype, shape)})
    buffer, model = relive.ReplayBuffer(3, schema), Model(3)
    rng = np.random.default_rng(0)

    def value() -> np.ndarray:
        size = int(np.prod(shape))
        if dtype.kind in "USMmb":
            return rng.integers(0, 2 if dtype.kind == "b" else 10, size).astype(dtype).reshape(shape)
        if dtype.kind == "V":
            return np.frombuffer(rng.bytes(3 * size), dtype).reshape(shape)
        numbers = rng.integers(0, 100, size).astype(dtype.newbyteorder("="))
        if dtype.kind in "fc":
            numbers[: size // 3] = np.nan
        return numbers.astype(dtype).reshape(shape)

    for _ in range(5):
        fields = {"obs": value(), "action": value(), "reward": 1.0, "terminated": False, "next_obs": value()}
        extra = value()
        buffer.push(**fields, extra=extra)
        model.push(**map_tree(native, fields), extras={"extra": native(extra)})
    assert_same(buffer, model, View(gamma=0.99))


def native(value: np.ndarray) -> np.ndarray:
    """In this machine's byte order, as everything is stored."""
    array = np.asarray(value)
    return array.astype(array.dtype.newbyteorder("="))


def test_strings_are_never_cut():
    schema = relive.Schema(Field("float32"), Field("int64"), {"name": Field("U4")})
    buffer = relive.ReplayBuffer(3, schema)
    assert buffer.push(0.0, 0, 0.0, False, 0.0, name="abcd") == 0
    assert buffer.push(0.0, 0, 0.0, False, 0.0, name=np.str_("ab")) == 1
    with pytest.raises(relive.SchemaError, match="name"):
        buffer.push(0.0, 0, 0.0, False, 0.0, name="abcde")
    assert buffer.get(np.array([0, 1])).name.tolist() == ["abcd", "ab"]


def test_arrays_need_not_be_contiguous_or_aligned():
    schema = relive.Schema(Field("float32", (2, 3)), Field("int32"), lanes=2)
    buffer = relive.ReplayBuffer(8, schema)
    raw = np.arange(1 + 2 * 6 * 4 * 2, dtype=np.uint8)
    unaligned = raw[1:].view(np.float32).reshape(2, 2, 2, 3)
    turned = np.asfortranarray(unaligned[0]), unaligned[1][:, ::-1, ::-1]
    action = np.arange(4, dtype=np.int32)[::2]
    ids = buffer.push(turned[0], action, np.zeros(4)[::2], np.zeros(4, bool)[::2], turned[1])
    batch = buffer.get(ids)
    assert batch.obs.tobytes() == turned[0].tobytes("C")
    assert batch.next_obs.tobytes() == turned[1].tobytes("C")
    assert batch.action.tolist() == [0, 2]


def test_the_callers_arrays_are_left_alone():
    """Not reshaped, not written to, not kept: read-only input is fine, and writing to it later changes nothing."""
    buffer = relive.ReplayBuffer(4)
    obs, after = np.arange(3.0), np.arange(1.0, 4.0)
    for array in (obs, after):
        array.setflags(write=False)
    buffer.push(obs, np.int64(1), 0.0, False, after)
    assert (obs.shape, after.shape) == ((3,), (3,))
    for array in (obs, after):
        array.setflags(write=True)
        array[:] = -1
    batch = buffer.get(np.array([0]))
    assert batch.obs.tolist() == [[0, 1, 2]]
    assert batch.next_obs.tolist() == [[1, 2, 3]]


def test_pythons_numbers_take_the_fields_width_where_they_fit():
    schema = relive.Schema(Field("float32"), Field("int64"), {"x": Field("float32"), "z": Field("complex64")})
    buffer = relive.ReplayBuffer(np.int64(4), schema)
    buffer.push(0.1, 0, 0.0, False, 0.2, x=0.1, z=0.5)
    assert buffer.get([0]).x[0] == np.float32(0.1)
    with pytest.raises(relive.SchemaError, match=r"x: expected a number that float32 can hold, got 1e\+300"):
        buffer.push(0.1, 0, 0.0, False, 0.2, x=1e300, z=0.5)
    assert len(buffer) == 1


def test_what_is_no_environment_is_named():
    with pytest.raises(relive.SchemaError, match="expected a Gymnasium environment, got object"):
        relive.Schema.from_env(object())
