"""The DQN family: one agent with options. Needs PyTorch and Gymnasium (`pip install "relive[train]"`)."""

from relive.dqn.agent import DQN, Update
from relive.dqn.config import AgentConfig, TrainConfig
from relive.dqn.presets import PRESETS, preset

__all__ = ["DQN", "PRESETS", "AgentConfig", "TrainConfig", "Update", "preset"]
