"""Writing, reading, summarising, checking and converting datasets: `python benchmarks/bench_datasets.py`.

CPU seconds of this process, for files in a fresh directory whose bytes are in the page cache. Minari's layout, a group
of HDF5 an episode, is also written and read by the least calls of h5py that can (the floor). README.md says more.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5p, h5s, h5t

import relive
import relive.audit
import relive.interop
from relive.interop.summary import summarise

SUFFIXES = {"Minari": "", "D4RL": ".hdf5", "Parquet": ".parquet", "NPZ": ".npz", "snapshot": ".snapshot"}
FLOOR = "Minari, floor"
COLUMNS = ("", "format", "MB", "write", "read", "info", "check", "convert")


@dataclass(frozen=True)
class Workload:
    """What is written: episodes of one length, `block` transitions at a time."""

    title: str
    obs: relive.Field
    episodes: int
    length: int
    block: int

    def source(self) -> relive.interop.Source:
        """The transitions; half of a frame is constant, as in games, for Parquet's compression."""

        def read() -> Iterator[relive.interop.Block]:
            rng = np.random.default_rng(0)
            for start in range(0, count, self.block):
                obs = rng.integers(0, 256, (self.block + 1, *self.obs.shape), np.uint8).astype(self.obs.itemdtype)
                if len(self.obs.shape) > 1:
                    obs[:, self.obs.shape[0] // 2 :] = 0
                ends = np.arange(start, start + self.block) % self.length == self.length - 1
                following = obs[1:].copy()
                following[ends] += 1
                zeros, reward = np.zeros(self.block, np.int64), rng.random(self.block, np.float32)
                yield relive.interop.Block(obs[:-1], zeros, reward, ends, np.zeros_like(ends), following)

        count = self.episodes * self.length
        schema = relive.Schema(self.obs, relive.Field(np.int64))
        return relive.interop.Source(schema, count, 1, "benchmark", None, (), read, (count,))


WORKLOADS = (
    Workload("1e6 of float32 [4], episodes of 20", relive.Field(np.float32, (4,)), 50_000, 20, 10_000),
    Workload("1e6 of float32 [4], episodes of 500", relive.Field(np.float32, (4,)), 2_000, 500, 10_000),
    Workload("20,000 of uint8 [84, 84], episodes of 500", relive.Field(np.uint8, (84, 84)), 40, 500, 500),
)


def seconds(work: Callable[[], object]) -> float:
    """CPU time of one call."""
    began = time.process_time()
    work()
    return time.process_time() - began


def consume(source: relive.interop.Source) -> None:
    """Reads every block."""
    for _ in source.blocks():
        pass


def measure(workload: Workload, format: str, folder: Path) -> tuple[float, ...]:
    """Megabytes, and seconds to write (less what it takes to make the transitions), read, summarise, check, convert."""
    path, other = folder / f"data{SUFFIXES[format]}", folder / ("other.hdf5" if format == "NPZ" else "other.npz")
    source, opened = workload.source(), relive.interop.open
    write = seconds(lambda: relive.interop.write(source, path)) - seconds(lambda: consume(source))
    return (
        sum(file.stat().st_size for file in [path, *path.rglob("*")] if file.is_file()) / 1e6,
        write,
        seconds(lambda: consume(opened(path))),
        seconds(lambda: summarise(opened(path))),
        seconds(lambda: relive.audit.check_path(path)),
        seconds(lambda: relive.interop.write(opened(path), other)),
    )


def floor(workload: Workload, path: Path) -> tuple[float, ...]:
    """The groups, attributes and arrays of Minari's layout by the least calls; all arrays are of one size."""
    steps = workload.length
    obs = np.zeros((steps + 1, *workload.obs.shape), workload.obs.itemdtype)
    rewards, flags = np.zeros(steps, np.float32), np.zeros(steps, np.bool_)
    arrays = {b"observations": obs, b"actions": np.zeros(steps, np.int64), b"rewards": rewards}
    arrays |= {b"terminations": flags, b"truncations": flags}
    kinds = {name: h5t.py_create(array.dtype, logical=True) for name, array in arrays.items()}
    shapes = {name: h5s.create_simple(array.shape) for name, array in arrays.items()}
    number, scalar = h5t.py_create(np.dtype(np.int64)), h5s.create(h5s.SCALAR)
    layout = h5p.create(h5p.DATASET_CREATE)
    layout.set_layout(h5d.COMPACT if obs.nbytes < 60_000 else h5d.CONTIGUOUS)
    layout.set_obj_track_times(False)

    def write() -> None:
        with h5py.File(path, "w", libver=("v110", "v110"), track_order=True) as file:
            for episode in range(workload.episodes):
                group = h5g.create(file.id, b"episode_%d" % episode)
                h5g.create(group, b"infos")
                for name, array in arrays.items():
                    h5d.create(group, name, kinds[name], shapes[name], layout).write(h5s.ALL, h5s.ALL, array)
                for name, value in ((b"id", episode), (b"total_steps", steps)):
                    h5a.create(group, name, number, scalar).write(np.array(value))

    def read() -> None:
        with h5py.File(path) as file:
            for episode in range(workload.episodes):
                group = h5g.open(file.id, b"episode_%d" % episode)
                for name, array in arrays.items():
                    h5d.open(group, name).read(h5s.ALL, h5s.ALL, array)

    wrote = seconds(write)
    return path.stat().st_size / 1e6, wrote, seconds(read)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--markdown", type=Path, help="replace the table in this page")
    options = parser.parse_args()
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for workload in WORKLOADS:
        for format in (*SUFFIXES, FLOOR):
            with tempfile.TemporaryDirectory() as folder:
                place = Path(folder)
                megabytes, *took = floor(workload, place / "f") if format == FLOOR else measure(workload, format, place)
            said = [f"{value:.2f} s" for value in took] + [""] * (len(COLUMNS) - 3 - len(took))
            lines.append(f"| {' | '.join([workload.title, format, f'{megabytes:.0f}', *said])} |")
            print(lines[-1], flush=True)
    if options.markdown:
        text, begin, end = options.markdown.read_text(), "<!-- bench_datasets -->\n", "<!-- /bench_datasets -->"
        (before, rest), table = text.split(begin), "\n".join(lines)
        options.markdown.write_text(f"{before}{begin}\n{table}\n\n{end}{rest.split(end)[1]}")


if __name__ == "__main__":
    main()
