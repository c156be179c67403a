"""Learning from data: a dataset read and held against the environment, before the agent acts and beside it."""

import hashlib
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import relive
from relive.dqn import TrainConfig
from relive.errors import ConfigError, SchemaError
from relive.reading import Reader
from relive.schema import leaves
from relive.views import View

_CHUNK = 4096
"""Transitions looked at in one go."""


class Dataset:
    """What a run learns from that others recorded, and how far its draws are.

    A checkpoint does not hold the dataset, which nobody writes to: only what tells it from others, and the draws.

    Args:
        config: of the run; `offline` is the path.
        online: the buffer for the environment's own transitions: its schema and view are what the dataset must fit.
        kept: `state_dict()` of a checkpoint to go on from; None to begin.

    Raises:
        ConfigError: no dataset lies there, an empty one, a pickle, or other contents than those of the checkpoint.
        SchemaError: observations or actions that are not those of the environment, or values that are not finite.

    Cost: all of it in memory; reads it once from the disk and once from memory.
    """

    def __init__(self, config: TrainConfig, online: relive.ReplayBuffer, kept: Mapping[str, Any] | None = None) -> None:
        if kept is not None:
            refuse_missing(config)
        assert online.schema is not None
        where = f"{config.offline}, against {config.env}"
        data = _read(config, online.view)
        _check_fields(data, online.schema, where)
        digest = _look_through(data, online.schema, where, digest=config.checkpoint_every is not None)
        self._contents = {"transitions": len(data), "sha256": digest}
        # Neither the draws of the online buffer nor another run's: a stream of its own.
        seed = int(np.random.SeedSequence([config.seed, 1]).generate_state(1, np.uint64)[0])
        self._passes = data.reader(sampler=relive.Shuffled(), seed=seed)
        share, self._mixture = config.offline_share, None
        if config.online and share > 0:
            self._mixture = relive.Mixture([(self._passes, share), (online, 1.0 - share)], seed=config.seed)
        self._online = online
        if kept is not None:
            self._go_on(config, kept)

    @property
    def alone(self) -> Reader:
        """The dataset in passes: each transition once before any twice."""
        return self._passes

    @property
    def beside(self) -> relive.ReplayBuffer | relive.Mixture:
        """What an agent that acts learns from: its own transitions, and its share of the dataset's.

        Paper: Ball et al. 2023 (arXiv:2302.02948), section 4.1, for the share of a half.
        """
        return self._online if self._mixture is None else self._mixture

    def state_dict(self) -> dict[str, Any]:
        """What tells the dataset from others, and how far the draws are, as plain values."""
        mixed = 0 if self._mixture is None else self._mixture.draws
        return {**self._contents, "passes": self._passes.position(), "mixed": mixed}

    def _go_on(self, config: TrainConfig, kept: Mapping[str, Any]) -> None:
        if any(kept[name] != value for name, value in self._contents.items()):
            raise ConfigError(
                f"{_where(config)}: expected the {kept['transitions']:,} transitions that the run began with, got "
                f"{self._contents['transitions']:,} with other contents. Put them back: a run from other data is "
                "another run."
            )
        self._passes.go_on(kept["passes"])
        if self._mixture is not None:
            self._mixture.go_on(kept["mixed"])


def _where(config: TrainConfig) -> str:
    """The path of the dataset as it was given, and what it is relative to."""
    assert config.offline is not None
    return config.offline if Path(config.offline).is_absolute() else f"{config.offline} (in {Path.cwd()})"


def refuse_missing(config: TrainConfig) -> None:
    """Refuse to go on without the dataset of a run that has one.

    Raises:
        ConfigError: it is gone.
    """
    path = Path(config.offline or "")
    if config.offline is not None and not path.exists():
        raise ConfigError(
            f"{_where(config)}: expected the dataset that the run began with, which no checkpoint holds, got nothing "
            f"there. Put it back{'' if path.is_absolute() else ', or resume where the run was begun'}."
        )


def _read(config: TrainConfig, view: View) -> relive.ReplayBuffer:
    """The dataset of a run as a buffer in memory."""
    from relive.interop import read
    from relive.interop.files import detect

    assert config.offline is not None
    path = Path(config.offline)
    if path.is_file() and detect(path) == "sb3":
        name = shlex.quote(config.offline)
        raise ConfigError(
            f"{path}: expected a format without code, got a pickle. If you know where it comes from, convert it first: "
            f"relive convert {name} {shlex.quote(str(path.with_suffix('.npz')))} --trust-pickle"
        )
    data: relive.ReplayBuffer = read(path, view=view, seed=0)  # of no use: a reader draws
    if len(data) == 0:
        raise ConfigError(f"{config.offline}: expected transitions to learn from, got none.")
    return data


def _look_through(data: relive.ReplayBuffer, schema: relive.Schema, where: str, *, digest: bool) -> str | None:
    """Refuse values that no agent can learn from; a SHA-256 of every field of every transition, if asked for."""
    ids, hashed = data.ids, hashlib.sha256()
    plain = data.reader(view=relive.Transitions(), seed=0)  # as they were recorded, whatever the view
    for begin in range(0, len(ids), _CHUNK):
        batch = plain.get(ids[begin : begin + _CHUNK])
        _check_values(batch, schema, data.lanes, where)
        if digest:
            for name, values in vars(batch).items():
                hashed.update(f"{name} {values.dtype} {values.shape}".encode())
                hashed.update(np.ascontiguousarray(values).data)
    return hashed.hexdigest() if digest else None


def _check_fields(data: relive.ReplayBuffer, schema: relive.Schema, where: str) -> None:
    """Refuse other shapes and dtypes than the environment's."""
    assert data.schema is not None
    for name in ("obs", "action"):
        expected = {leaf: str(field) for leaf, field in leaves(getattr(schema, name), name)}
        got = {leaf: str(field) for leaf, field in leaves(getattr(data.schema, name), name)}
        for leaf in {**expected, **got}:
            if expected.get(leaf) != got.get(leaf):
                raise SchemaError(
                    f"{leaf}: expected {expected.get(leaf, 'none')}, got {got.get(leaf, 'none')} ({where}). "
                    "The dataset is of another environment, or was converted."
                )


def _check_values(batch: relive.Batch, schema: relive.Schema, lanes: int, where: str) -> None:
    """Refuse actions that the environment does not have, and numbers that are none."""
    fields = {"obs": schema.obs, "action": schema.action, "reward": relive.Field(np.float32), "next_obs": schema.obs}
    for name, field in fields.items():
        values = getattr(batch, name)
        assert isinstance(field, relive.Field)  # the agent refused all else
        if field.itemdtype.kind == "f":
            wrong, expected = ~np.isfinite(values), "finite numbers"
        elif field.low is not None:
            wrong, expected = (values < field.low) | (values > field.high), f"{field.low} to {field.high}"
        else:
            continue
        if wrong.any():
            at = int(np.argmax(wrong.reshape(len(wrong), -1).any(1)))
            step, lane = divmod(int(batch.ids[at]), lanes)
            place = f"{step} of lane {lane}" if lanes > 1 else f"{step}"
            raise SchemaError(
                f"{name}: expected {expected}, got {values[at]} (transition {place} of {where}). "
                "Look with relive check."
            )
