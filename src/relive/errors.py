"""What can go wrong, by name.

Every error says *subject: expected X, got Y (where). Consequence or remedy.* Each is a `ReplayError` and also the
built-in a caller would expect. An error changes nothing: the call that raised it left the buffer as it was.
"""


class ReplayError(Exception):
    """Any error of this library."""


class SchemaError(ReplayError, ValueError):
    """Data that does not fit the schema: a name, shape, dtype or value."""


class ConfigError(ReplayError, ValueError):
    """A setting, or a combination of settings, that makes no sense."""


class NotEnoughDataError(ReplayError, RuntimeError):
    """There is nothing yet that could be sampled."""


class StaleIdError(ReplayError, IndexError):
    """An id whose transition was overwritten, cleared, or never pushed."""


class SnapshotError(ReplayError, OSError):
    """A snapshot or a buffer's file that is damaged, incomplete, in use, or not what it should be; says which file."""


class ProtocolError(ReplayError, RuntimeError):
    """Calls in an order that the environment protocol does not allow."""


class DatasetError(ReplayError, ValueError):
    """A file of transitions that is damaged, or does not hold what its format says; names the file and the key."""


class RateLimitTimeout(ReplayError, TimeoutError):
    """Held by a rate limiter for longer than was said: the other side is too slow, or gone."""


class ShardError(ReplayError, ConnectionError):
    """No shard answers in time, or one that has to: it is dead, being restarted, or cannot be reached."""
