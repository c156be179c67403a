"""Figures as tables: on the terminal and in docs/performance.md alike."""

from __future__ import annotations

from dataclasses import dataclass, field

from measures import ALLOC, FLOOR, FLOOR_IN_C, RELIVE, Row
from samplers import HINDSIGHT, TRANSITIONS, Comparison

_PAGE = """# Performance

Made by `python benchmarks/bench_buffer.py --markdown docs/performance.md`; `benchmarks/README.md` says how.
The floor is the least C++ that moves the same bytes, written to arrays that exist; floor+alloc makes new arrays or
tensors for every batch, as an API that returns new batches must; hindsight and samplers have no floor. Microseconds of
CPU time, medians. Machines are shared and noisy: trust ratios, taken side by side in one run, never absolute times.

"""


_RATIOS = (
    ("W1 sample 256 to torch", 1.5, ALLOC),
    ("W1 prioritized 1e6 cycle 256 to NumPy", 1.6, FLOOR),
    ("W1 prioritized 1e6 cycle 256 to torch", 1.6, ALLOC),
    ("W1 prioritized 1e7 cycle 256 to NumPy", 1.6, FLOOR),
    ("W1 prioritized 1e7 cycle 256 to torch", 1.6, ALLOC),
    ("W2 sequences 64 x 80 to NumPy", 1.5, FLOOR),
    ("W2 sequences 64 x 80 to torch", 1.5, ALLOC),
)


@dataclass
class Target:
    """What was promised, and what came of it."""

    name: str
    reach: str
    measured: str
    reached: bool


@dataclass
class Report:
    """Everything of one run; growth and memory are tables of figures."""

    environment: dict[str, str]
    rows: dict[str, list[Row]] = field(default_factory=dict)  # by title of the workload
    comparisons: list[Comparison] = field(default_factory=list)  # what has no floor
    growth: list[dict[str, float]] = field(default_factory=list)
    memory: list[dict[str, float]] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)


@dataclass
class Table:
    """Cells as text; the first column is flush left."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def judge(report: Report) -> list[Target]:
    """The targets that this run measured."""
    targets = []
    rows = {row.name: row for rows in report.rows.values() for row in rows}
    if row := rows.get("W1 push one"):
        took, floor = row.microseconds[RELIVE], row.microseconds[FLOOR]
        limit = max(2.0, 4 * floor)
        targets.append(Target(row.name, "at most 2 us or 4 x floor", f"{took:.2f} us", took <= limit))
    for name, most, against in _RATIOS:
        if row := rows.get(name):
            value = row.times_floor if against == FLOOR else row.times_alloc
            assert value is not None
            targets.append(Target(row.name, f"at most {most} x {against}", f"{value:.2f} x", value <= most))
    for comparison in report.comparisons:
        if comparison.base == TRANSITIONS:
            value = comparison.times[HINDSIGHT]
            targets.append(Target(comparison.title, "at most 2 x the same, plain", f"{value:.2f} x", value <= 2))
    for memory in report.memory:
        value = memory["frames"]
        name = f"W3 memory, episodes of {memory['episode']:,.0f} steps"
        targets.append(Target(name, "at most 1.02 frames a transition", f"{value:.4f}", value <= 1.02))
    if report.growth:
        last = report.growth[-1]
        reach, name = "grows no faster than the floor", "W1 sample 256, 10^4 to 10^7"
        ours, floor = last[f"{RELIVE} growth"], last[f"{FLOOR} growth"]
        targets.append(Target(name, reach, f"{ours:.2f} x, floor {floor:.2f} x", ours <= floor))
        # The stricter reading: what is spent on top of memory does not dilute it. 5 % is the noise of a run.
        ours, floor = last[f"{RELIVE} added"], last[f"{FLOOR} added"]
        targets.append(
            Target(f"{name}, time added", reach, f"{ours:+.2f} us, floor {floor:+.2f} us", ours <= 1.05 * floor)
        )
    return targets


def tables(report: Report) -> list[Table]:
    """All that were measured, the targets last."""
    found = [_operations(title, rows) for title, rows in report.rows.items() if rows]
    found += [_comparison(comparison) for comparison in report.comparisons]
    if report.growth:
        found.append(_growth(report.growth))
    if report.memory:
        found.append(_memory(report.memory))
    if report.targets:
        cells = [
            [target.name, target.reach, target.measured, "yes" if target.reached else "NO"] for target in report.targets
        ]
        found.append(Table("Targets", ["", "reach", "measured", "reached"], cells))
    return found


def page(report: Report) -> str:
    """All tables as a page of Markdown."""
    lines = [_PAGE + ", ".join(f"{key} {value}" for key, value in report.environment.items()) + "."]
    for table in reversed(tables(report)):
        lines += ["", f"## {table.title}", "", "| " + " | ".join(table.columns) + " |"]
        lines.append("|---" + "|---:" * (len(table.columns) - 1) + "|")
        lines += ["| " + " | ".join(cells) + " |" for cells in table.rows]
    return "\n".join(lines) + "\n"


def _operations(title: str, rows: list[Row]) -> Table:
    main = tuple(name for name in (FLOOR_IN_C, FLOOR, ALLOC, RELIVE) if any(name in row.microseconds for row in rows))
    cells = []
    for row in rows:
        others = [f"{name} {_number(value)}" for name, value in row.microseconds.items() if name not in main]
        if row.bytes is not None:
            others = [f"{name} {row.bytes / row.microseconds[name]:,.0f} MB/s" for name in main] + others
        cells.append(
            [
                row.name,
                *(_number(row.microseconds[name]) if name in row.microseconds else "-" for name in main),
                f"{row.times_floor:.2f}",
                "-" if row.times_alloc is None else f"{row.times_alloc:.2f}",
                ", ".join(others) or "-",
            ]
        )
    return Table(f"{title}, microseconds", ["operation", *main, "x floor", "x floor+alloc", "others"], cells)


def _comparison(comparison: Comparison) -> Table:
    cells = [[name, _number(value), f"{comparison.times[name]:.2f}"] for name, value in comparison.microseconds.items()]
    return Table(f"{comparison.title}, microseconds", ["", "relive", f"x {comparison.base}"], cells)


def _growth(rows: list[dict[str, float]]) -> Table:
    columns = ["capacity", FLOOR, "growth", "added", RELIVE, "growth", "added"]
    cells = []
    for row in rows:
        line = [f"{row['capacity']:,.0f}"]
        for name in (FLOOR, RELIVE):
            line += [_number(row[name]), f"{row[f'{name} growth']:.2f} x", f"{row[f'{name} added']:+.2f}"]
        cells.append(line)
    return Table("W1 sample 256 to NumPy against the capacity, microseconds", columns, cells)


def _memory(rows: list[dict[str, float]]) -> Table:
    cells = [
        [f"{row['episode']:,.0f}", f"{row['bytes']:,.0f}", f"{row['planned_bytes']:,.0f}", f"{row['frames']:.4f}"]
        for row in rows
    ]
    title = "W3 resident memory a transition, filled twice over (a frame is 7,056 B)"
    return Table(title, ["steps an episode", "bytes", "relive.plan", "frames"], cells)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
