"""Runs on the screen: a bar in a terminal, lines anywhere else."""

import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

import relive.study.workers
import relive.train
from relive.dqn import TrainConfig
from relive.train.rundir import place_in_words

LINE_SECONDS = 30.0
"""Wall time between two lines where there is no terminal, if no evaluation comes first."""

Report = Callable[[relive.train.Progress], None]
StudyReport = Callable[[relive.study.workers.Progress], None]


@contextmanager
def spectator(config: TrainConfig) -> Iterator[Report]:
    """What to give to `train` as `report`: a bar if stdout is a terminal, else a line an evaluation."""
    console = Console()
    if console.is_terminal:
        with _bar(console, config) as report:
            yield report
    else:
        yield _lines(config)


@contextmanager
def _bar(console: Console, config: TrainConfig) -> Iterator[Report]:
    columns = (BarColumn(bar_width=None), TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True)))
    # Drawn when the loop reports, not by a thread of its own that would take the interpreter from the loop.
    with Progress(*columns, console=console, auto_refresh=False, expand=True, transient=True) as progress:
        task = progress.add_task("", total=config.length, text="")

        def report(now: relive.train.Progress) -> None:
            if now.evaluation is not None:
                progress.console.print(f"{_place(config, now):<14}   greedy return {now.evaluation}", highlight=False)
            for note in now.notes:
                progress.console.print(f"{_place(config, now):<14}   {note}", highlight=False, soft_wrap=True)
            progress.update(task, completed=now.step, text=_text(config, now))
            progress.refresh()

        yield report


def _lines(config: TrainConfig) -> Report:
    written = time.monotonic()

    def report(now: relive.train.Progress) -> None:
        nonlocal written
        for note in now.notes:
            print(f"{_place(config, now)}: {note}", flush=True)
        if now.evaluation is None and time.monotonic() - written < LINE_SECONDS:
            return
        written = time.monotonic()
        greedy = "" if now.evaluation is None else f"  greedy return {now.evaluation}"
        sys.stdout.write(f"{_text(config, now)}{greedy}\n")
        sys.stdout.flush()

    return report


@contextmanager
def study_spectator() -> Iterator[StudyReport]:
    """What to give to a study as `report`: a bar if stdout is a terminal, and a line for every run that ends."""
    console = Console()
    columns = (BarColumn(bar_width=None), TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True)))
    shown = console.is_terminal
    with Progress(*columns, console=console, auto_refresh=False, transient=True, disable=not shown) as progress:
        task = progress.add_task("", total=1.0, text="")

        def report(now: relive.study.workers.Progress) -> None:
            left = "" if math.isinf(now.seconds_left) else f"  {timedelta(seconds=math.ceil(now.seconds_left))} left"
            text = f"{now.finished}/{now.total} runs{left}"
            if now.ended is not None:
                console.print(f"{now.ended.name:<24} {text}", highlight=False, soft_wrap=True)
            if shown:
                progress.update(task, completed=now.share, text=text)
                progress.refresh()

        yield report


def _place(config: TrainConfig, now: relive.train.Progress) -> str:
    return place_in_words(config, now.step)


def _text(config: TrainConfig, now: relive.train.Progress) -> str:
    unit = _place(config, now).split()[0] + "s"
    rate = now.steps_per_second
    left = timedelta(seconds=math.ceil((now.steps - now.step) / rate)) if rate else "all"
    return (
        f"{now.step:,}/{now.steps:,}  return {_number(now.return_mean)}  loss {_number(now.loss)}  "
        f"{now.steps_per_second:,.0f} {unit}/s  {left} left"
    )


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"
