"""
The native core of relive: appends, draws and assembles over memory that Python owns.
"""

from collections.abc import Sequence
from typing import Any

import numpy
import numpy.typing


MAX_LANE_CAPACITY: int = 1073741823

def measure(obs: Sequence[tuple[numpy.dtype[Any], list[int], list[int], list[int]]], rest: Sequence[tuple[numpy.dtype[Any], list[int], list[int], list[int]]], lanes: int, lane_capacity: int, stacked: int, history: int) -> dict[str, int]: ...

class Core:
    def __init__(self, memory: Any, obs: Sequence[tuple[numpy.dtype[Any], list[int], list[int], list[int]]], actions: Sequence[tuple[numpy.dtype[Any], list[int], list[int], list[int]]], extras: Sequence[tuple[numpy.dtype[Any], list[int], list[int], list[int]]], lanes: int, lane_capacity: int, stacked: int, history: int, seed: int) -> None: ...

    def append_one(self, lane: int, /, *values: Any) -> int | None: ...

    def append_many(self, lane: int, mask: numpy.typing.NDArray[numpy.bool_] | None, ids: numpy.typing.NDArray[numpy.int64], *values: Any) -> bool: ...

    def clear(self) -> None: ...

    def ids(self) -> numpy.typing.NDArray[numpy.int64]: ...

    @property
    def live(self) -> int: ...

    @property
    def draws(self) -> int: ...

class Reader:
    def __init__(self, core: Core, n: int, gamma: float, stack: int, pad_with_zeros: bool) -> None: ...

    def sample(self, count: int, out: tuple[numpy.typing.NDArray[Any], ...] | None) -> tuple[numpy.typing.NDArray[Any], ...] | None: ...

    def get(self, ids: numpy.typing.NDArray[numpy.int64], out: tuple[numpy.typing.NDArray[Any], ...] | None) -> tuple[numpy.typing.NDArray[Any], ...] | int: ...
