"""Blocks of transitions as they travel to a shard: columns, with every observation once."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from relive.schema import Schema, leaves, unflatten


class Block(NamedTuple):
    """Transitions of one lane, in order of time.

    Attributes:
        lane: of the shard.
        length: T, transitions.
        obs: one array [T, ...] for each field of an observation.
        rest: actions, reward, terminated, truncated, extras, [T, ...] each.
        at: int64 [F], ascending: the transitions whose next_obs is not the following obs; the last one is among them.
        finals: next_obs of those, [F, ...] for each field of an observation.
        priority: float64 [T], |delta|; None where none was given.
    """

    lane: int
    length: int
    obs: list[NDArray[Any]]
    rest: list[NDArray[Any]]
    at: NDArray[np.int64]
    finals: list[NDArray[Any]]
    priority: NDArray[np.float64] | None


def pack(schema: Schema, values: list[NDArray[Any]], lane: int, priority: NDArray[np.float64] | None) -> Block:
    """A block of what `append.conform_all` gives: obs, action, reward, terminated, truncated, next_obs, extras.

    Copies final observations alone.
    """
    num_obs, first_next = _places(schema)
    obs, following = values[:num_obs], values[first_next : first_next + num_obs]
    count = len(obs[0])
    differs = np.zeros(count, np.bool_)
    differs[-1:] = True
    for now, after in zip(obs, following, strict=True):
        differs[:-1] |= (_bytes(now[1:]) != _bytes(after[:-1])).any(axis=1)
    at = np.flatnonzero(differs)
    rest = values[num_obs:first_next] + values[first_next + num_obs :]
    return Block(lane, count, obs, rest, at, [leaf[at] for leaf in following], priority)


def unpack(schema: Schema, block: Block) -> dict[str, Any]:
    """The block as `ReplayBuffer.extend` takes it. Copies observations once."""
    num_obs, first_next = _places(schema)
    following = []
    for obs, finals in zip(block.obs, block.finals, strict=True):
        leaf = np.empty_like(obs)
        leaf[:-1] = obs[1:]
        leaf[block.at] = finals
        following.append(leaf)
    num_rest = first_next - num_obs
    *actions, reward, terminated, truncated = block.rest[:num_rest]
    return {
        "obs": unflatten(schema.obs, iter(block.obs)),
        "action": unflatten(schema.action, iter(actions)),
        "reward": reward,
        "terminated": terminated,
        "truncated": truncated,
        "next_obs": unflatten(schema.obs, iter(following)),
        **dict(zip(schema.extras, block.rest[num_rest:], strict=True)),
        "lane": block.lane,
        "priority": block.priority,
    }


def _places(schema: Schema) -> tuple[int, int]:
    """Among the values of a transition: how many are the observation's, and where the next one's begin."""
    num_obs = len(list(leaves(schema.obs, "obs")))
    return num_obs, num_obs + len(list(leaves(schema.action, "action"))) + 3


def _bytes(rows: NDArray[Any]) -> NDArray[np.uint8]:
    """uint8 [T, bytes of a row]: -0.0 is not 0.0, and a NaN is itself."""
    flat = np.ascontiguousarray(rows)
    size = flat.dtype.itemsize * int(np.prod(flat.shape[1:]))
    return flat.view(np.uint8).reshape(len(flat), size) if flat.size else np.empty((len(flat), 0), np.uint8)
