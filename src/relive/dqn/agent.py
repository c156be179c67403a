"""The agent of the DQN family."""

from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import Space
from numpy.typing import NDArray

from relive.batch import Batch
from relive.dqn.config import AgentConfig


class Update(NamedTuple):
    """What one update tells. Tensors on the agent's device; reading a number from them waits for the device."""

    loss: torch.Tensor
    """float32 []: the mean loss."""
    abs_td: torch.Tensor
    """float32 [B]: |delta| of each transition."""
    q_mean: torch.Tensor
    """float32 []: mean of Q(s, a) over the batch."""


class DQN:
    """DQN and its options (signatures first; the body lands with the next commit)."""

    def __init__(
        self,
        observation_space: Space[Any],
        action_space: Space[Any],
        config: AgentConfig,
        *,
        seed: int,
        device: str = "cpu",
        stack: int = 1,
    ) -> None: ...

    def act(self, obs: NDArray[Any], epsilon: float) -> NDArray[np.int64]:
        """Actions int64 [B], as the environment numbers them, for observations with a leading axis."""

    def update(self, batch: Batch) -> Update:
        """One gradient step on a torch batch (obs, action, reward, next_obs, discount; weight if it has one)."""

    def q_values(self, obs: NDArray[Any]) -> NDArray[np.float32]:
        """Q float32 [B, A]."""

    def weights(self) -> dict[str, torch.Tensor]:
        """Named tensors of the online network (a copy), for torch.save and load with weights_only=True."""

    def load_weights(self, weights: dict[str, torch.Tensor]) -> None:
        """Take these weights, for the online and the target network."""

    def state_dict(self) -> dict[str, Any]:
        """Everything an exact resume needs; torch.save-able, loadable with weights_only=True."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` bit for bit."""
