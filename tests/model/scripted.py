"""An environment that plays a script and notes what happened: the truth for tests of writers."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

import relive
from model.reference import Model, Row, View, map_tree

MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]
ENDS = ["terminated", "truncated", "both"]


class Scripted(gymnasium.Env[Any, Any]):
    """Episode e of environment i lasts `lengths[e]` steps and ends by each flag in turn."""

    def __init__(self, index: int, lengths: list[int], form: str = "box", reuse: bool = False) -> None:
        self.index, self.lengths, self.form, self.reuse = index, lengths, form, reuse
        box = spaces.Box(0, 1_000, (3,), np.float32)
        self.observation_space = {
            "box": box,
            "dict": spaces.Dict({"place": box, "step": spaces.Discrete(1_000)}),
            "tuple": spaces.Tuple((box, spaces.Box(0, 255, (2, 2), np.uint8))),
        }[form]
        self.action_space = spaces.Discrete(5)
        self.episode, self.steps = -1, 0
        self.memory = np.zeros(3, np.float32)
        self.notes: list[Row] = []

    def observe(self) -> Any:
        """Where we are, in the form asked for."""
        place = np.array([self.index, self.episode, self.steps], np.float32)
        if self.reuse:
            self.memory[:] = place
            place = self.memory
        if self.form == "dict":
            return {"place": place, "step": np.int64(self.steps)}
        if self.form == "tuple":
            return (place, np.full((2, 2), 10 * self.episode + self.steps, np.uint8))
        return place

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin the next episode."""
        super().reset(seed=seed)
        self.episode, self.steps = self.episode + 1, 0
        return self.observe(), {"reset": self.episode}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Play on and note what happened."""
        obs = map_tree(np.copy, self.observe())
        self.steps += 1
        turn = self.episode % len(self.lengths)
        end = ENDS[(self.episode + self.index) % 3] if self.steps == self.lengths[turn] else ""
        reward = float(self.index + 2 * self.steps + int(action))
        fields = {"terminated": end in ("terminated", "both"), "truncated": end in ("truncated", "both")}
        after = self.observe()
        self.notes.append(
            {"obs": obs, "action": np.int64(action), "reward": reward, "next_obs": map_tree(np.copy, after), **fields}
        )
        return after, reward, *fields.values(), {"note": len(self.notes)}


LENGTHS = [[3, 1, 4], [2, 2, 5], [3, 1, 4]]  # lanes 0 and 2 end together, lane 1 sometimes with them


def play(envs: Any, writer: Any, steps: int, mode: AutoresetMode, seed: int = 0) -> list[list[int]]:
    """Drive a vector environment as its mode asks, and return the ids of every step."""
    rng = np.random.default_rng(seed)
    obs, _ = envs.reset(seed=seed)
    writer.reset(obs)
    ids = []
    for _ in range(steps):
        action = rng.integers(envs.single_action_space.n, size=envs.num_envs)
        obs, reward, terminated, truncated, info = envs.step(action)
        ids.append(writer.step(action, obs, reward, terminated, truncated, info).tolist())
        ended = terminated | truncated
        if mode is AutoresetMode.DISABLED and ended.any():
            obs, _ = envs.reset(options={"reset_mask": ended.copy()})
            writer.reset(obs, mask=ended)
    return ids


def truth(notes: list[list[Row]], capacity: int) -> Model:
    """A model that was told what every environment noted."""
    model = Model(capacity, len(notes))
    for lane, rows in enumerate(notes):
        for row in rows:
            model.push(**row, lane=lane)
    return model


def buffer_for(envs: Any, capacity: int, view: View) -> relive.ReplayBuffer:
    return relive.ReplayBuffer(
        capacity,
        relive.Schema.from_env(envs),
        view=relive.Transitions(view.n, view.gamma, view.stack, view.padding),
        seed=0,
    )
