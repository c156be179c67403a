"""What a check found, for people and for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Place:
    """A transition: number `index` of a lane, counted from 0 in the order of the dataset."""

    lane: int
    index: int


@dataclass(frozen=True)
class Finding:
    """Something that is wrong (an error), or right only under a condition that the words name (a warning).

    Attributes:
        rule: which check found it, a name of `RULES`.
        severity: "error" or "warning".
        count: how often, in transitions (values, for what is not finite or out of bounds).
        first: where it is seen first; None where it has no place.
        words: what it is, what it means, what to do.
    """

    rule: str
    severity: Severity
    count: int
    first: Place | None
    words: str


@dataclass(frozen=True)
class Check:
    """One check that was made: its rule, and what it saw where it found nothing wrong."""

    rule: str
    words: str


@dataclass(frozen=True)
class Report:
    """All checks of one dataset.

    Attributes:
        subject: what was checked, in words.
        num_transitions: how many were read.
        checks: those that were made, in order.
        findings: errors and warnings, in the order of the checks.
        notes: what the format lacks, or what had to be assumed to read it.
    """

    subject: str
    num_transitions: int
    checks: tuple[Check, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that are errors."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that are warnings."""
        return tuple(finding for finding in self.findings if finding.severity == "warning")

    @property
    def passes(self) -> bool:
        """True if there is no error; warnings may remain."""
        return not self.errors

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, dicts, strings and numbers, ready for JSON.

        A check is `ok` where it found nothing; only then has it words, else the findings of its rule have.
        """
        failed = {finding.rule for finding in self.findings}
        checks = [
            {"rule": check.rule, "ok": check.rule not in failed, "words": None if check.rule in failed else check.words}
            for check in self.checks
        ]
        return {**asdict(self), "checks": checks, "passes": self.passes}

    def __str__(self) -> str:
        width = max((len(check.rule) for check in self.checks), default=0)
        lines = [self.subject]
        for check in self.checks:
            found = [finding for finding in self.findings if finding.rule == check.rule]
            lines += [f"  {finding.severity:<7}  {check.rule:<{width}}  {_sentence(finding)}" for finding in found]
            if not found:
                lines.append(f"  ok       {check.rule:<{width}}  {check.words}")
        lines += [f"  note     {note}" for note in self.notes]
        return "\n".join([*lines, self.verdict])

    @property
    def verdict(self) -> str:
        """The outcome in one line."""
        if not self.num_transitions and not self.findings:
            known = {"checkpoint", "checksums"} & {check.rule for check in self.checks}
            return "Sound: no transition in it yet." if known else "Nothing to check: 0 transitions."
        counts = [_many(len(self.errors), "error"), _many(len(self.warnings), "warning")]
        said = " and ".join(words for words in counts if words)
        return f"{'Sound' if self.passes else 'Not sound'}: {said or 'nothing found'}."


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' if count > 1 else ''}" if count else ""


def _sentence(finding: Finding) -> str:
    if finding.first is None:
        return finding.words
    return f"{finding.words} First: transition {finding.first.index:,} of lane {finding.first.lane}."


def share(part: int, whole: int) -> str:
    """`12 of 3,456`, with the percentage where it says more."""
    return f"{part:,} of {whole:,}" if part in (0, whole) else f"{part:,} of {whole:,} ({100 * part / whole:.3g} %)"


class Count:
    """How often something was seen, and where first."""

    def __init__(self) -> None:
        self.count = 0
        self.first: Place | None = None

    def add(self, where: Any, lane: int, start: int) -> None:
        """Counts the true entries of a bool [T] whose entry 0 is transition `start` of a lane."""
        seen = int(np.count_nonzero(where))
        if seen and self.first is None:
            self.first = Place(lane, start + int(np.argmax(where)))
        self.count += seen
