"""Learning from data: a dataset read and held against the environment, before the agent acts and beside it."""

import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import relive
from relive.dqn import TrainConfig
from relive.errors import ConfigError, SchemaError
from relive.schema import leaves

_CHUNK = 4096
"""Transitions looked at in one go."""


def read_dataset(config: TrainConfig, online: relive.ReplayBuffer) -> relive.ReplayBuffer:
    """The dataset of a run as a buffer that nobody pushes to, drawn in passes: each transition once before any twice.

    Args:
        config: of the run; `offline` is the path.
        online: the buffer for the environment's own transitions: its schema and view are what the dataset must fit.

    Returns:
        ReplayBuffer: all of it, in memory.

    Raises:
        ConfigError: no dataset lies there, an empty one, or a pickle.
        SchemaError: observations or actions that are not those of the environment, or values that are not finite.

    Cost: reads the dataset once from the disk and once from memory.
    """
    from relive.interop import read
    from relive.interop.files import detect

    assert config.offline is not None
    assert online.schema is not None
    path = Path(config.offline)
    if path.is_file() and detect(path) == "sb3":
        name = shlex.quote(config.offline)
        raise ConfigError(
            f"{path}: expected a format without code, got a pickle. If you know where it comes from, convert it first: "
            f"relive convert {name} {shlex.quote(str(path.with_suffix('.npz')))} --trust-pickle"
        )
    # Neither the draws of the online buffer nor another run's: a stream of its own.
    seed = int(np.random.SeedSequence([config.seed, 1]).generate_state(1, np.uint64)[0])
    data: relive.ReplayBuffer = read(path, view=online.view, sampler=relive.Shuffled(), seed=seed)
    if len(data) == 0:
        raise ConfigError(f"{config.offline}: expected transitions to learn from, got none.")
    where = f"{config.offline}, against {config.env}"
    _check_fields(data, online.schema, where)
    _check_values(data, online.schema, where)
    return data


def beside(
    data: relive.ReplayBuffer | None, online: relive.ReplayBuffer, config: TrainConfig
) -> relive.ReplayBuffer | relive.Mixture:
    """What an agent that acts learns from: its own transitions, and its share of the dataset's.

    Paper: Ball et al. 2023 (arXiv:2302.02948), section 4.1, for the share of a half.
    """
    if data is None or not config.online or config.offline_share == 0:
        return online
    share = config.offline_share
    return relive.Mixture([(data, share), (online, 1.0 - share)], seed=config.seed)


def _chunks(data: relive.ReplayBuffer) -> Iterator[relive.Batch]:
    """All transitions as they were recorded, whatever the view."""
    ids = data.ids
    plain = data.reader(view=relive.Transitions(), sampler=relive.Uniform(), seed=0)
    for begin in range(0, len(ids), _CHUNK):
        yield plain.get(ids[begin : begin + _CHUNK])


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


def _check_values(data: relive.ReplayBuffer, schema: relive.Schema, where: str) -> None:
    """Refuse actions that the environment does not have, and numbers that are none."""
    fields = {"obs": schema.obs, "action": schema.action, "reward": relive.Field(np.float32), "next_obs": schema.obs}
    for batch in _chunks(data):
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
                step, lane = divmod(int(batch.ids[at]), data.lanes)
                place = f"{step} of lane {lane}" if data.lanes > 1 else f"{step}"
                raise SchemaError(
                    f"{name}: expected {expected}, got {values[at]} (transition {place} of {where}). "
                    "Look with relive check."
                )
