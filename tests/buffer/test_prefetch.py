"""Batches drawn ahead are the batches that would have been drawn, and the thread that draws them ends when told to."""

from __future__ import annotations

import gc
import itertools
import os
import subprocess
import sys
import threading
import types
import weakref
from typing import Any

import numpy as np
import pytest

import relive
from model.marked import check, contents, make, run, transition
from relive.prefetch import Batches

STEPS = 60


def filled(seed: int = 5) -> relive.ReplayBuffer:
    buffer = make(2, STEPS, n=3, seed=seed)
    for step in range(STEPS):
        buffer.push(**transition(np.array([step, step]), np.arange(2)))
    return buffer


def first(iterator: Any, count: int) -> list[list[bytes]]:
    return [contents(batch) for batch in itertools.islice(iterator, count)]


def alone() -> bool:
    """True if no thread draws ahead."""
    return not any(thread.name == "relive-prefetch" for thread in threading.enumerate())


def wait_until(condition: Any) -> None:
    """Until it holds; a test that waits in vain ends with the runner's patience."""
    pause = threading.Event()
    for _ in range(6_000):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("waited in vain")


class Counted:
    """Draws 0, 1, 2, ...; counts them; fails at the numbers in `wrong`, each once."""

    def __init__(self, wrong: tuple[int, ...] = ()) -> None:
        self.number, self.wrong = 0, set(wrong)
        self.betas: list[Any] = []

    def __call__(self, beta: float | None, device: Any) -> Any:
        if self.number in self.wrong:
            self.wrong.remove(self.number)
            raise relive.NotEnoughDataError(f"batch {self.number}")
        self.betas.append(beta)
        self.number += 1
        return self.number - 1


@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_the_same_batches_however_many_are_drawn_ahead(output):
    pytest.importorskip("torch")
    buffer = filled()
    expected = [contents(buffer.sample(16)) for _ in range(25)]
    for prefetch in (0, 1, 3, 40):
        with filled().batches(16, prefetch=prefetch, output=output) as iterator:
            assert first(iterator, 25) == expected


def test_a_batch_that_is_held_stays_what_it_was():
    """Memory that is recycled while a batch waits for its taker, or is held by one, would show here."""
    with filled().batches(16, prefetch=3) as iterator:
        held = list(itertools.islice(iterator, 30))
        before = [contents(batch) for batch in held]
        first(iterator, 30)
        assert [contents(batch) for batch in held] == before


def test_pushing_while_iterating():
    """Every row is whole, and what is pushed appears: a batch is at most `prefetch` batches old."""
    buffer = make(2, 50, n=3, seed=1)
    buffer.push(**transition(np.zeros(2, np.int64), np.arange(2)))
    stop = threading.Event()

    def write() -> None:
        step = 1
        while not stop.is_set():
            buffer.push(**transition(np.array([step, step]), np.arange(2)))
            step += 1

    def read() -> None:
        try:
            with buffer.batches(16, prefetch=2) as iterator:
                for batch in itertools.islice(iterator, 300):
                    check(batch, 2, 3)
                while len(buffer) < 100:
                    next(iterator)
                oldest = buffer.ids.min()
                fresh = list(itertools.islice(iterator, 3))[-1]
                assert fresh.ids.min() >= oldest
        finally:
            stop.set()

    run(write, read)


@pytest.mark.parametrize("prefetch", [1, 3])
def test_no_more_is_drawn_ahead_than_asked_for(prefetch):
    draw = Counted()
    with Batches(draw, prefetch=prefetch) as iterator:
        assert draw.number == 0  # nothing before the first next()
        for taken in range(1, 6):
            assert next(iterator) == taken - 1
            wait_until(lambda taken=taken: draw.number == taken + prefetch)
    assert draw.number == 5 + prefetch  # and nothing after the end


def test_beta_is_asked_for_once_a_batch_in_the_thread_that_draws():
    for prefetch in (0, 2):
        draw, count, threads = Counted(), itertools.count(), set()

        def beta(count=count, threads=threads) -> float:
            threads.add(threading.current_thread().name)
            return 0.1 * next(count)

        with Batches(draw, beta, prefetch) as iterator:
            list(itertools.islice(iterator, 5))
        assert draw.betas == [0.1 * number for number in range(len(draw.betas))]
        assert threads == {"relive-prefetch" if prefetch else threading.current_thread().name}
        draw = Counted()
        with Batches(draw, 0.4, prefetch) as iterator:
            next(iterator)
        assert set(draw.betas) == {0.4}


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_an_error_comes_where_its_batch_would_have_and_the_iterator_goes_on(prefetch):
    with Batches(Counted(wrong=(0, 4)), prefetch=prefetch) as iterator:
        for number in (0, 4):
            with pytest.raises(relive.NotEnoughDataError, match=f"batch {number}") as raised:
                next(iterator)
            assert "__call__" in [entry.name for entry in raised.traceback]  # where it was raised
            assert [next(iterator) for _ in range(4)] == list(range(number, number + 4))


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_iterator_over_an_empty_buffer_works_once_there_is_data(prefetch):
    buffer, twin = make(1, 10, n=1, seed=3), make(1, 10, n=1, seed=3)
    with buffer.batches(4, prefetch=prefetch) as iterator:
        for _ in range(3):
            with pytest.raises(relive.NotEnoughDataError):
                next(iterator)
        for one in (buffer, twin):
            one.push(**transition(0, 0))
        assert first(iterator, 5) == [contents(twin.sample(4)) for _ in range(5)]


@pytest.mark.parametrize("prefetch", [0, 2])
def test_errors_of_the_call_come_with_the_first_batch(prefetch):
    for options in ({"size": 0}, {"size": 4, "output": "jax"}, {"size": 4, "device": "cpu"}):
        with filled().batches(**options, prefetch=prefetch) as iterator, pytest.raises(relive.ConfigError):
            next(iterator)


def test_what_is_no_prefetch_and_no_beta_is_refused():
    for prefetch in (-1, 1025, 2.0, True, None, "2"):
        with pytest.raises(relive.ConfigError, match="prefetch"):
            Batches(Counted(), prefetch=prefetch)
    for beta in ("0.4", True, [0.4]):
        with pytest.raises(relive.ConfigError, match="beta"):
            Batches(Counted(), beta)
    assert next(Batches(Counted(), np.float32(0.5), np.int64(0))) == 0


# The end.


def test_closing_ends_the_thread():
    for taken in (0, 1, 4):
        draw = Counted()
        iterator = Batches(draw, prefetch=2)
        list(itertools.islice(iterator, taken))
        iterator.close()
        assert alone()  # whether it waited for room or was drawing
        drawn = draw.number
        for _ in range(2):
            with pytest.raises(StopIteration):
                next(iterator)
        iterator.close()
        assert draw.number == drawn
    with Batches(Counted()) as iterator:
        next(iterator)
    assert list(iterator) == []


def test_closing_from_another_thread_ends_those_that_wait():
    """next() in two threads, of a draw that takes for ever; whoever waits is told, and close() waits for the draw."""
    let, inside = threading.Event(), threading.Event()

    def draw(beta: Any, device: Any) -> Any:
        inside.set()
        let.wait()

    iterator = Batches(draw, prefetch=1)
    ended: list[int] = []

    def take() -> None:
        ended.extend(0 for _ in iterator)

    takers = [threading.Thread(target=take) for _ in range(2)]
    for taker in takers:
        taker.start()
    inside.wait()
    closer = threading.Thread(target=iterator.close)
    closer.start()
    wait_until(lambda: "closed" in repr(iterator))
    let.set()
    for thread in (*takers, closer):
        thread.join()
    assert alone()
    assert ended == []


def test_beta_may_close_the_iterator():
    """The thread that draws cannot wait for itself."""
    iterators: list[Batches] = []

    def beta() -> float:
        iterators[0].close()
        return 0.5

    iterators.append(Batches(Counted(), beta, prefetch=1))
    assert list(iterators[0]) == []
    wait_until(alone)


@pytest.mark.parametrize("in_cycle", [False, True])
def test_an_iterator_that_is_forgotten_ends_its_thread(in_cycle):
    buffer = filled()
    iterator = buffer.batches(16, prefetch=2)
    if in_cycle:
        iterator.itself = iterator
    next(iterator)
    gone = weakref.ref(iterator)
    del iterator
    gc.collect()
    assert gone() is None
    wait_until(alone)
    assert buffer.sample(4).ids.shape == (4,)


def test_leaving_a_loop_is_forgetting():
    for number, _ in enumerate(filled().batches(4, prefetch=3)):
        if number == 5:
            break
    wait_until(alone)


def test_many_threads_share_an_iterator():
    """Each batch goes to one of them, in order."""
    taken: list[list[int]] = [[] for _ in range(4)]
    with Batches(Counted(), prefetch=3) as iterator:

        def take(who: int) -> None:
            taken[who].extend(next(iterator) for _ in range(100))

        run(*(lambda who=who: take(who) for who in range(4)))
    assert sorted(itertools.chain(*taken)) == list(range(400))
    assert all(mine == sorted(mine) for mine in taken)


HEAD = (
    "import atexit; atexit.register(lambda: [next(iterator, None) for _ in range(9)])\n"  # after relive's own
    "import os, sys, threading, numpy as np, relive\n"
    "buffer = relive.ReplayBuffer(500, seed=0)\n"
    "frame = np.zeros((84, 84), np.uint8)\n"
    "for _ in range(200): buffer.push(frame, 0, 0.0, False, frame)\n"
    "iterator = buffer.batches(64, prefetch=2)\n"
    "next(iterator)\n"
)


@pytest.mark.parametrize(
    "code",
    [
        "",
        "iterator.itself = iterator; iterator = iter(())\n",
        "next(iterator); sys.exit()\n",
        "import torch; other = buffer.batches(64, prefetch=3, output='torch'); next(other)\n",
        "iterator.close()\n",
        "threading.Thread(target=lambda: [None for _ in iterator], daemon=True).start()\n",
    ],
)
def test_the_process_ends_with_an_iterator_open(code):
    pytest.importorskip("torch")
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", HEAD + code + "print('end', flush=True)\n" * ("exit" not in code)],
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_child_of_a_fork_is_told():
    """It has no thread that draws; to wait for one would be to wait for ever."""
    code = (
        "child = os.fork()\n"
        "if child == 0:\n"
        "    try: next(iterator)\n"
        "    except relive.ProtocolError as error: assert 'fork' in str(error)\n"
        "    else: os._exit(1)\n"
        "    iterator.close()\n"
        "    with buffer.batches(8, prefetch=1) as own: next(own)\n"
        "    os._exit(7)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "next(iterator)\n"
    )
    done = subprocess.run([sys.executable, "-c", HEAD + code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "7\n", "")


# Devices. The order of calls that a CUDA stream needs is checked against a recording; a GPU runs the last test.


class Recorded:
    """Stands for torch, its streams, events and tensors; writes down what is called."""

    def __init__(self, log: list[str], name: str) -> None:
        self.log, self.name = log, name

    def __getattr__(self, attribute: str) -> Any:
        if attribute == "device":
            return "cuda:1"

        def call(*arguments: Any, **options: Any) -> Any:
            said = [getattr(argument, "name", str(argument)) for argument in arguments]
            self.log.append(f"{self.name}.{attribute}({', '.join([*said, *options])})")
            result = {"record_event": "event", "pin_memory": f"pinned {self.name}", "to": "copy"}.get(attribute)
            return Recorded(self.log, result) if result else None

        return call


def test_copies_to_a_gpu_are_pinned_beside_the_computation_and_waited_for_by_its_taker(monkeypatch):
    pytest.importorskip("torch")
    from relive import tensors

    log: list[str] = []

    class On:
        def __init__(self, stream: Recorded) -> None:
            self.stream = stream

        def __enter__(self) -> None:
            log.append(f"on {self.stream.name}")

        def __exit__(self, *_: Any) -> None:
            log.append("off")

    current = Recorded(log, "current")
    cuda = types.SimpleNamespace(
        Stream=lambda device: Recorded(log, "side"), stream=On, current_stream=lambda device: current
    )
    torch = types.SimpleNamespace(device=lambda name: types.SimpleNamespace(type="cuda"), cuda=cuda)
    monkeypatch.setattr(tensors, "torch", torch)
    monkeypatch.setattr(tensors, "check", lambda dtypes, device: None)

    def draw(beta: Any, device: Any) -> relive.Batch:
        assert device is None  # on the CPU, to be pinned
        return relive.Batch({"obs": {"x": Recorded(log, "x")}, "ids": Recorded(log, "ids")})

    batch = next(Batches(draw, output="torch", device="cuda"))
    assert (batch.obs["x"].name, batch.ids.name) == ("copy", "copy")
    assert log == [
        "on side",
        "x.pin_memory()",
        "pinned x.to(cuda:1, non_blocking)",
        "ids.pin_memory()",
        "pinned ids.to(cuda:1, non_blocking)",
        "side.record_event()",
        "off",
        "current.wait_event(event)",
        "copy.record_stream(current)",
        "copy.record_stream(current)",
    ]


def test_a_device_that_is_not_there_is_refused():
    torch = pytest.importorskip("torch")
    for device in ["abacus", "cuda:999"] + ([] if torch.cuda.is_available() else ["cuda"]):
        with pytest.raises(relive.ConfigError, match="device"):
            filled().batches(4, prefetch=1, output="torch", device=device)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("prefetch", [0, 3])
def test_batches_on_a_device_hold_what_arrays_hold(device, prefetch):
    torch = pytest.importorskip("torch")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    buffer, sums = filled(), []
    expected = [buffer.sample(64) for _ in range(40)]
    with filled().batches(64, prefetch=prefetch, output="torch", device=device) as iterator:
        for batch in itertools.islice(iterator, 40):
            assert batch.obs["large"].device.type == batch.ids.device.type == device
            sums.append((batch.obs["large"].double().sum(), batch.reward.sum(), batch.ids.sum()))
    for (obs, reward, ids), batch in zip(sums, expected, strict=True):
        assert obs.item() == batch.obs["large"].sum()
        assert reward.item() == batch.reward.sum()
        assert ids.item() == batch.ids.sum()
