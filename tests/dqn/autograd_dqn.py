"""The agent as anyone would write it in PyTorch: autograd and torch.optim. What `relive.dqn` must equal."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor
from torch.nn import functional as F

from relive.dqn import AgentConfig

STRIDES = {"nature": (4, 2, 1), "minatar": (1,), "mlp": ()}


@dataclass
class FakeBatch:
    """A batch as the buffer gives it, with chosen values."""

    obs: Tensor
    action: Tensor
    reward: Tensor
    next_obs: Tensor
    discount: Tensor


@dataclass
class WeightedBatch(FakeBatch):
    """The same with importance weights."""

    weight: Tensor


def random_batch(
    generator: torch.Generator, size: int, features: int, actions: int, weighted: bool = False
) -> FakeBatch:
    """TD errors on both sides of Huber's knee, terminations, weights if asked for."""
    fields: dict[str, Any] = {
        "obs": torch.randn(size, features, generator=generator),
        "action": torch.randint(0, actions, (size,), generator=generator),
        "reward": 2 * torch.randn(size, generator=generator),
        "next_obs": torch.randn(size, features, generator=generator),
        "discount": 0.9 * (torch.rand(size, generator=generator) > 0.3),
    }
    if weighted:
        return WeightedBatch(**fields, weight=torch.rand(size, generator=generator))
    return FakeBatch(**fields)


def q_values(named: Mapping[str, Tensor], x: Tensor, network: str = "mlp") -> Tensor:
    """Q [B, A] of parameters by name, for inputs that are ready: [B, features] or [B, C, H, W]."""
    for i, stride in enumerate(STRIDES[network]):
        x = F.relu(F.conv2d(x, named[f"conv{i}.weight"], named[f"conv{i}.bias"], stride=stride))
    x = x.flatten(1)
    for i in range(sum(name.startswith("hidden") for name in named) // 2):
        x = F.relu(x @ named[f"hidden{i}.weight"] + named[f"hidden{i}.bias"])
    if "q.weight" in named:
        return x @ named["q.weight"] + named["q.bias"]
    half = x.shape[1] // 2
    value = x[:, :half] @ named["value.weight"] + named["value.bias"]
    advantage = x[:, half:] @ named["advantage.weight"] + named["advantage.bias"]
    return value + advantage - advantage.mean(dim=1, keepdim=True)


class ReferenceDQN:
    """Mnih et al. 2015 with the options of `AgentConfig`, on an MLP, from the given weights."""

    def __init__(self, weights: Mapping[str, Tensor], config: AgentConfig) -> None:
        self.config = config
        self.online = {name: value.clone().requires_grad_() for name, value in weights.items()}
        self.target = {name: value.clone() for name, value in weights.items()}
        self.optimizer = torch.optim.Adam(self.online.values(), lr=config.learning_rate, eps=config.adam_eps)
        self.updates = 0

    def update(self, batch: FakeBatch) -> tuple[float, Tensor]:
        """One step; the loss and the TD errors before it."""
        config = self.config
        with torch.no_grad():
            next_q = q_values(self.target, batch.next_obs)
            chooser = q_values(self.online, batch.next_obs) if config.double else next_q
            target = batch.reward + batch.discount * next_q[torch.arange(len(next_q)), chooser.argmax(1)]
        values = q_values(self.online, batch.obs)
        taken = values[torch.arange(len(target)), batch.action]
        if config.loss == "huber":
            losses = F.huber_loss(taken, target, reduction="none", delta=1.0)
        else:
            losses = F.mse_loss(taken, target, reduction="none") / 2
        if config.cql_alpha:  # Kumar et al. 2020, equation 4: cross entropy of the data's actions, Q as logits
            losses = losses + config.cql_alpha * F.cross_entropy(values, batch.action, reduction="none")
        loss = (losses * getattr(batch, "weight", 1.0)).mean()
        self.optimizer.zero_grad()
        loss.backward()
        if config.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.online.values(), config.max_grad_norm)
        self.optimizer.step()
        self.updates += 1
        with torch.no_grad():
            for name, value in self.online.items():
                if config.target == "soft":
                    self.target[name] += config.tau * (value - self.target[name])
                elif self.updates % config.target_every == 0:
                    self.target[name] = value.detach().clone()
        return loss.item(), (taken - target).detach()


def vector_space(features: int = 5) -> Box:
    """Unbounded float32 vectors."""
    return Box(-np.inf, np.inf, (features,), np.float32)


def actions(n: int = 3, start: int = 0) -> Discrete:
    """N actions, counted from start."""
    return Discrete(n, start=start)
