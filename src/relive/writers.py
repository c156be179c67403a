"""Gymnasium's environment protocol -> transitions. Nothing else knows about resets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from relive.checks import integer
from relive.errors import ConfigError, ProtocolError, SchemaError
from relive.fitting import as_array, conform
from relive.schema import FLAG, Schema, flatten, leaves, unflatten

if TYPE_CHECKING:
    from relive.buffer import ReplayBuffer


class Writer:
    """Stores what `envs.step` returns, one lane an environment, and no ghost transition.

    The autoreset mode is read from `envs.metadata`:

    - NEXT_STEP: the step after an end only resets; it is not stored.
    - SAME_STEP: the step that ends an episode returns the next one's first observation; the true final one
      is taken from `info["final_obs"]`.
    - DISABLED (and a single environment): the caller resets and says so, `writer.reset(obs, mask)`.

    Observations are copied: environments may reuse their arrays.
    """

    def __init__(self, buffer: ReplayBuffer, envs: Any, first_lane: int | None = None) -> None:
        if not callable(getattr(envs, "step", None)):
            raise ConfigError(f"writer: expected a Gymnasium environment or vector environment, got {envs!r}.")
        self._is_vector = hasattr(envs, "num_envs")
        self._num_envs = envs.num_envs if self._is_vector else 1
        self._lanes = _lanes_of(self._num_envs, buffer.lanes, first_lane)
        assert buffer.schema is not None
        self._buffer = buffer
        self._schema: Schema = buffer.schema
        self._fields = list(leaves(buffer.schema.obs, "obs"))
        metadata = getattr(envs, "metadata", None)
        known = metadata.get("autoreset_mode") if isinstance(metadata, Mapping) else None
        mode = known if self._is_vector else "DISABLED"
        self._mode = str(getattr(mode, "name", mode)).upper()
        if self._mode not in ("NEXT_STEP", "SAME_STEP", "DISABLED"):
            raise ConfigError(
                f"writer: expected NEXT_STEP, SAME_STEP or DISABLED in envs.metadata['autoreset_mode'], got {mode!r}. "
                "Gymnasium's vector environments say it since version 1.1."
            )
        self._obs: list[NDArray[Any]] | None = None  # what each environment's next action is based on
        self._ended = np.zeros(self._num_envs, np.bool_)
        self._begins = np.zeros(self._num_envs, np.bool_)

    @property
    def begins(self) -> NDArray[np.bool_]:
        """Whether the observation in hand, which the next action is based on, is the first of an episode.

        A bool [num_envs], [1] for a single environment; a copy. Where it is True a recurrent state is empty and a stack
        of frames starts anew. Before the first reset: none. After a reset: those that were reset. After a step:

        - NEXT_STEP: those whose step only reset (id -1). Just after an end the observation in hand is the final one
          and the action based on it is ignored: True comes one step later.
        - SAME_STEP: those whose episode just ended; the observation in hand is the next one's first.
        - DISABLED (and a single environment): none.
        """
        return self._begins.copy()

    def reset(self, obs: Any, mask: NDArray[np.bool_] | None = None) -> None:
        """Tells the writer what `envs.reset` returned.

        An episode that goes on in a lane that was reset is over: its newest transition becomes a truncated one.

        Args:
            obs: the observations, leading axis num_envs (none for a single environment).
            mask: bool [num_envs], the environments that were reset; None for all.

        Raises:
            ProtocolError: a mask before the first full reset.
            SchemaError: a mask of another shape or dtype.
        """
        if mask is None:
            self._obs = self._leaves(obs)
            self._end(np.ones(self._num_envs, np.bool_))
            self._ended = np.zeros(self._num_envs, np.bool_)
            self._begins = np.ones(self._num_envs, np.bool_)
            return
        if isinstance(mask, Mapping):
            raise SchemaError(
                f"mask: expected bool ({self._num_envs},), got a dict. Pass the observations alone: "
                "obs, info = envs.reset()."
            )
        if self._obs is None:
            raise ProtocolError("reset: expected a reset of all environments first, got a mask. Leave the mask out.")
        chosen = as_array(mask, "mask", f"bool ({self._num_envs},)")
        if chosen.dtype != np.bool_ or chosen.shape != (self._num_envs,):
            raise SchemaError(f"mask: expected bool ({self._num_envs},), got {chosen.dtype} {chosen.shape}.")
        for leaf, new in zip(self._obs, self._leaves(obs), strict=True):
            leaf[chosen] = new[chosen]
        self._end(chosen)
        self._ended = self._ended & ~chosen
        self._begins = self._begins | chosen

    def step(
        self,
        action: Any,
        obs: Any,
        reward: Any,
        terminated: Any,
        truncated: Any,
        info: Mapping[str, Any],
        **extras: Any,
    ) -> Any:
        """Stores one step: the actions taken and what `envs.step(action)` returned.

        Args:
            action: the actions given to `envs.step`, leading axis num_envs (none for a single environment).
            obs: the observations it returned.
            reward: the rewards.
            terminated: bool.
            truncated: bool.
            info: read for the final observations under SAME_STEP.
            **extras: the extra fields of the schema, as in `ReplayBuffer.push`.

        Returns:
            int64 [num_envs]: ids of the stored transitions, -1 where an environment only reset. An int for a single
            environment.

        Raises:
            ProtocolError: no reset yet, an environment that ended was not reset, or no final observation in `info`.
            SchemaError: a value does not fit the schema; then nothing is stored.
        """
        if self._obs is None:
            raise ProtocolError("step: expected writer.reset(obs) first. Call it with what envs.reset() returned.")
        if self._mode == "DISABLED" and self._ended.any():
            ended = np.flatnonzero(self._ended).tolist()
            raise ProtocolError(
                f"step: expected environments {ended} to be reset, their episodes ended. Reset them and tell the "
                "writer: writer.reset(obs, mask)."
            )
        arrived = self._leaves(obs)
        reward = self._lead(reward, "reward")
        terminated, truncated = self._flags(terminated, "terminated"), self._flags(truncated, "truncated")
        ended = terminated | truncated
        following = self._with_finals(arrived, ended, info) if self._mode == "SAME_STEP" and ended.any() else arrived
        resets = self._ended if self._mode == "NEXT_STEP" and self._ended.any() else None
        ids = self._buffer._step(
            self._lanes,
            unflatten(self._schema.obs, iter(self._obs)),
            unflatten(
                self._schema.action,
                (self._lead(value, "action") for value in flatten(self._schema.action, action, "action")),
            ),
            reward,
            terminated,
            unflatten(self._schema.obs, iter(following)),
            truncated=truncated,
            mask=None if resets is None else ~resets,
            **{name: self._lead(value, name) for name, value in extras.items()},
        )
        self._obs = arrived
        if self._mode == "SAME_STEP":
            self._begins = ended
        else:
            self._begins = np.zeros(self._num_envs, np.bool_) if resets is None else resets
            self._ended = ended if resets is None else ended & ~resets
        return ids if self._is_vector else int(ids[0])

    def _end(self, chosen: NDArray[np.bool_]) -> None:
        """Truncates the episodes that go on in these environments' lanes."""
        mask = np.zeros(self._buffer.lanes, np.bool_)
        mask[self._lanes.start : self._lanes.stop] = chosen
        self._buffer.end_episodes(mask)

    def _lead(self, value: Any, name: str) -> NDArray[Any]:
        """The value with a leading axis, which those of a single environment lack."""
        array = as_array(value, name, "an array")
        return array if self._is_vector else array[None]

    def _flags(self, value: Any, name: str) -> NDArray[np.bool_]:
        flags = self._lead(value, name)
        plain = flags.dtype == np.bool_ and flags.shape == (self._num_envs,)
        return flags if plain else conform(flags, FLAG, name, self._num_envs)

    def _leaves(self, obs: Any) -> list[NDArray[Any]]:
        """Copies of the observations, in the schema's dtypes and shapes."""
        copies = []
        for value, (name, field) in zip(flatten(self._schema.obs, obs, "obs"), self._fields, strict=True):
            array = self._lead(value, name)
            if array.dtype != field.dtype or array.shape != (self._num_envs, *field.shape):
                array = conform(array, field, name, self._num_envs)
            copies.append(array.copy())
        return copies

    def _with_finals(
        self, arrived: list[NDArray[Any]], ended: NDArray[np.bool_], info: Mapping[str, Any]
    ) -> list[NDArray[Any]]:
        """The observations that follow the actions: the final ones in place of those of a reset."""
        finals = info.get("final_obs") if isinstance(info, Mapping) else None
        if not isinstance(finals, np.ndarray | list | tuple) or len(finals) != self._num_envs:
            finals = [None] * self._num_envs
        following = [leaf.copy() for leaf in arrived]
        for lane in np.flatnonzero(ended):
            if finals[lane] is None:
                raise ProtocolError(
                    f"step: expected info['final_obs'] for environment {lane}, whose episode ended, got none. "
                    "Pass the info that envs.step returned."
                )
            values = flatten(self._schema.obs, finals[lane], "final_obs")
            for leaf, final, (_, field) in zip(following, values, self._fields, strict=True):
                # Gymnasium casts the floats of all other observations to those of the space, but not these.
                leaf[lane] = conform(final, field, f"final_obs (environment {lane})", lossy=field.itemdtype.kind == "f")
        return following


def _lanes_of(num_envs: int, lanes: int, first_lane: int | None) -> range:
    """The lanes that so many environments write."""
    if first_lane is None:
        if num_envs != lanes:
            raise ConfigError(
                f"writer: expected {lanes} environments, one a lane of the buffer, got {num_envs}. Make the buffer "
                f"with lanes={num_envs} or Schema.from_env(envs), or say which lanes these are by first_lane."
            )
        return range(lanes)
    first = integer("writer", "first_lane", first_lane, 0, lanes - 1)
    if first + num_envs > lanes:
        raise ConfigError(
            f"writer: expected environments for lanes {first} to {lanes - 1}, {lanes - first} at most, got {num_envs}."
        )
    return range(first, first + num_envs)
