"""Experience replay for reinforcement learning.

The memory an off-policy agent learns from: it keeps the newest `capacity` transitions, and minibatches are drawn from
it at random. Importing this package needs NumPy alone.
"""

from relive.early import hush

hush()  # first: what follows takes a moment

# ruff: noqa: E402
from relive.batch import Batch
from relive.buffer import ReplayBuffer
from relive.durable import attach, load
from relive.errors import (
    ConfigError,
    NotEnoughDataError,
    ProtocolError,
    ReplayError,
    SchemaError,
    SnapshotError,
    StaleIdError,
)
from relive.mapped import Mmap
from relive.mixture import Mixture
from relive.samplers import Prioritized, Shuffled, Uniform
from relive.schema import Field, Schema
from relive.shared import SharedMemory
from relive.storage import Memory, Plan, plan
from relive.views import Hindsight, Sequences, Transitions

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "ConfigError",
    "Field",
    "Hindsight",
    "Memory",
    "Mixture",
    "Mmap",
    "NotEnoughDataError",
    "Plan",
    "Prioritized",
    "ProtocolError",
    "ReplayBuffer",
    "ReplayError",
    "Schema",
    "SchemaError",
    "Sequences",
    "SharedMemory",
    "Shuffled",
    "SnapshotError",
    "StaleIdError",
    "Transitions",
    "Uniform",
    "attach",
    "load",
    "plan",
]
