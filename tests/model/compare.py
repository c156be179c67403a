"""Buffer against model: every field of every row, byte for byte."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from model.reference import Model, Row, View, leaves, map_tree

FIELDS = ("obs", "action", "reward", "terminated", "truncated", "next_obs", "discount", "ids")


def assert_rows(batch: Any, expected: Sequence[Row]) -> None:
    """Fail unless row i of the batch is `expected[i]`: same names, dtypes, shapes and bytes."""
    if not expected:
        assert len(batch.ids) == 0
        return
    for name in expected[0]:
        got = leaves(getattr(batch, name))
        want = leaves(map_tree(lambda *rows: np.stack(rows), *(row[name] for row in expected)))
        assert len(got) == len(want), f"{name}: {len(want)} leaves expected, got {len(got)}"
        for place, (g, w) in enumerate(zip(got, want, strict=True)):
            where = f"{name}, leaf {place}"
            assert isinstance(g, np.ndarray), f"{where}: not an array but {type(g)}"
            assert (g.dtype, g.shape) == (w.dtype, w.shape), (
                f"{where}: {w.dtype} {w.shape} expected, got {g.dtype} {g.shape}"
            )
            if g.tobytes() != w.tobytes():
                wrong = next(i for i in range(len(w)) if g[i].tobytes() != w[i].tobytes())
                raise AssertionError(f"{where}, id {expected[wrong]['ids']}: expected\n{w[wrong]}\ngot\n{g[wrong]}")


def assert_same(buffer: Any, model: Model, view: View) -> None:
    """Fail unless the buffer holds what the model holds and reads every live id as the model does."""
    ids = model.ids
    assert len(buffer) == len(ids)
    assert buffer.ids.dtype == np.int64
    assert buffer.ids.tolist() == ids
    if ids:
        asked = [*ids, *reversed(ids)]  # any order, with repetitions
        rows = {identity: model.row(identity, view) for identity in ids}
        assert_rows(buffer.get(np.array(asked, np.int64)), [rows[identity] for identity in asked])


def fingerprint(buffer: Any) -> tuple[Any, ...]:
    """All that can be read from a buffer: two equal fingerprints mean that nothing changed between them."""
    ids = buffer.ids
    held: list[Any] = [len(buffer), ids.tobytes()]
    if len(ids):
        batch = buffer.get(ids)
        names = [*FIELDS, *buffer.schema.extras]
        held += [(name, leaf.dtype.str, leaf.tobytes()) for name in names for leaf in leaves(getattr(batch, name))]
    return tuple(held)
