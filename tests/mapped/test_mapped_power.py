"""Machines that lose their power: what the disk holds then is any mixture of what the file was since the last sync.

The disk is a list of what the file was after each call since it was last written out; at the loss each small piece of
it (a page, a sector, less) is taken from any of them.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import relive
from mapped.mapped_programs import SHM, Author, attempt, check_rows, cut_off, kind_of, push_on, settle, stripped
from model.reference import Model
from relive import mapped

SETUPS = {
    "vector": ("vector", 1, {"sampler": relive.Prioritized()}),
    "column": ("column", 2, {}),
    "dict": ("dict", 1, {"sampler": relive.samplers.RankBased()}),
    "stacked": ("stacked", 2, {"sampler": relive.Shuffled()}),
    "stacked_column": ("stacked_column", 1, {}),
    "frames": ("frames", 3, {"view": relive.Transitions(2, 0.5, stack=4)}),
    "discrete": ("discrete", 2, {"view": relive.Sequences("episode")}),
}


@pytest.fixture
def root() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(dir=SHM))
    yield path
    shutil.rmtree(path)


class Disk:
    """Stands beside a buffer in a file and knows what may be on the disk of it."""

    def __init__(self, path: Path, patch: pytest.MonkeyPatch) -> None:
        self.path, self.patch = path, patch
        self.versions: list[Any] = []
        self.losses: list[tuple[list[Any], bytes | None]] = []  # in the midst of a call
        write = mapped.Synced._write

        def watched(synced: mapped.Synced, *args: Any) -> None:
            """The moment when the file is on the disk and the note about it is not yet."""
            self.note()
            self.losses.append((list(self.versions), self.card()))
            write(synced, *args)
            if args[1]:  # all of it was written out before
                self.versions = [self.read()]

        patch.setattr(mapped.Synced, "_write", watched)

    def read(self) -> Any:
        return np.fromfile(self.path / mapped.ARENA, np.uint8)

    def card(self) -> bytes | None:
        file = self.path / mapped.SYNCED
        return file.read_bytes() if file.exists() else None

    def note(self) -> None:
        """The file is another one than before."""
        self.versions.append(self.read())

    def lose(self, rng: np.random.Generator, to: Path, versions: list[Any], card: bytes | None) -> None:
        """What is found when the machine is started again."""
        shutil.copytree(self.path, to)
        piece = int(rng.choice([4096, 4096, 512, 64]))
        stack = np.stack([version.reshape(-1, piece) for version in versions])
        kind = rng.integers(3)
        if kind == 0:
            chosen = rng.integers(len(stack), size=stack.shape[1])
        elif kind == 1:  # mostly as at the sync
            chosen = np.where(rng.random(stack.shape[1]) < 0.8, 0, len(stack) - 1)
        else:
            chosen = np.where(rng.random(stack.shape[1]) < 0.8, len(stack) - 1, 0)
        stack[chosen, np.arange(stack.shape[1])].tofile(to / mapped.ARENA)
        (to / mapped.SYNCED).unlink(missing_ok=True)
        if card is not None:
            (to / mapped.SYNCED).write_bytes(card)


def check(buffer: Any, model: Model, was: list[int], at_stake: int) -> Model:
    """What is there is right, and no more is lost of what was than may be. The model of it is returned."""
    found = stripped(model)
    live, state = buffer.ids, np.zeros((model.lanes, 4), np.uint64)
    buffer._engine.core.lanes(state, False)
    for lane in range(model.lanes):
        cut_off(found, lane, int(state[lane, 1]))
        times = live[live % model.lanes == lane] // model.lanes
        mine = [identity // model.lanes for identity in was if identity % model.lanes == lane]
        assert (np.diff(times) == 1).all()
        if len(times):
            assert times[-1] <= mine[-1]
            oldest = max(mine[0], mine[-1] + 1 - model.depth + at_stake)
            assert times[0] <= oldest, f"lane {lane}: oldest {times[0]} of {mine}"
            assert times[-1] >= mine[-1] - at_stake, f"lane {lane}: newest {times[-1]} of {mine}"
        else:
            assert len(mine) <= 2 * at_stake, f"lane {lane}: nothing of {mine}"
            found.history[lane].clear()
    check_rows(buffer, found, live.tolist(), buffer.view.stack)
    return found


def losses(setup: str, root: Path, seed: int, count: int, patch: pytest.MonkeyPatch) -> int:
    """One buffer that loses its power again and again. How often something was there to be checked."""
    name, lanes, axes = SETUPS[setup]
    kind, rng = kind_of(name), np.random.default_rng(seed)
    author = Author(kind, axes.get("sampler"), rng)
    depth, sync = int(rng.integers(8, 30)), int(rng.integers(2, 6))
    model = Model(depth * lanes, lanes)
    path, boot, seen = root / "0", 1000, 0
    patch.setattr(mapped, "this_boot", lambda: boot)
    disk = Disk(path, patch)
    buffer = relive.ReplayBuffer(
        depth * lanes, kind.schema(lanes), storage=relive.Mmap(str(path), sync), seed=3, **axes
    )
    for number in range(1, count + 1):
        longest, before, was = 0, stripped(model), buffer.ids.tolist()
        for call in author.write(stripped(model), int(rng.integers(1, 25))):
            before, was = stripped(model), buffer.ids.tolist()
            disk.losses.clear()
            longest = max(longest, len(call.options["reward"]) if call.name == "extend" else 0)
            attempt(call, buffer)
            call.tell(model)
            disk.note()
        # In the midst of the last call, or after it.
        versions, card = disk.versions, disk.card()
        if disk.losses and rng.random() < 0.5:
            versions, card = disk.losses[rng.integers(len(disk.losses))]
            model = before
        else:
            was = buffer.ids.tolist()
        after = root / str(number)
        disk.lose(rng, after, versions, card)
        del buffer
        shutil.rmtree(disk.path)
        boot, disk.path = boot + 1, after
        disk.versions = [disk.read()]
        sync = int(rng.integers(2, 6))
        buffer = relive.attach(after, sync=sync)
        assert len(disk.versions) == 1, "nothing is at stake when an attach returns"
        model = check(buffer, model, was, max(5, longest + 1))
        lost = set(model.ids) - set(buffer.ids.tolist())  # frames before the oldest: the model takes them for live
        seen += len(buffer) > 0
        settle(buffer, model)
        disk.note()
        rounds = int(rng.choice([0, 3 * depth]))
        push_on(author, buffer, model, rounds)
        disk.note()
        if rounds:
            live = [identity for identity in model.ids if identity not in lost]
            assert buffer.ids.tolist() == live
            check_rows(buffer, model, live, buffer.view.stack)
            del buffer
            buffer = relive.attach(after, sync=sync)  # closed and opened on the same boot
            assert buffer.ids.tolist() == live
            disk.note()
    return seen


@pytest.mark.parametrize("setup", SETUPS)
def test_power_losses(setup: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert losses(setup, root, seed=1, count=40, patch=monkeypatch) > 20


@pytest.mark.parametrize("seed", [531, 579])
def test_rows_of_a_ring_that_was_never_full(root: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """What had been pushed beyond the newest transition that is kept lay there with its slots, and gave them back."""
    assert losses("frames", root, seed=seed, count=12, patch=monkeypatch) > 5


@pytest.mark.slow
@pytest.mark.parametrize("setup", SETUPS)
def test_many_power_losses(setup: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(6):
        (root / str(seed)).mkdir()
        with monkeypatch.context() as patch:
            assert losses(setup, root / str(seed), seed=100 + seed, count=60, patch=patch) > 20
