"""Other libraries, where they are installed: the same transitions pushed, the same batch asked for."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any, Protocol

import numpy as np
import torch

import relive
from workloads import Workload


class Other(Protocol):
    """A replay buffer as the benchmark uses it."""

    def __init__(self, workload: Workload) -> None: ...

    def push(self, obs: Any, action: Any, reward: float, terminated: bool, next_obs: Any) -> object:
        """One transition."""

    def extend(self, obs: Any, action: Any, reward: Any, terminated: Any, truncated: Any, next_obs: Any) -> object:
        """A block of them."""

    def sample(self, size: int) -> object:
        """A batch of tensors."""


class Cpprb:
    """cpprb's ReplayBuffer; its batches are NumPy arrays."""

    def __init__(self, workload: Workload) -> None:
        cpprb = importlib.import_module("cpprb")
        self._buffer = cpprb.ReplayBuffer(workload.capacity, cpprb_fields(workload))

    def push(self, obs: Any, action: Any, reward: float, terminated: bool, next_obs: Any) -> object:
        """One transition."""
        return self._buffer.add(obs=obs, act=action, rew=reward, next_obs=next_obs, done=terminated)

    def extend(self, obs: Any, action: Any, reward: Any, terminated: Any, truncated: Any, next_obs: Any) -> object:
        """A block of them."""
        return self._buffer.add(obs=obs, act=action, rew=reward, next_obs=next_obs, done=terminated)

    def sample(self, size: int) -> object:
        """A batch of tensors."""
        return {name: torch.from_numpy(values) for name, values in self._buffer.sample(size).items()}


class CpprbPrioritized:
    """cpprb's PrioritizedReplayBuffer, the same fields."""

    def __init__(self, workload: Workload) -> None:
        cpprb = importlib.import_module("cpprb")
        assert isinstance(workload.sampler, relive.Prioritized)
        fields = cpprb_fields(workload)
        self._buffer = cpprb.PrioritizedReplayBuffer(
            workload.capacity, fields, alpha=workload.sampler.alpha, eps=workload.sampler.eps
        )

    def extend(self, obs: Any, action: Any, reward: Any, terminated: Any, truncated: Any, next_obs: Any) -> object:
        """A block of transitions."""
        return self._buffer.add(obs=obs, act=action, rew=reward, next_obs=next_obs, done=terminated)

    def sample(self, size: int, beta: float) -> dict[str, Any]:
        """A batch of arrays."""
        batch: dict[str, Any] = self._buffer.sample(size, beta)
        return batch

    def update(self, batch: dict[str, Any], abs_td: Any) -> None:
        """New priorities for the transitions of a batch."""
        self._buffer.update_priorities(batch["indexes"], abs_td)


def cpprb_fields(workload: Workload) -> dict[str, dict[str, Any]]:
    """The transition as cpprb names it."""
    return {
        "obs": {"shape": workload.obs.shape, "dtype": workload.obs.dtype},
        "act": {"shape": workload.action.shape or 1, "dtype": workload.action.dtype},
        "rew": {},
        "next_obs": {"shape": workload.obs.shape, "dtype": workload.obs.dtype},
        "done": {},
    }


class StableBaselines3:
    """Stable-Baselines3's ReplayBuffer; its batches are tensors."""

    def __init__(self, workload: Workload) -> None:
        buffers = importlib.import_module("stable_baselines3.common.buffers")
        spaces = importlib.import_module("gymnasium.spaces")
        obs = spaces.Box(-1e3, 1e3, workload.obs.shape, workload.obs.dtype)
        action = spaces.Box(-1, 1, workload.action.shape) if workload.action.shape else spaces.Discrete(2)
        self._buffer = buffers.ReplayBuffer(
            workload.capacity, obs, action, device="cpu", handle_timeout_termination=True
        )
        self._infos: list[dict[str, Any]] = [{}]

    def push(self, obs: Any, action: Any, reward: float, terminated: bool, next_obs: Any) -> object:
        """One transition; this library takes arrays with an axis of environments."""
        self._buffer.add(
            obs[None], next_obs[None], np.asarray([action]), np.asarray([reward]), np.asarray([terminated]), self._infos
        )
        return None

    def extend(self, obs: Any, action: Any, reward: Any, terminated: Any, truncated: Any, next_obs: Any) -> object:
        """A block of them."""
        for step in zip(obs, action, reward, terminated, next_obs, strict=True):
            self.push(*step)
        return None

    def sample(self, size: int) -> object:
        """A batch of tensors."""
        return self._buffer.sample(size)


_OTHERS: dict[str, tuple[str, type[Other]]] = {
    "cpprb": ("cpprb", Cpprb),
    "SB3": ("stable_baselines3", StableBaselines3),
}


def installed() -> dict[str, type[Other]]:
    """The other libraries that can be imported here."""
    return {name: other for name, (module, other) in _OTHERS.items() if importlib.util.find_spec(module)}


def prioritized_installed() -> dict[str, type[CpprbPrioritized]]:
    """Those with priorities."""
    return {"cpprb": CpprbPrioritized} if importlib.util.find_spec("cpprb") else {}


def version(name: str) -> str:
    """Of another library."""
    return importlib.metadata.version(_OTHERS[name][0].replace("_", "-"))
