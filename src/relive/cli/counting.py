"""Transitions counted on the screen: a bar in a terminal, a line now and then anywhere else."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from relive.interop import Block, Source

BAR_SECONDS = 0.1
LINE_SECONDS = 30.0
"""Wall time between two pictures of the bar, and between two lines."""


@contextmanager
def counted(source: Source, unit: str) -> Iterator[Source]:
    """The source, which shows how far the reading of it has come."""
    console = Console()
    columns = (BarColumn(bar_width=None), TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True)))
    shown = console.is_terminal
    with Progress(*columns, console=console, auto_refresh=False, expand=True, transient=True, disable=not shown) as bar:
        task = bar.add_task("", total=max(1, source.num_transitions), text="")

        def report(done: int, text: str) -> None:
            if shown:
                bar.update(task, completed=done, text=text)
                bar.refresh()
            else:
                sys.stdout.write(f"{text}\n")
                sys.stdout.flush()

        every = BAR_SECONDS if shown else LINE_SECONDS
        yield replace(source, read=lambda: _counting(source, unit, report, every))


def _counting(source: Source, unit: str, report: Callable[[int, str], None], every: float) -> Iterator[Block]:
    began = written = time.monotonic()
    done, total = 0, source.num_transitions
    for block in source.blocks():
        yield block
        done += len(block.reward)
        now = time.monotonic()
        if now - written >= every and done:
            written = now
            rate = done / max(now - began, 1e-9)
            left = timedelta(seconds=round((total - done) / rate))
            report(done, f"{done:,}/{total:,} {unit}  {rate:,.0f}/s  {left} left")
