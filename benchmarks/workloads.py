"""What is measured: three kinds of transitions, and buffers full of them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import relive
from timing import Run

EPISODE = 500  # steps, about


@dataclass(frozen=True)
class Workload:
    """Transitions of one kind, for a buffer of one capacity."""

    name: str
    obs: relive.Field
    action: relive.Field
    capacity: int
    view: relive.Transitions | relive.Sequences
    block: int = 5_000  # transitions made at once
    sampler: relive.Uniform | relive.Prioritized = field(default_factory=relive.Uniform)

    @property
    def title(self) -> str:
        """What a reader is told."""
        stack = f", stack {self.view.stack}" if self.has_frames else ""
        return f"{self.name}: obs {self.obs}{stack}, action {self.action}, capacity {self.capacity:,}"

    @property
    def has_frames(self) -> bool:
        """True if an observation of a batch is a stack of frames."""
        return self.view.stack > 1

    @property
    def is_plain(self) -> bool:
        """True if other libraries do the same work: single steps of plain observations, drawn uniformly."""
        return self.view == relive.Transitions() and self.sampler == relive.Uniform()

    def buffer(self, capacity: int, lanes: int = 1) -> relive.ReplayBuffer:
        """An empty buffer."""
        schema = relive.Schema(self.obs, self.action)
        return relive.ReplayBuffer(capacity, schema, lanes=lanes, view=self.view, sampler=self.sampler, seed=0)

    def arrays(self, count: int, seed: int = 0) -> tuple[Any, ...]:
        """One lane in order of time: obs [count + 1, ...], action, float32 reward, terminated, truncated."""
        rng = np.random.default_rng(seed)
        obs = rng.integers(0, 256, (count + 1, *self.obs.shape)).astype(self.obs.dtype)
        action = rng.integers(0, 2, (count, *self.action.shape)).astype(self.action.dtype)
        terminated = np.zeros(count, np.bool_)
        terminated[EPISODE - 1 :: EPISODE] = True
        truncated = np.zeros(count, np.bool_)
        truncated[-1] = True  # the next block is another episode
        return obs, action, rng.random(count).astype(np.float32), terminated, truncated

    def outputs(self, count: int, frames: int | None = None) -> list[Any]:
        """Fresh memory for a batch: obs, action, reward, terminated, truncated, next_obs, discount, ids.

        With priorities also the weight. Sequences have all_obs in place of obs, None for next_obs and weight, and mask
        and loss_mask.
        """
        if isinstance(self.view, relive.Sequences):
            return self._sequence_outputs(count, self.view.length)
        stack = (frames or self.view.stack,) if self.has_frames else ()
        shape = (count, *stack, *self.obs.shape)
        return [
            np.empty(shape, self.obs.dtype),
            np.empty((count, *self.action.shape), self.action.dtype),
            np.empty(count, np.float32),
            np.empty(count, np.bool_),
            np.empty(count, np.bool_),
            np.empty(shape, self.obs.dtype),
            np.empty(count, np.float32),
            np.empty(count, np.int64),
            *([np.empty(count, np.float32)] if isinstance(self.sampler, relive.Prioritized) else []),
        ]

    def _sequence_outputs(self, count: int, length: int) -> list[Any]:
        return [
            np.empty((count, length + 1, *self.obs.shape), self.obs.dtype),
            np.empty((count, length, *self.action.shape), self.action.dtype),
            np.empty((count, length), np.float32),
            np.empty((count, length), np.bool_),
            np.empty((count, length), np.bool_),
            None,
            np.empty((count, length), np.float32),
            np.empty(count, np.int64),
            None,
            np.empty((count, length), np.bool_),
            np.empty((count, length), np.bool_),
        ]


W1 = Workload("W1", relive.Field("float32", (4,)), relive.Field("int64"), 1_000_000, relive.Transitions())
W1_THREE_STEPS = Workload("W1 n=3", W1.obs, W1.action, W1.capacity, relive.Transitions(n=3))
W2 = Workload("W2", relive.Field("float32", (17,)), relive.Field("float32", (6,)), 1_000_000, relive.Transitions())
W3 = Workload("W3", relive.Field("uint8", (84, 84)), W1.action, 100_000, relive.Transitions(stack=4), block=1_000)
WORKLOADS = (W1, W1_THREE_STEPS, W2, W3)
PRIORITIZED = tuple(
    Workload("W1 prioritized", W1.obs, W1.action, capacity, W1.view, sampler=relive.Prioritized())
    for capacity in (1_000_000, 10_000_000)
)
SEQUENCES = Workload(
    "W2 sequences", W2.obs, W2.action, W2.capacity, relive.Sequences(80, burn_in=40, stride=40)
)  # the floor knows these numbers, and EPISODE


def fill(buffers: list[Any], workload: Workload, capacity: int) -> None:
    """Pushes 1.2 times the capacity into each: full, wrapped, with ended episodes throughout."""
    obs, action, reward, terminated, truncated = workload.arrays(min(workload.block, capacity))
    for _ in range(int(1.2 * capacity) // len(reward)):
        for buffer in buffers:
            if isinstance(buffer, relive.ReplayBuffer):
                buffer.extend(obs[:-1], action, reward, terminated, obs[1:], truncated=truncated)
            else:
                buffer.extend(obs[:-1], action, reward, terminated, truncated, obs[1:])


def fill_goals(buffer: relive.ReplayBuffer, capacity: int, episode: int = 50) -> None:
    """Pushes 1.2 times the capacity of a task with goals: points that wander, cut at the end of an episode."""
    rng, block = np.random.default_rng(0), 100 * episode
    truncated = np.zeros(block, np.bool_)
    truncated[episode - 1 :: episode] = True
    for _ in range(int(1.2 * capacity) // block):
        # One observation more than steps in an episode: the last one is the final next_obs.
        shapes = {"observation": 10, "achieved_goal": 3, "desired_goal": 3}
        obs = {name: rng.random((100, episode + 1, size)).astype(np.float32) for name, size in shapes.items()}
        obs["desired_goal"][:] = obs["desired_goal"][:, :1]
        before = {name: values[:, :-1].reshape(block, -1) for name, values in obs.items()}
        after = {name: values[:, 1:].reshape(block, -1) for name, values in obs.items()}
        action = rng.random((block, 4)).astype(np.float32)
        buffer.extend(before, action, np.full(block, -1.0), np.zeros(block, np.bool_), after, truncated=truncated)


def steps(workload: Workload) -> Iterator[tuple[Any, ...]]:
    """What an environment gives, again and again: obs, action, reward, terminated, next_obs."""
    obs, action, reward, terminated, _ = workload.arrays(512)
    obs[-1] = obs[0]
    actions = action.tolist() if action.ndim == 1 else list(action)  # Python's own numbers
    return itertools.cycle(list(zip(obs[:-1], actions, reward.tolist(), terminated.tolist(), obs[1:], strict=True)))


def lane_steps(workload: Workload, lanes: int) -> Iterator[tuple[Any, ...]]:
    """What a vector environment gives: the same with an axis of lanes, float64 rewards, and truncated at the end."""
    several = [workload.arrays(64, seed=lane) for lane in range(lanes)]
    obs, action, reward, terminated, _ = (np.stack(values, 1) for values in zip(*several, strict=True))
    obs[-1] = obs[0]
    none = np.zeros(lanes, np.bool_)
    return itertools.cycle(
        list(zip(obs[:-1], action, reward.astype(np.float64), terminated, obs[1:], itertools.repeat(none)))
    )


def pushes(push: Callable[..., object], stream: Iterator[tuple[Any, ...]]) -> Run:
    """A run that pushes what comes next in the stream."""

    def run(times: int) -> None:
        for step in itertools.islice(stream, times):
            push(*step)

    return run


def resident_fill(episode: int) -> dict[str, float]:
    """Resident bytes a transition of the frame workload, measured while it is filled twice over. For a fresh process.

    Args:
        episode: length of an episode on average; they vary by half of it.
    """
    rng = np.random.default_rng(0)
    obs, action, reward, terminated, truncated = W3.arrays(2 * episode)
    terminated[:] = truncated[:] = False
    ends = np.ones(1, np.bool_)
    buffer = W3.buffer(W3.capacity)
    before, pushed, episodes = _resident_bytes(), 0, 0
    while pushed < 2 * W3.capacity:
        length = int(rng.integers(episode // 2, episode * 3 // 2 + 1))
        first = int(rng.integers(0, 2 * episode - length + 1))
        rows = slice(first, first + length)
        flags = np.concatenate([terminated[: length - 1], ends])
        buffer.extend(obs[rows], action[rows], reward[rows], flags, obs[first + 1 : first + length + 1])
        pushed, episodes = pushed + length, episodes + 1
    per_transition = (_resident_bytes() - before) / W3.capacity
    frame = float(np.prod(W3.obs.shape))
    planned = relive.plan(relive.Schema(W3.obs, W3.action), W3.capacity, W3.view).bytes(W3.capacity // episode)
    return {
        "episode": episode,
        "bytes": per_transition,
        "planned_bytes": planned / W3.capacity,
        "frames": per_transition / frame,
    }


def _resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
