"""NumPy arrays as PyTorch tensors, without a copy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from relive.errors import ConfigError

try:
    import torch
except ImportError as error:
    raise ConfigError("output='torch': expected PyTorch, it is not installed. pip install 'relive[train]'.") from error


def check(dtypes: Iterable[np.dtype[Any]], device: Any) -> None:
    """Finds out beforehand whether arrays of these dtypes can become tensors on this device.

    Raises:
        ConfigError: a dtype that PyTorch does not have, or a device that is not there.
    """
    try:
        for dtype in dtypes:
            torch.from_numpy(np.empty(0, dtype))
    except TypeError as error:
        raise ConfigError(f"output='torch': expected dtypes that PyTorch has, {error} Use output='numpy'.") from error
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:  # "not compiled with CUDA" comes as an assertion
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"device: expected one that PyTorch can use here, got {device!r} ({reason}).") from error


def to_torch(arrays: tuple[Any, ...], device: Any = None) -> tuple[Any, ...]:
    """Tensors that share the arrays' memory on the CPU; copies on any other device."""
    tensors = tuple(map(torch.from_numpy, arrays))
    return tensors if device is None else tuple([tensor.to(device, non_blocking=True) for tensor in tensors])


def to_device_pinned(
    device: Any,
) -> Callable[[Sequence[Any]], tuple[list[Any], Callable[[], None]]] | None:
    """How tensors get to a CUDA device beside the computation; None for any other device.

    Returns:
        A function of tensors in the memory of the CPU. It returns their copies, which are still on their way, and what
        to call before they are used, in the thread and on the stream where they will be.

    Raises:
        ConfigError: a device that is not there.
    """
    check((), device)
    if torch.device(device).type != "cuda":
        return None
    # One stream for all batches: the allocator keeps memory apart by stream.
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy(tensors: Sequence[Any]) -> tuple[list[Any], Callable[[], None]]:
        with torch.cuda.stream(stream):
            moved = [tensor.pin_memory().to(stream.device, non_blocking=True) for tensor in tensors]
            arrived = stream.record_event()

        def wait() -> None:
            current = torch.cuda.current_stream(stream.device)
            current.wait_event(arrived)
            for tensor in moved:
                tensor.record_stream(current)  # else its memory would be written to again while kernels still read it

        return moved, wait

    return copy


def to_numpy(tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    """Arrays that share the tensors' memory.

    Raises:
        ConfigError: they lie on another device.
    """
    for tensor in tensors:
        if not isinstance(tensor, torch.Tensor) or tensor.device.type != "cpu":
            where = f"one on {tensor.device}" if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise ConfigError(f"out: expected tensors in the memory of the CPU, got {where}.")
    try:
        return tuple([tensor.numpy() for tensor in tensors])
    except (AttributeError, RuntimeError, TypeError) as error:
        raise ConfigError(f"out: expected the tensors of a batch, got others ({error}).") from error
