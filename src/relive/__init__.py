"""Experience replay for reinforcement learning."""

from relive.errors import (
    ConfigError,
    NotEnoughDataError,
    ProtocolError,
    ReplayError,
    SchemaError,
    StaleIdError,
)

__all__ = ["ConfigError", "NotEnoughDataError", "ProtocolError", "ReplayError", "SchemaError", "StaleIdError"]
