"""What can be seen in each transition alone: shapes, NaN and inf, flags, bounds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relive.audit.report import Check, Count, Finding, Place
from relive.audit.rows import Rows
from relive.errors import SchemaError
from relive.interop.source import Block
from relive.schema import Field, Schema, flatten, leaves

FIXED = {"reward": "fiu", "terminated": "biuf", "truncated": "biuf"}
"""Field that every transition has -> kinds of its dtype."""


class Shapes:
    """Every array has the length, the shape and the kind of dtype that it should have."""

    rule = "shapes"

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._fields = [*leaves(schema.obs, "obs"), *leaves(schema.action, "action"), *leaves(schema.obs, "next_obs")]
        self._fields += schema.extras.items()
        self._complaints: dict[str, tuple[int, Place]] = {}  # of a block: how many blocks, the first

    def admits(self, block: Block, start: int) -> bool:
        """False for a block that cannot be looked at further; what is wrong with it is kept."""
        complaint = self._complaint(block)
        if complaint is not None:
            count, first = self._complaints.get(complaint, (0, Place(block.lane, start)))
            self._complaints[complaint] = count + 1, first
        return complaint is None

    def _complaint(self, block: Block) -> str | None:
        count = len(block.reward) if np.ndim(block.reward) else 0
        for name, kinds in FIXED.items():
            array = getattr(block, name)
            if np.shape(array) != (count,) or np.asarray(array).dtype.kind not in kinds:
                return f"{name}: expected numbers ({count},), got {np.asarray(array).dtype} {np.shape(array)}."
        try:
            values = _values(self._schema, block)
        except SchemaError as error:
            return str(error)
        for (name, field), array in zip(self._fields, values, strict=True):
            known = np.asarray(array)
            if known.shape != (count, *field.shape) or known.dtype.hasobject:
                return f"{name}: expected {field.itemdtype} {(count, *field.shape)}, got {known.dtype} {known.shape}."
            if known.dtype.kind != field.itemdtype.kind:
                return f"{name}: expected {field.itemdtype}, got {known.dtype}."
        return None

    def findings(self) -> Iterator[Finding]:
        """One finding for each thing that is wrong."""
        for complaint, (count, first) in self._complaints.items():
            yield Finding(self.rule, "error", count, first, f"{complaint} In {count:,} blocks, which were passed over.")

    def check(self) -> Check:
        """What was seen."""
        return Check(self.rule, "every array has the length, shape and kind that the schema says")


def _values(schema: Schema, block: Block) -> list[Any]:
    """The arrays of a block, in the order of `Shapes`."""
    if set(block.extras) != set(schema.extras):
        raise SchemaError(f"extras: expected {sorted(schema.extras)}, got {sorted(block.extras)}.")
    return [
        *flatten(schema.obs, block.obs, "obs"),
        *flatten(schema.action, block.action, "action"),
        *flatten(schema.obs, block.next_obs, "next_obs"),
        *(block.extras[name] for name in schema.extras),
    ]


class Values:
    """NaN and inf, values out of bounds, flags that are no booleans. Extra fields are their owner's business."""

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._fields = [*leaves(schema.obs, "obs"), *leaves(schema.action, "action"), *leaves(schema.obs, "next_obs")]
        self._nan: dict[str, Count] = {}
        self._infinite: dict[str, Count] = {}
        self._large = Count()
        self._out: dict[str, Count] = {}
        self._odd: dict[str, Count] = {}

    def see(self, rows: Rows) -> None:
        """Looks at a chunk."""
        for (name, field), array in zip(self._fields, _values(self._schema, rows.block), strict=False):
            if array.dtype.kind in "fc":
                self._finite(name, array, rows)
            if field.low is not None:
                low, high = (np.reshape(bound, field.shape) for bound in field.bounds())
                self._count(self._out, name, (array < low) | (array > high), rows)
        reward = rows.block.reward
        if reward.dtype.kind == "f":
            self._finite("reward", reward, rows)
        with np.errstate(over="ignore"):
            self._large.add(np.isinf(rows.reward.astype(np.float32)) & np.isfinite(rows.reward), rows.lane, rows.start)
        for name in ("terminated", "truncated"):
            flags = getattr(rows.block, name)
            if flags.dtype != np.bool_:
                self._count(self._odd, name, (flags != 0) & (flags != 1), rows)

    def _finite(self, name: str, array: NDArray[Any], rows: Rows) -> None:
        if np.isfinite(array).all():
            return
        self._count(self._nan, name, np.isnan(array), rows)
        self._count(self._infinite, name, np.isinf(array), rows)

    @staticmethod
    def _count(counts: dict[str, Count], name: str, wrong: NDArray[np.bool_], rows: Rows) -> None:
        """Counts values; the place is that of their transition."""
        flat = wrong.reshape(len(rows), -1)
        per_row = flat.any(axis=1)
        if per_row.any():
            count = counts.setdefault(name, Count())
            count.add(per_row, rows.lane, rows.start)
            count.count += int(np.count_nonzero(flat)) - int(np.count_nonzero(per_row))

    def findings(self) -> Iterator[Finding]:
        """What was found, rule by rule."""
        for word, counts in (("NaN", self._nan), ("infinite", self._infinite)):
            for name, count in counts.items():
                words = f"{name}: {_values_are(count.count)} {word}. They spread to every weight that learns from them."
                yield Finding("finite", "error", count.count, count.first, words)
        if self._large.count:
            words = f"reward: {_values_are(self._large.count)} infinite as float32, which rewards are stored in."
            yield Finding("finite", "error", self._large.count, self._large.first, words)
        bounded = {name: field for name, field in self._fields if field.low is not None}
        for name, count in self._out.items():
            words = f"{name}: {_values_are(count.count)} outside {_bounds(bounded[name])}."
            yield Finding("bounds", "error", count.count, count.first, words)
        for name, count in self._odd.items():
            words = f"{name}: {_values_are(count.count)} neither 0 nor 1."
            yield Finding("flags", "error", count.count, count.first, words)

    def checks(self) -> Iterator[Check]:
        """What was looked at."""
        floats = [name for name, field in self._fields if field.itemdtype.kind in "fc" and name[:4] != "next"]
        yield Check("finite", f"no NaN, no inf in {', '.join([*floats, 'reward'])}")
        bounded = [name for name, field in self._fields if field.low is not None and name[:4] != "next"]
        if bounded:
            yield Check("bounds", f"{', '.join(bounded)} within the space")


def _values_are(count: int) -> str:
    return f"{count:,} value{'s are' if count > 1 else ' is'}"


def _bounds(field: Field) -> str:
    if isinstance(field.low, int) and isinstance(field.high, int):
        return f"[{field.low}, {field.high}]"
    return "the bounds of the space"
