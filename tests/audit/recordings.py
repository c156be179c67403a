"""Datasets made by loops: right ones, and ones with the mistake of each rule in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

import relive
from relive.interop.source import Block, Source
from relive.schema import Schema
from relive.trees import map_tree

Row = tuple[Any, Any, float, bool, bool, Any]
"""obs, action, reward, terminated, truncated, next_obs."""


def source(schema: Schema, lanes: Sequence[Sequence[Row]], /, cut: int = 1000, **changes: Any) -> Source:
    """The rows of each lane as a dataset, in blocks of `cut` transitions."""

    def read() -> Iterator[Block]:
        longest = max(map(len, lanes), default=0)
        for start in range(0, longest, cut):
            for lane, rows in enumerate(lanes):
                if rows[start : start + cut]:
                    yield block(rows[start : start + cut], lane)

    given = {"format": "npz", "path": Path("data.npz"), "notes": (), "read": read, "lanes": len(lanes)}
    return Source(schema=schema, **{**given, "num_transitions": sum(map(len, lanes)), **changes})


def block(rows: Sequence[Row], lane: int = 0) -> Block:
    """Rows as columns."""
    obs, action, reward, terminated, truncated, following = zip(*rows, strict=True)
    return Block(
        map_tree(lambda *parts: np.stack(parts), *obs),
        map_tree(lambda *parts: np.stack(parts), *action),
        np.array(reward, np.float32),
        np.array(terminated, np.bool_),
        np.array(truncated, np.bool_),
        map_tree(lambda *parts: np.stack(parts), *following),
        lane=lane,
    )


def record(env: gymnasium.Env[Any, Any], steps: int, seed: int = 0) -> list[Row]:
    """A right loop: random actions, true final observations."""
    env.action_space.seed(seed)
    rows: list[Row] = []
    obs, _ = env.reset(seed=seed)
    for _ in range(steps):
        action = env.action_space.sample()
        following, reward, terminated, truncated, _ = env.step(action)
        rows.append((obs, np.asarray(action), float(reward), bool(terminated), bool(truncated), following))
        obs = env.reset()[0] if terminated or truncated else following
    env.close()
    return rows


def vector(name: str, lanes: int, mode: AutoresetMode, **options: Any) -> gymnasium.vector.SyncVectorEnv:
    """Environments side by side."""
    makers = [lambda: gymnasium.make(name, **options)] * lanes
    return gymnasium.vector.SyncVectorEnv(makers, autoreset_mode=mode)


def record_naively(envs: gymnasium.vector.SyncVectorEnv, steps: int, seed: int = 0) -> list[list[Row]]:
    """A loop that stores whatever `envs.step` returns, as if there were no autoreset: the mistake under every mode."""
    lanes: list[list[Row]] = [[] for _ in range(envs.num_envs)]
    envs.action_space.seed(seed)
    obs, _ = envs.reset(seed=seed)
    for _ in range(steps):
        actions = envs.action_space.sample()
        following, reward, terminated, truncated, _ = envs.step(actions)
        for lane, rows in enumerate(lanes):
            row = (obs[lane], actions[lane], float(reward[lane]), bool(terminated[lane]), bool(truncated[lane]))
            rows.append((*row, following[lane].copy()))
        obs = following.copy()
    envs.close()
    return lanes


def schema_of(env: Any) -> Schema:
    """The schema without lanes, as a dataset has it."""
    found = relive.Schema.from_env(env)
    return Schema(found.obs, found.action)


class Rooms(gymnasium.Env[Any, Any]):
    """A small world with dict observations: a frame, a position and a number; ends at either border."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Dict(
            {
                "frame": gymnasium.spaces.Box(0, 255, (8, 8), np.uint8),
                "place": gymnasium.spaces.Box(-9, 9, (2,), np.float32),
                "room": gymnasium.spaces.Discrete(20),
            }
        )
        self.action_space = gymnasium.spaces.Tuple((gymnasium.spaces.Discrete(3), gymnasium.spaces.Box(-1, 1, (1,))))
        self.place = np.zeros(2, np.float32)

    def observe(self) -> Any:
        """A new observation, nobody else's memory."""
        room = int(np.clip(self.place[0] + 10, 0, 19))
        frame = np.full((8, 8), room, np.uint8)
        frame[room % 8] = int(100 + 10 * self.place[1]) % 256
        return {"frame": frame, "place": self.place.copy(), "room": np.int64(room)}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin near the middle."""
        super().reset(seed=seed)
        self.place = self.np_random.normal(0, 0.3, 2).astype(np.float32)
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Move."""
        move = self.np_random.normal(float(action[0]) - 1, 0.5)
        self.place = self.place + np.array([move, float(action[1][0])], np.float32)
        return self.observe(), float(move), bool(abs(self.place[0]) > 5), bool(abs(self.place[1]) > 5), {}


def record_tree(env: gymnasium.Env[Any, Any], steps: int, seed: int = 0) -> list[Row]:
    """As `record`, for actions that are tuples."""
    env.action_space.seed(seed)
    rows: list[Row] = []
    obs, _ = env.reset(seed=seed)
    for _ in range(steps):
        action = env.action_space.sample()
        following, reward, terminated, truncated, _ = env.step(action)
        kept = map_tree(np.asarray, action)
        rows.append((map_tree(np.asarray, obs), kept, reward, terminated, truncated, map_tree(np.asarray, following)))
        obs = env.reset()[0] if terminated or truncated else following
    return rows
