"""Pushes and samples against a floor of C++, and other libraries where they are installed: `make bench`.

All contestants of a row take turns in one process; README.md says how, and what the columns mean.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import rich.table
import torch
from rich.console import Console

import others
import relive
import report as reports
import samplers
from floor import load_floor
from measures import Bench, measure_growth, measure_push, measure_samples
from workloads import WORKLOADS, resident_fill

EPISODES = (500, 1_000)  # steps on average, for the memory of frames; the first alone where time is short


def describe_environment(libraries: list[str]) -> dict[str, str]:
    """Versions and machine."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "machine": f"{model}, {os.cpu_count()} cores",
        "system": platform.system(),
        "python": platform.python_version(),
        "relive": relive.__version__,
        "numpy": np.__version__,
        "torch": torch.__version__,
        **{name: others.version(name) for name in libraries},
    }


def measure_memory(quick: bool) -> list[dict[str, float]]:
    """Resident bytes of the frame workload, each figure from a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as processes:
        return list(processes.map(resident_fill, EPISODES[:1] if quick else EPISODES))


def measure(bench: Bench, quick: bool) -> reports.Report:
    """Measures what was asked for."""
    report = reports.Report(describe_environment(list(bench.others)))
    if bench.wants("W3 memory"):
        report.memory = measure_memory(quick)
    for workload in WORKLOADS:
        print(workload.title, file=sys.stderr)  # no live display: its thread would take turns in what is measured
        report.rows[workload.title] = [*measure_push(bench, workload), *measure_samples(bench, workload)]
    print("samplers and views", file=sys.stderr)
    rows, report.comparisons = samplers.measure_all(bench)
    report.rows |= rows
    report.growth = measure_growth(bench)
    report.targets = reports.judge(report)
    return report


def show(report: reports.Report, console: Console) -> None:
    """Prints every table."""
    console.print(", ".join(f"{key} {value}" for key, value in report.environment.items()))
    for table in reports.tables(report):
        shown = rich.table.Table(title=table.title, title_justify="left")
        for index, column in enumerate(table.columns):
            shown.add_column(column, justify="right" if index else "left")
        for cells in table.rows:
            shown.add_row(*cells)
        console.print(shown)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under a minute, noisier")
    parser.add_argument(
        "--only", default="", metavar="NAME", help="what has this in its name: 'W1 push', 'growth', 'memory'"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    bench = Bench(options.only, 0.15 if options.quick else 4.0, load_floor(), others.installed())
    report = measure(bench, options.quick)
    show(report, Console(width=None if sys.stdout.isatty() else 140))
    if options.json:
        options.json.write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")
    if options.markdown:
        options.markdown.write_text(reports.page(report), encoding="utf-8")


if __name__ == "__main__":
    main()
