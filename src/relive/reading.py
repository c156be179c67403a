"""Reading a buffer under a view: native arrays in, batches out."""

from __future__ import annotations

import operator
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from relive._core import Core, Reader
from relive.batch import Batch
from relive.errors import ConfigError, NotEnoughDataError, SchemaError, StaleIdError
from relive.fitting import as_array
from relive.schema import FLAG, REWARD, Field, Schema, flatten, leaves, unflatten
from relive.views import Transitions

Output = Literal["numpy", "torch"]


class Reading:
    """One view of one core, and the memory of its batches."""

    def __init__(self, core: Core, schema: Schema, view: Transitions) -> None:
        self._native = Reader(core, view.n, view.gamma, view.stack, view.padding == "zeros")
        self._schema = schema
        flat = isinstance(schema.obs, Field) and isinstance(schema.action, Field)
        tail = ("reward", "terminated", "truncated", "next_obs", "discount", "ids")
        self._names = ("obs", "action", *schema.extras, *tail) if flat else None
        self._checked: set[Any] = set()  # devices that tensors can go to

    def sample(self, n: int, output: Output, device: Any, out: Batch | None) -> Batch:
        """See `ReplayBuffer.sample`."""
        memory = self._memory_of(out, output, device)
        try:
            size = operator.index(n)
            arrays = self._native.sample(size, memory) if size > 0 else ()
        except (TypeError, ValueError, MemoryError) as error:
            raise _bad_size(n) from error
        except IndexError as error:
            raise self._bad_out(error) from error
        if arrays is None:
            raise NotEnoughDataError(f"sample({n}): expected at least 1 transition, the buffer is empty.")
        if not arrays:
            raise _bad_size(n)
        return out or self._batch(arrays, output, device)

    def get(self, ids: ArrayLike, output: Output, device: Any, out: Batch | None) -> Batch:
        """See `ReplayBuffer.get`."""
        wanted = as_array(ids, "ids", "int64 (B,)")
        if wanted.ndim != 1 or (wanted.dtype.kind not in "iu" and wanted.size):
            raise SchemaError(f"ids: expected int64 (B,), got {wanted.dtype} {wanted.shape}.")
        wanted = np.require(wanted, np.int64, ["C", "ALIGNED"])
        try:
            arrays = self._native.get(wanted, self._memory_of(out, output, device))
        except IndexError as error:
            raise self._bad_out(error) from error
        if isinstance(arrays, int):
            raise StaleIdError(
                f"ids: expected live transitions, got {wanted[arrays]} (at [{arrays}]). "
                "It was overwritten, cleared, or never pushed."
            )
        return out or self._batch(arrays, output, device)

    def _batch(self, arrays: tuple[Any, ...], output: Output, device: Any) -> Batch:
        if output == "torch":
            arrays = self._to_torch(arrays, device)
        if self._names is not None:
            return Batch(dict(zip(self._names, arrays)))  # noqa: B905 - strict costs more than the rest of this line
        values = iter(arrays)
        fields = {"obs": unflatten(self._schema.obs, values), "action": unflatten(self._schema.action, values)}
        for name in (*self._schema.extras, "reward", "terminated", "truncated"):
            fields[name] = next(values)
        fields["next_obs"] = unflatten(self._schema.obs, values)
        fields["discount"] = next(values)
        fields["ids"] = next(values)
        return Batch(fields)

    def _memory_of(self, out: Batch | None, output: Output, device: Any) -> tuple[Any, ...] | None:
        """The arrays of a batch to write to, in the native order; None where there is no such batch."""
        if output not in ("numpy", "torch") or (device is not None and output == "numpy"):
            raise ConfigError(
                f"output: expected 'numpy', or 'torch' with or without a device, got {output!r}, {device=}."
            )
        place = None if device is None else str(device)
        if output == "torch" and place not in self._checked:
            from relive.tensors import check, to_torch

            check({leaf.itemdtype for _, leaf in self._fields()}, device)
            self._checked.add(place)
            self._to_torch = to_torch
        if out is None:
            return None
        if not isinstance(out, Batch):
            raise ConfigError(f"out: expected a batch of this buffer, got {type(out).__name__}.")
        if device is not None or (output == "torch" and isinstance(out.ids, np.ndarray)):
            raise ConfigError(
                f"out: expected its own output and device, got output={output!r}, {device=}. Leave them out."
            )
        try:
            arrays = (
                *flatten(self._schema.obs, out.obs, "out.obs"),
                *flatten(self._schema.action, out.action, "out.action"),
                *(getattr(out, name) for name in (*self._schema.extras, "reward", "terminated", "truncated")),
                *flatten(self._schema.obs, out.next_obs, "out.next_obs"),
                *(out.discount, out.ids),
            )
        except (AttributeError, SchemaError) as error:
            raise ConfigError(f"out: expected a batch of this buffer, got another ({error})") from error
        if not isinstance(out.ids, np.ndarray):
            from relive.tensors import to_numpy

            arrays = to_numpy(arrays)
        return arrays

    def _fields(self) -> list[tuple[str, Field]]:
        """The arrays of a batch in the native order, as fields of one transition."""
        schema = self._schema
        return [
            *leaves(schema.obs, "obs"),
            *leaves(schema.action, "action"),
            *schema.extras.items(),
            *(("reward", REWARD), ("terminated", FLAG), ("truncated", FLAG)),
            *leaves(schema.obs, "next_obs"),
            *(("discount", REWARD), ("ids", Field(np.int64))),
        ]

    def _bad_out(self, error: IndexError) -> ConfigError:
        names = [name for name, _ in self._fields()]
        return ConfigError(
            f"out: expected arrays as this buffer returns them for the same batch size, got another "
            f"{names[int(str(error))]}. Pass a batch that was returned."
        )


def _bad_size(n: object) -> ConfigError:
    return ConfigError(f"sample: expected a batch size of at least 1 that fits in memory, got {n!r}.")
