"""Pushes and samples against a floor of C++, and other libraries where they are installed: `make bench`.

All contestants of a row take turns in one process; README.md says what the columns mean.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import others
import relive
import torch
from floor import load_floor
from measures import (
    ALLOC,
    FLOOR,
    FLOOR_IN_C,
    RELIVE,
    Bench,
    Row,
    measure_growth,
    measure_push,
    measure_samples,
)
from rich.console import Console
from rich.table import Table
from workloads import WORKLOADS, resident_fill

EPISODES = (1_000, 500, 100)  # steps, for the memory of frames


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
    rows: list[Row] = field(default_factory=list)
    growth: list[dict[str, float]] = field(default_factory=list)
    memory: list[dict[str, float]] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)


def describe_environment(libraries: list[str]) -> dict[str, str]:
    """Versions and machine."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "machine": f"{model}, {os.cpu_count()} cores",
        "system": platform.platform(),
        "python": platform.python_version(),
        "relive": relive.__version__,
        "numpy": np.__version__,
        "torch": torch.__version__,
        **{name: others.version(name) for name in libraries},
    }


def measure_memory(quick: bool) -> list[dict[str, float]]:
    """Resident bytes of the frame workload, each figure from a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as processes:
        return list(processes.map(resident_fill, EPISODES[1:2] if quick else EPISODES))


def judge(report: Report) -> list[Target]:
    """The targets that this run measured."""
    targets = []
    rows = {row.name: row for row in report.rows}
    if row := rows.get("W1 sample 256 to torch"):
        assert row.times_alloc is not None
        value = row.times_alloc
        targets.append(Target(row.name, "1.5 x floor+alloc", f"{value:.2f} x", value <= 1.5))
    if row := rows.get("W1 push one"):
        took, floor = row.microseconds[RELIVE], row.microseconds[FLOOR]
        limit = max(2.0, 4 * floor)
        targets.append(Target(row.name, f"{limit:.2f} us", f"{took:.2f} us", took <= limit))
    for memory in report.memory:
        value = memory["frames"]
        name = f"W3 memory, episodes of {memory['episode']}"
        targets.append(Target(name, "1.02 frames a transition", f"{value:.4f}", value <= 1.02))
    if report.growth:
        last = report.growth[-1]
        ours, floor = last[f"{RELIVE} growth"], last[f"{FLOOR} growth"]
        measured = f"{ours:.2f} x (floor {floor:.2f} x)"
        targets.append(Target("W1 sample 256, 10^4 to 10^7", "grows no faster than the floor", measured, ours <= floor))
    return targets


def number(value: float) -> str:
    """Microseconds, as many digits as mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def rows_table(rows: list[Row]) -> Table:
    """Microseconds and ratios."""
    table = Table(title="CPU time an operation, microseconds (medians)")
    table.add_column("operation")
    for name in (FLOOR_IN_C, FLOOR, ALLOC, RELIVE, "x floor", "x floor+alloc", "others"):
        table.add_column(name, justify="right")
    for row in rows:
        main = (FLOOR_IN_C, FLOOR, ALLOC, RELIVE)
        also = [f"{name} {number(value)}" for name, value in row.microseconds.items() if name not in main]
        table.add_row(
            row.name,
            *(number(row.microseconds[name]) if name in row.microseconds else "-" for name in main),
            f"{row.times_floor:.2f}",
            "-" if row.times_alloc is None else f"{row.times_alloc:.2f}",
            ", ".join(also) or "-",
        )
    return table


def growth_table(rows: list[dict[str, float]]) -> Table:
    """The cost of a batch against the capacity."""
    table = Table(title="W1 sample 256 to NumPy against the capacity")
    for name in ("capacity", FLOOR, "growth", "added us", RELIVE, "growth", "added us"):
        table.add_column(name, justify="right")
    for row in rows:
        cells = [f"{row['capacity']:,.0f}"]
        for name in (FLOOR, RELIVE):
            cells += [number(row[name]), f"{row[f'{name} growth']:.2f} x", f"{row[f'{name} added']:+.2f}"]
        table.add_row(*cells)
    return table


def memory_table(rows: list[dict[str, float]]) -> Table:
    """Resident memory of the frame workload."""
    table = Table(title="W3 resident memory a transition, buffer filled twice over (a frame is 7,056 B)")
    for name in ("steps an episode", "bytes", "relive.plan", "frames"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            f"{row['episode']:,}", f"{row['bytes']:,.0f}", f"{row['planned_bytes']:,.0f}", f"{row['frames']:.4f}"
        )
    return table


def targets_table(targets: list[Target]) -> Table:
    """Reached or not."""
    table = Table(title="Targets")
    for name in ("", "reach", "measured", "reached"):
        table.add_column(name)
    for target in targets:
        table.add_row(target.name, target.reach, target.measured, "[green]yes" if target.reached else "[red]no")
    return table


def run(bench: Bench, quick: bool, console: Console) -> Report:
    """Measures what was asked for, and shows each table as it is ready."""
    report = Report(describe_environment(list(bench.others)))
    console.print("\n".join(f"{key}: {value}" for key, value in report.environment.items()))
    if bench.wants("memory"):
        report.memory = measure_memory(quick)
        console.print(memory_table(report.memory))
    for workload in WORKLOADS:
        with console.status(workload.title):
            rows = [*measure_push(bench, workload), *measure_samples(bench, workload)]
        report.rows += rows
        if rows:
            console.print(workload.title, rows_table(rows))
    with console.status("growth"):
        report.growth = measure_growth(bench)
    if report.growth:
        console.print(growth_table(report.growth))
    report.targets = judge(report)
    if report.targets:
        console.print(targets_table(report.targets))
    return report


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute, noisier")
    parser.add_argument("--only", default="", metavar="NAME", help="operations whose name contains this, e.g. 'W1 push'")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    bench = Bench(options.only, 0.5 if options.quick else 4.0, load_floor(), others.installed())
    report = run(bench, options.quick, Console(width=None if sys.stdout.isatty() else 140))
    if options.json:
        options.json.write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
