"""Stable-Baselines3's replay buffers: pickles that `model.save_replay_buffer` wrote, and buffers to be filled."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relive.buffer import ReplayBuffer
from relive.errors import ConfigError, DatasetError, SchemaError
from relive.interop.blocks import as_flags, native, rows_at_once, spans
from relive.interop.source import Block, Source
from relive.interop.unpickle import Inert, load
from relive.samplers import Uniform
from relive.schema import Field, Schema, Tree
from relive.trees import map_tree
from relive.views import Transitions

BUFFERS = ("ReplayBuffer", "DictReplayBuffer", "HerReplayBuffer", "NStepReplayBuffer")


def open_sb3(path: Path) -> Source:
    """The transitions of a pickled replay buffer. Stable-Baselines3 need not be installed.

    The pickle is read by `unpickle.load`, which runs nothing that it brings; the whole of it is held in memory.

    Raises:
        DatasetError: another pickle, or a damaged one.
    """
    found = load(path)
    kind = getattr(found, "kind", type(found).__name__)
    if not isinstance(found, Inert) or kind.rpartition(".")[2] not in BUFFERS:
        raise DatasetError(f"{path}: expected a replay buffer of Stable-Baselines3, got {kind}.")
    try:
        return _source(path, vars(found))
    except (KeyError, AttributeError, TypeError, IndexError) as error:
        raise DatasetError(f"{path}: expected a replay buffer of Stable-Baselines3, got one without {error}.") from None
    except ConfigError as error:  # a field that cannot be
        raise DatasetError(f"{path}: {error}") from None


def _source(path: Path, state: Mapping[str, Any]) -> Source:
    size, lanes = (_whole(path, name, state[name], 1) for name in ("buffer_size", "n_envs"))
    pos = _whole(path, "pos", state["pos"], 0, size)
    full = _switch(path, "full", state["full"])
    shared = _switch(path, "optimize_memory_usage", state.get("optimize_memory_usage", False))
    rewards, dones, timeouts = (
        _array(path, name, state[name], (size, lanes)) for name in ("rewards", "dones", "timeouts")
    )
    notes = []
    order = np.concatenate([np.arange(pos, size), np.arange(pos)]) if full else np.arange(pos)
    if shared and full:
        order = order[1:]  # its observation was overwritten by the newest next observation
        notes.append(
            "optimize_memory_usage: the oldest transition of each lane has lost its observation, it is left out"
        )
    if shared:
        notes.append(
            "optimize_memory_usage: the final observations of episodes were overwritten; what stands there instead, "
            "the next episode's first, is given as it is (targets ignore it after a termination)"
        )
    if not _switch(path, "handle_timeout_termination", state.get("handle_timeout_termination", False)):
        notes.append("no time-outs (handle_timeout_termination is off): every end is taken for a termination")
    obs = _tree(path, state["observations"], state.get("observation_space"), (size, lanes), "observations")
    following = obs
    if not shared:
        following = _tree(
            path, state["next_observations"], state.get("observation_space"), (size, lanes), "next_observations"
        )
    actions = _tree(path, state["actions"], state.get("action_space"), (size, lanes), "actions")
    space = state.get("action_space")
    if getattr(space, "kind", "").endswith(".Box"):
        notes.append("actions of a Box are as the agent stored them: Stable-Baselines3's scale them to [-1, 1]")
    schema = Schema(map_tree(_first, obs), map_tree(_first, actions), lanes=lanes)
    rows = rows_at_once(schema)

    def take(tree: Any, index: NDArray[Any], lane: int) -> Any:
        return map_tree(lambda leaf: leaf.array[index, lane], tree)

    def read() -> Iterator[Block]:
        for lane in range(lanes):
            for start, stop in spans(len(order), rows):
                here = order[start:stop]
                there = (here + 1) % size if shared else here
                done = as_flags(dones[here, lane], f"{path}: dones")
                timeout = as_flags(timeouts[here, lane], f"{path}: timeouts")
                yield Block(
                    take(obs, here, lane),
                    take(actions, here, lane),
                    rewards[here, lane].astype(np.float32, copy=False),
                    done & ~timeout,
                    done & timeout,
                    take(following, there, lane),
                    {},
                    lane,
                )

    counts = (len(order),) * lanes
    return Source(schema, len(order) * lanes, lanes, "sb3", path, tuple(notes), read, counts)


class _Leaf:
    """A field and its array [size, lanes, *shape]; no tuple, which would be a tree."""

    def __init__(self, field: Field, array: NDArray[Any]) -> None:
        self.field, self.array = field, array


def _first(leaf: _Leaf) -> Field:
    return leaf.field


def _whole(path: Path, name: str, value: Any, least: int, most: int | None = None) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if not least <= number <= (number if most is None else most):
        wanted = f"at least {least}" if most is None else f"in [{least}, {most}]"
        raise DatasetError(f"{path}: {name}: expected an integer {wanted}, got {value!r:.40}.")
    return number


def _switch(path: Path, name: str, value: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise DatasetError(f"{path}: {name}: expected True or False, got {value!r:.40}.")
    return bool(value)


def _array(path: Path, name: str, array: Any, leading: tuple[int, int]) -> NDArray[Any]:
    if not isinstance(array, np.ndarray) or array.shape[:2] != leading or array.dtype.kind not in "biuf":
        got = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise DatasetError(f"{path}: {name}: expected an array {(*leading, '...')}, got {got}.")
    return native(array)


def _tree(path: Path, value: Any, space: Any, leading: tuple[int, int], name: str) -> Any:
    """Fields and arrays, nested as the buffer's; its dicts are of one level."""
    if isinstance(value, dict):
        spaces = getattr(space, "spaces", {})
        return {key: _tree(path, part, spaces.get(key), leading, f"{name}.{key}") for key, part in value.items()}
    array = _array(path, name, value, leading)
    field = _field(array, space)
    return _Leaf(field, array.reshape(*leading, *field.shape))


def _field(array: NDArray[Any], space: Any) -> Field:
    """What the space says of an array that Stable-Baselines3 has flattened."""
    kind, flat = getattr(space, "kind", "").rpartition(".")[2], array.shape[2:]
    if kind == "Discrete" and flat == (1,):
        start, count = int(getattr(space, "start", 0)), int(space.n)
        whole = array.dtype.kind in "iu"
        return Field(array.dtype, (), start, start + count - 1) if whole else Field(array.dtype, ())
    if kind == "MultiDiscrete" and array.dtype.kind in "iu" and np.shape(space.nvec) == flat:
        least = np.asarray(getattr(space, "start", np.zeros_like(space.nvec)))
        return Field(array.dtype, flat, tuple(least.ravel()), tuple((least + space.nvec - 1).ravel()))
    shape = getattr(space, "_shape", None)
    if kind == "Box" and isinstance(shape, tuple) and np.prod(shape, dtype=int) == np.prod(flat, dtype=int):
        return Field(array.dtype, shape)
    return Field(array.dtype, flat)


def to_sb3(buffer: ReplayBuffer, target: Any) -> tuple[str, ...]:
    """Adds all transitions of a buffer to one of Stable-Baselines3, by its own `add`, oldest first.

    Args:
        buffer: with as many lanes as `target` has environments; its view does not matter. Of lanes of different
            lengths the newest transitions are taken, as many of each.
        target: a `ReplayBuffer` or `DictReplayBuffer` with `optimize_memory_usage=False`, large enough.

    Returns:
        What it cannot hold, in words.

    Raises:
        ConfigError: the two do not go together.
        SchemaError: an observation or action of another shape or dtype than its own.
    """
    schema, lanes = buffer.schema, buffer.lanes
    if schema is None or not len(buffer):
        return ()
    each = [buffer.ids[buffer.ids % lanes == lane] for lane in range(lanes)]
    steps = min(map(len, each))
    ids = np.stack([mine[len(mine) - steps :] for mine in each], axis=1)  # i64[steps, lanes]
    _check_target(buffer, target, steps)
    _check_fields(schema.obs, target.observations, "obs")
    _check_fields(schema.action, target.actions, "action")
    reader = buffer.reader(view=Transitions(), sampler=Uniform(), seed=0)
    both = 0
    for start, stop in spans(steps, max(1, rows_at_once(schema) // lanes)):
        batch = reader.get(ids[start:stop].reshape(-1))
        for step in range(stop - start):
            at = slice(step * lanes, (step + 1) * lanes)
            terminated, truncated = batch.terminated[at], batch.truncated[at]
            both += int(np.count_nonzero(terminated & truncated))
            target.add(
                map_tree(lambda leaf, at=at: leaf[at], batch.obs),
                map_tree(lambda leaf, at=at: leaf[at], batch.next_obs),
                batch.action[at],
                batch.reward[at],
                terminated | truncated,
                [{"TimeLimit.truncated": bool(flag)} for flag in truncated & ~terminated],
            )
    return _lost(schema, both, len(buffer) - ids.size, target)


def _check_target(buffer: ReplayBuffer, target: Any, steps: int) -> None:
    lanes = buffer.lanes
    if target.n_envs != lanes:
        raise ConfigError(
            f"to_sb3: expected a target of n_envs={lanes}, one a lane of the buffer, got {target.n_envs}."
        )
    if target.optimize_memory_usage:
        raise ConfigError("to_sb3: expected optimize_memory_usage=False, got True: it would lose final observations.")
    if target.buffer_size - target.size() < steps:
        raise ConfigError(
            f"to_sb3: expected room for {steps:,} steps of {lanes} environments, got "
            f"{target.buffer_size - target.size():,}. Make it with buffer_size={steps * lanes:,} or more."
        )


def _check_fields(tree: Tree, arrays: Any, name: str) -> None:
    if isinstance(tree, dict) and isinstance(arrays, dict) and set(tree) == set(arrays):
        for key, part in tree.items():
            _check_fields(part, arrays[key], f"{name}.{key}")
        return
    if not isinstance(tree, Field) or isinstance(arrays, dict):
        raise SchemaError(f"{name}: expected what the target holds, got {tree}. Stable-Baselines3 nests dicts once.")
    flat = arrays.shape[2:]
    fits = tree.shape == flat or int(np.prod(tree.shape)) == int(np.prod(flat))
    if not fits or not np.can_cast(tree.itemdtype, arrays.dtype, "safe"):
        raise SchemaError(f"{name}: expected {arrays.dtype} {flat}, which the target holds, got {tree}.")


def _lost(schema: Schema, both: int, older: int, target: Any) -> tuple[str, ...]:
    said = ["ids, priorities and the order of draws stay with the buffer"]
    if older:
        said.append(f"the oldest {older:,} transitions of longer lanes are left out: all lanes are added to at once")
    if both:
        said.append(f"{both:,} steps are terminated and truncated at once: stored as terminated")
    if schema.extras:
        said.append(f"extra fields are left out: {', '.join(schema.extras)}")
    if not target.handle_timeout_termination:
        said.append("handle_timeout_termination is off: truncations are stored as terminations")
    if isinstance(schema.action, Field) and schema.action.itemdtype.kind == "f":
        said.append(
            "actions are stored as they are; Stable-Baselines3's agents expect those of a Box scaled to [-1, 1]"
        )
    return tuple(said)
