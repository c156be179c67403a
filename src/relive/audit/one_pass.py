"""One pass over a dataset: every check sees every chunk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from relive.audit.continuity import Continuity
from relive.audit.ends import Ends
from relive.audit.episodes import Episodes
from relive.audit.pairs import Pairing
from relive.audit.repeats import Repeats
from relive.audit.report import Check, Finding, Report
from relive.audit.rows import Chunks, Rows, rows_of
from relive.audit.values import Shapes, Values
from relive.errors import DatasetError, ReplayError
from relive.interop.source import Block, Source

RINGS = ("snapshot", "buffer", "sb3")
"""Formats in which a lane's oldest episode may lack its beginning."""

CHECKED_LAST = ("npz",)
"""Formats whose checksums come after the data: of a damaged file nobody knows which blocks were garbage."""


def check(source: Source) -> Report:
    """Looks for what is wrong in a dataset.

    Args:
        source: from `relive.interop.open`, `relive.interop.of_buffer`, or made by hand.

    Returns:
        Report: `passes` is False where there is an error.

    Cost: one pass; about a second for a million small transitions; at most about 200 MB, whatever the size.
    """
    audit = _Audit(source)
    unreadable = None
    try:
        for block in source.blocks():
            audit.take(block)
    except (ReplayError, OSError) as error:
        words = f"reading ended after {audit.taken:,} transitions: {error}"
        unreadable = Finding("reading", "error", 1, None, words)
        if isinstance(error, DatasetError) and source.format in CHECKED_LAST:
            audit = _Audit(source)  # without what it saw
    audit.finish()
    return audit.report(unreadable)


class _Audit:
    """The checks of one dataset."""

    def __init__(self, source: Source) -> None:
        self._source = source
        schema = source.schema
        self._chunks = Chunks(schema)
        self._next: Counter[int] = Counter()  # of the transitions of a lane, the number of the next to be given
        self._seen: Counter[int] = Counter()  # the number of the next to be looked at
        self.taken = 0
        self._pairing = Pairing()
        self._shapes, self._values = Shapes(schema), Values(schema)
        self._continuity, self._ends, self._repeats = Continuity(), Ends(schema), Repeats(schema)
        self._episodes = Episodes(ring=source.format in RINGS)

    def take(self, block: Block) -> None:
        """Takes a block of the dataset in."""
        count = len(block.reward) if np.ndim(block.reward) else 0
        start = self._next[block.lane]
        self._next[block.lane] += count
        self.taken += count
        if self._shapes.admits(block, start):
            for chunk in self._chunks.add(block) if count else ():
                self._see(chunk)
            return
        for chunk in self._chunks.flush():
            self._see(chunk)
        self._pairing.interrupt(block.lane)
        self._seen[block.lane] = start + count
        self._episodes.interrupt(block.lane, start + count)

    def finish(self) -> None:
        """Looks at what was held back."""
        for chunk in self._chunks.flush():
            self._see(chunk)

    def _see(self, block: Block) -> None:
        rows: Rows = rows_of(self._source.schema, block.lane, self._seen[block.lane], block)
        self._seen[block.lane] += len(rows)
        pairs = self._pairing.see(rows)
        self._values.see(rows)
        self._continuity.see(rows, pairs)
        self._ends.see(rows, pairs)
        self._episodes.see(rows, pairs)
        self._repeats.see(rows)

    def report(self, unreadable: Finding | None) -> Report:
        """What all of them found; checks that saw nothing are left out."""
        source, taken = self._source, self.taken
        findings = [] if unreadable is None else [unreadable]
        if unreadable is None and taken != source.num_transitions:
            words = f"expected {source.num_transitions:,} transitions, as the dataset says, got {taken:,}."
            findings.append(Finding("reading", "error", 1, None, words))
        findings += self._findings()
        found = {finding.rule for finding in findings}
        checks = (check for check in self._checks() if taken or check.rule in {"reading", *found})
        where = source.path or "what lies in memory"
        lanes = f"{source.lanes} lanes" if source.lanes > 1 else "1 lane"
        subject = f"{where}: {source.format}, {taken:,} transitions in {lanes}"
        return Report(subject, taken, tuple(checks), tuple(findings), source.notes)

    def _findings(self) -> Iterator[Finding]:
        yield from self._shapes.findings()
        yield from self._values.findings()
        adjacent = self._continuity.adjacent
        elsewhere = self._repeats.share_of(adjacent)
        yield from self._continuity.findings(elsewhere)
        if not self._continuity.explains_ends:
            yield from self._ends.findings()
        yield from self._episodes.findings()
        yield from self._repeats.findings(adjacent if self._continuity.are_stored_twice(elsewhere) else 0)

    def _checks(self) -> Iterator[Check]:
        yield Check("reading", "every block can be read")
        yield self._shapes.check()
        yield from self._values.checks()
        yield self._continuity.check()
        yield self._ends.check()
        yield self._episodes.check()
        yield self._repeats.check()
