"""Settings that make no sense are refused when the buffer is made, with the reason."""

from __future__ import annotations

import pytest

import relive


def schema(lanes: int = 1) -> relive.Schema:
    return relive.Schema(relive.Field("float32", (4,)), relive.Field("int64", (), low=0, high=2), lanes=lanes)


@pytest.mark.parametrize(
    ("capacity", "lanes", "pieces"),
    [
        (0, 1, ["capacity", "0"]),
        (-8, 1, ["capacity", "-8"]),
        (2.5, 1, ["capacity", "2.5"]),
        (8.0, 1, ["capacity", "8.0"]),
        ("8", 1, ["capacity"]),
        (None, 1, ["capacity"]),
        (10, 4, ["capacity", "10", "8", "12"]),
        (1_000_001, 8, ["1000000", "1000008"]),
        (3, 8, ["capacity", "3", "8"]),
        (8, 0, ["lanes", "0"]),
        (8, -2, ["lanes", "-2"]),
        (8, 2.0, ["lanes", "2.0"]),
    ],
)
def test_capacities_and_lanes(capacity, lanes, pieces):
    with pytest.raises(relive.ConfigError) as raised:
        relive.ReplayBuffer(capacity, lanes=lanes)
    assert isinstance(raised.value, ValueError)
    message = str(raised.value).replace(",", "").replace("_", "")
    for piece in pieces:
        assert piece in message, f"{piece!r} not in: {message}"


def test_lanes_that_contradict_the_schema():
    with pytest.raises(relive.ConfigError, match="lanes"):
        relive.ReplayBuffer(8, schema(2), lanes=4)


@pytest.mark.parametrize(
    ("options", "piece"),
    [
        ({"n": 0}, "n"),
        ({"n": -3}, "n"),
        ({"n": 1.5}, "n"),
        ({"gamma": 1.5}, "gamma"),
        ({"gamma": -0.1}, "gamma"),
        ({"gamma": float("nan")}, "gamma"),
        ({"gamma": "high"}, "gamma"),
        ({"stack": 0}, "stack"),
        ({"stack": 2.0}, "stack"),
        ({"padding": "mirror"}, "padding"),
    ],
)
def test_views_that_make_no_sense(options, piece):
    with pytest.raises(relive.ConfigError, match=piece):
        relive.ReplayBuffer(8, schema(), view=relive.Transitions(**options))


def test_stacks_of_stacks_make_no_sense():
    stacked = relive.Schema(relive.Field("uint8", (3, 2)), relive.Field("int64"), stacked=3)
    with pytest.raises(relive.ConfigError, match="stack"):
        relive.ReplayBuffer(8, stacked, view=relive.Transitions(stack=4))


@pytest.mark.parametrize(
    "options",
    [{"sampler": "uniform"}, {"view": "n-step"}, {"storage": "ram"}, {"seed": "abc"}, {"seed": 0.5}, {"seed": -1}],
)
def test_axes_and_seeds_of_the_wrong_kind(options):
    with pytest.raises(relive.ConfigError, match=next(iter(options))):
        relive.ReplayBuffer(8, schema(), **options)


def test_a_schema_of_the_wrong_kind():
    for wrong in ("CartPole", {"obs": 1}, 4):
        with pytest.raises(relive.ReplayError, match="schema"):
            relive.ReplayBuffer(8, wrong)
