"""Many threads at once, and batches that never change under their holder.

Every observation encodes the transition it belongs to, in each of its elements, and all other fields follow from it. A
row torn by a writer, or put together from two transitions, contradicts itself.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import relive
from model.compare import fingerprint
from model.reference import leaves, map_tree

GAMMA = 0.5
LENGTH = 7  # steps of an episode
LARGE = relive.Field("uint32", (150,))  # 600 bytes: a column of its own


@pytest.fixture(autouse=True)
def _switch_often() -> Iterator[None]:
    """Let Python change threads every few microseconds, so that every interleaving happens."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    yield
    sys.setswitchinterval(interval)


def make(lanes: int, depth: int, n: int = 3, **options: Any) -> relive.ReplayBuffer:
    obs = {"small": relive.Field("int64", (8,)), "large": LARGE}
    schema = relive.Schema(obs, relive.Field("int64"), {"tag": relive.Field("int64", (5,))}, lanes=lanes)
    return relive.ReplayBuffer(lanes * depth, schema, view=relive.Transitions(n, GAMMA), **options)


def state(mark: Any) -> dict[str, np.ndarray]:
    """An observation that says `mark` in every element; with an array of marks, a block of them."""
    mark = np.asarray(mark)[..., None]
    return {"small": np.repeat(mark, 8, -1).astype(np.int64), "large": np.repeat(mark, 150, -1).astype(np.uint32)}


def transition(step: Any, lane: Any) -> dict[str, Any]:
    """Step number `step` of a lane: obs is marked 10 * step (and the lane); an end's next_obs is marked as such."""
    step, lane = np.asarray(step), np.asarray(lane)
    ends = step % LENGTH == LENGTH - 1
    here = 10 * step + 1_000_000 * lane
    return {
        "obs": state(here),
        "action": here % 5,
        "reward": (step % 64).astype(np.float32),
        "terminated": ends & (step % 2 == 0),
        "next_obs": state(here + 10 + ends),
        "truncated": ends & (step % 2 == 1),
        "tag": np.repeat(np.asarray(here)[..., None], 5, -1),
    }


def check(batch: Any, lanes: int, n: int) -> None:
    """Every row is its transition, whole; the window may be as short as the newest transition made it."""
    ids = np.asarray(batch.ids)
    lane, step = ids % lanes, ids // lanes
    left = LENGTH - step % LENGTH  # steps to the episode's end, this one included
    longest = np.minimum(n, left)
    over = np.asarray(batch.terminated)
    used = np.where(over, longest, np.round(-np.log2(np.maximum(batch.discount, 1e-9))).astype(np.int64))
    assert ((used >= 1) & (used <= longest)).all()
    last = transition(step + used - 1, lane)
    first = transition(step, lane)
    np.testing.assert_array_equal(batch.terminated, last["terminated"])
    np.testing.assert_array_equal(batch.truncated, last["truncated"])
    np.testing.assert_array_equal(batch.discount == 0, over)
    for name, rows in (("obs", first), ("next_obs", last)):
        for part in ("small", "large"):
            np.testing.assert_array_equal(getattr(batch, name)[part], rows[name][part])
    np.testing.assert_array_equal(batch.action, first["action"])
    np.testing.assert_array_equal(batch.tag, first["tag"])
    reward = sum(np.where(i < used, GAMMA**i * ((step + i) % 64), 0) for i in range(n))
    np.testing.assert_array_equal(batch.reward, reward.astype(np.float32))


def run(*jobs: Callable[[], None]) -> None:
    """Run the jobs in threads that start together; the first exception of any is raised here."""
    errors: list[BaseException] = []
    together = threading.Barrier(len(jobs))

    def guarded(job: Callable[[], None]) -> None:
        try:
            together.wait()
            job()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.parametrize("depth", [3, 50, 2_000])
def test_threads_push_and_sample_at_once(depth):
    """Four lanes, each written by its own thread, by single steps and blocks; four readers."""
    lanes, steps, n = 4, 1_000, 3
    buffer = make(lanes, depth, n, seed=0)
    buffer.push(**transition(np.zeros(lanes, np.int64), np.arange(lanes)))
    writing = set(range(lanes))

    def write(lane: int) -> None:
        step = 1
        try:
            while step < steps:
                block = 1 + (step * 7 + lane) % 4
                if block == 1:
                    assert buffer.push(**transition(step, lane), lane=lane) == step * lanes + lane
                else:
                    many = np.arange(step, step + block)
                    ids = buffer.extend(**transition(many, lane), lane=lane)
                    assert ids.tolist() == (many * lanes + lane).tolist()
                step += block
        finally:
            writing.discard(lane)

    def read(size: int) -> None:
        held: list[tuple[Any, list[bytes]]] = []
        rounds = 0
        while writing or rounds < 20:
            batch = buffer.sample(size)
            check(batch, lanes, n)
            if rounds % 10 == 0:
                held = [*held[-5:], (batch, contents(batch))]
            ids = buffer.ids
            assert len(ids) <= lanes * depth
            some = ids[:: -max(1, len(ids) // 100)]
            with contextlib.suppress(relive.StaleIdError):  # overwritten since: said, not hidden
                check(buffer.get(some), lanes, n)
            rounds += 1
        for batch, before in held:
            assert contents(batch) == before

    run(*(lambda lane=lane: write(lane) for lane in range(lanes)), *(lambda s=s: read(s) for s in (1, 17, 64, 64)))
    if depth < steps:
        assert len(buffer) == lanes * depth
    check(buffer.get(buffer.ids), lanes, n)


def test_a_large_batch_is_of_one_moment():
    """Milliseconds of copying without the GIL, in which a writer would overwrite the whole buffer many times."""
    depth, size, rounds = 40, 10_000, 12
    buffer = make(1, depth, n=1, seed=6)
    block = transition(np.arange(20_000), np.zeros(20_000, np.int64))
    buffer.extend(**map_tree(lambda leaf: leaf[:depth], block))
    reading = {"sample", "get"}

    def write() -> None:
        for step in range(depth, 20_000):
            buffer.push(**map_tree(lambda leaf, step=step: leaf[step], block))
            if not reading:
                break

    def sample() -> None:
        try:
            for _ in range(rounds):
                batch = buffer.sample(size)
                check(batch, 1, 1)
                assert np.ptp(batch.ids) < depth  # all of them were live at once
        finally:
            reading.discard("sample")

    def get() -> None:
        try:
            for _ in range(rounds):
                newest = buffer.ids[-depth // 2 :]
                with contextlib.suppress(relive.StaleIdError):
                    check(buffer.get(np.resize(newest, size)), 1, 1)
        finally:
            reading.discard("get")

    run(write, sample, get)


def contents(batch: Any) -> list[bytes]:
    """All bytes of a batch."""
    fields = [batch.obs, batch.action, batch.reward, batch.terminated, batch.truncated, batch.next_obs, batch.discount]
    return [np.asarray(leaf).tobytes() for field in (*fields, batch.ids) for leaf in leaves(field)]


def test_threads_that_push_to_the_same_lane():
    """The order is whoever comes first; each id still holds exactly what was pushed under it."""
    buffer = make(1, 10_000, n=1, seed=0)
    given: list[dict[int, int]] = [{} for _ in range(4)]

    def write(who: int) -> None:
        for number in range(600):
            fields = transition(number, who)
            fields |= {"terminated": True, "truncated": False}
            given[who][buffer.push(**fields)] = 1_000_000 * who + 10 * number

    run(*(lambda who=who: write(who) for who in range(4)))
    pushed = {identity: mark for one in given for identity, mark in one.items()}
    assert sorted(pushed) == list(range(2_400))
    batch = buffer.get(np.array(sorted(pushed)))
    marks = np.array([pushed[identity] for identity in sorted(pushed)])
    assert (batch.obs["large"] == marks[:, None]).all()
    assert (batch.obs["small"] == marks[:, None]).all()
    assert (batch.tag == marks[:, None]).all()
    assert (batch.next_obs["large"] // 10 == marks[:, None] // 10 + 1).all()


@pytest.mark.parametrize("lanes", [1, 4])
def test_threads_that_all_make_the_first_push(lanes):
    """The schema comes from the first push; whoever was a moment later must not start the buffer afresh."""
    for _ in range(40):
        buffer = relive.ReplayBuffer(64, lanes=lanes)
        ids: list[int] = []
        run(*(functools.partial(push_first, buffer, who % lanes, ids) for who in range(8)))
        assert len(set(ids)) == 8
        assert buffer.ids.tolist() == sorted(ids)


def push_first(buffer: relive.ReplayBuffer, lane: int, ids: list[int]) -> None:
    """Push a transition to a buffer that may have no schema yet."""
    obs = np.zeros(3, np.float32)
    ids.append(buffer.push(obs, 0, 0.0, True, obs, lane=lane))


def test_threads_draw_the_batches_that_one_thread_draws():
    """Whoever takes batch number k, it is batch number k: none twice, none left out."""
    one, many = make(2, 50, seed=3), make(2, 50, seed=3)
    for buffer in (one, many):
        for step in range(50):
            buffer.push(**transition(np.array([step, step]), np.arange(2)))
    expected = sorted(one.sample(32).ids.tobytes() for _ in range(400))
    drawn: list[bytes] = []
    run(*[lambda: drawn.extend([many.sample(32).ids.tobytes() for _ in range(100)])] * 4)
    assert sorted(drawn) == expected


def test_a_clear_beside_readers_is_all_or_nothing():
    buffer = make(2, 40, n=1, seed=4)
    stop = threading.Event()

    def write() -> None:
        try:
            for step in range(1_200):
                buffer.push(**transition(np.array([step, step]), np.arange(2)))
                if step % 70 == 69:  # an end of an episode, so that the clear cuts none in two
                    buffer.clear()
        finally:
            stop.set()

    def read() -> None:
        while not stop.is_set():
            try:
                check(buffer.sample(16), 2, 1)
            except relive.NotEnoughDataError:
                continue

    run(write, read, read)


# A batch never changes under its holder: memory is recycled only when nobody holds it.


def settled(size: int = 64) -> relive.ReplayBuffer:
    buffer = make(2, 100, n=1, seed=5)
    for step in range(100):
        buffer.push(**transition(np.array([step, step]), np.arange(2)))
    for _ in range(3):
        buffer.sample(size)  # memory to recycle
    return buffer


def churn(buffer: relive.ReplayBuffer, output: str = "numpy", size: int = 64) -> None:
    """Draw and drop many batches, here and in another thread, so that any memory that may be reused is."""
    gc.collect()

    def draw() -> None:
        for _ in range(60):
            buffer.sample(size, output=output)
            buffer.get(buffer.ids[:size], output=output)

    run(draw, draw)
    draw()


HOLD = {
    "batch": lambda batch: batch,
    "array": lambda batch: batch.obs["small"],
    "scalar field": lambda batch: batch.reward,
    "ids": lambda batch: batch.ids,
    "slice": lambda batch: batch.next_obs["large"][3:9, ::2],
    "row": lambda batch: batch.obs["large"][7],
    "reshaped": lambda batch: batch.obs["small"].reshape(-1),
    "other dtype": lambda batch: batch.obs["small"].view(np.uint8),
    "memoryview": lambda batch: memoryview(batch.next_obs["small"]),
    "frombuffer": lambda batch: np.frombuffer(batch.obs["small"], np.int64),
    "five": lambda batch: list(batch),
    "tree": lambda batch: batch.obs,
    "dict": lambda batch: dict(vars(batch)),
}


@pytest.mark.parametrize("how", HOLD)
def test_whatever_is_held_of_a_batch_stays(how):
    buffer = settled()
    kept = HOLD[how](buffer.sample(64))
    before = frozen(kept)
    churn(buffer)
    assert frozen(kept) == before


def frozen(kept: Any) -> list[bytes]:
    """The bytes of whatever is held."""
    if isinstance(kept, np.ndarray | memoryview):
        return [kept.tobytes()]
    if hasattr(kept, "numpy"):
        return [kept.detach().numpy().tobytes()]
    if isinstance(kept, dict):
        return [part for value in kept.values() for part in frozen(value)]
    if isinstance(kept, list | tuple):
        return [part for value in kept for part in frozen(value)]
    return contents(kept) if hasattr(kept, "obs") else []


TORCH_HOLD = {
    "batch": lambda batch, torch: batch,
    "tensor": lambda batch, torch: batch.obs["small"],
    "slice": lambda batch, torch: batch.obs["small"][3:9, ::2],
    "storage": lambda batch, torch: batch.reward.view(8, 8).t(),
    "numpy": lambda batch, torch: batch.next_obs["small"].numpy(),
    "detached": lambda batch, torch: batch.reward.detach(),
    "dlpack": lambda batch, torch: torch.from_dlpack(batch.reward),
    "chunks": lambda batch, torch: list(batch.obs["small"].chunk(4)),
}


@pytest.mark.parametrize("how", TORCH_HOLD)
def test_whatever_is_held_of_a_batch_of_tensors_stays(how):
    torch = pytest.importorskip("torch")
    buffer = settled()
    kept = TORCH_HOLD[how](buffer.sample(64, output="torch"), torch)
    before = frozen(kept)
    churn(buffer, "torch")
    churn(buffer, "numpy")
    assert frozen(kept) == before


def test_tensors_made_from_arrays_stay():
    torch = pytest.importorskip("torch")
    buffer = settled()
    batch = buffer.sample(64)
    kept = [torch.from_numpy(batch.obs["small"]), torch.as_tensor(batch.reward), torch.from_dlpack(batch.discount)]
    before = frozen(kept)
    del batch
    churn(buffer)
    churn(buffer, "torch")
    assert frozen(kept) == before


@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_a_graph_that_saved_a_batch_computes_its_gradient_from_it(output):
    """Autograd keeps the tensor's memory alive from C++, where no Python reference can be seen."""
    torch = pytest.importorskip("torch")
    buffer = settled()
    batch = buffer.sample(64, output=output)
    reward, discount = torch.as_tensor(batch.reward), torch.as_tensor(batch.discount)
    expected = (reward.clone() * discount.clone()).sum()
    weight = torch.ones((), requires_grad=True)
    loss = ((weight * reward) * discount).sum()
    del batch, reward, discount
    churn(buffer, "torch")
    churn(buffer, "numpy")
    loss.backward()
    assert weight.grad == expected


def test_a_tensor_held_only_by_a_graph_stays():
    """The same with a saved tensor of which nothing else is left: the matrix product saves its input."""
    torch = pytest.importorskip("torch")
    buffer = relive.ReplayBuffer(64, seed=0)
    rng = np.random.default_rng(0)
    for _ in range(64):
        buffer.push(rng.normal(size=8).astype(np.float32), 0, 0.0, True, rng.normal(size=8).astype(np.float32))
    for _ in range(4):
        buffer.sample(32, output="torch")
    weight = torch.zeros(3, 8, requires_grad=True)
    expected = buffer.sample(32, output="torch")
    expected, ids = expected.obs.clone().sum(0), expected.ids.clone()
    loss = torch.nn.functional.linear(buffer.get(ids.numpy(), output="torch").obs, weight).sum()
    for _ in range(100):
        buffer.sample(32, output="torch")
        buffer.sample(32)
    loss.backward()
    torch.testing.assert_close(weight.grad, expected.expand(3, 8))


@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_writing_to_a_batch_changes_nothing_else(output):
    """A batch is its holder's: scaling it in place reaches neither the buffer, nor another batch, nor another field."""
    pytest.importorskip("torch")
    buffer = relive.ReplayBuffer(20, view=relive.Transitions(2, GAMMA, stack=3), seed=1)
    for step in range(20):
        buffer.push(np.full((4, 4), step, np.float32), step, 1.0, step % 6 == 5, np.full((4, 4), step + 1, np.float32))
    before = fingerprint(buffer)
    ids = np.array([3, 3, 4, 9])
    first, second = buffer.get(ids, output=output), buffer.get(ids, output=output)
    rows, others = contents(second), [np.asarray(field).tobytes() for field in (first.next_obs, first.reward)]
    first.obs[...] = -1
    assert [np.asarray(field).tobytes() for field in (first.next_obs, first.reward)] == others
    assert contents(second) == rows
    del first
    churn(buffer, output, size=4)
    assert contents(buffer.get(ids, output=output)) == rows
    assert fingerprint(buffer) == before


# out=: the caller's memory, again and again.


@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_out_is_written_in_place(output):
    pytest.importorskip("torch")
    buffer, fresh = settled(), settled()
    batch = buffer.sample(64, output=output)
    fresh.sample(64)
    places = addresses(batch)
    for _ in range(3):
        again = buffer.sample(64, output=output, out=batch)
        assert addresses(again) == addresses(batch) == places
        assert contents(again) == contents(batch) == contents(fresh.sample(64))
    ids = buffer.ids[-64:]
    assert addresses(buffer.get(ids, output=output, out=batch)) == places
    assert contents(batch) == contents(buffer.get(ids))


def addresses(batch: Any) -> list[int]:
    """Where the arrays of a batch lie."""
    fields = (batch.obs, batch.action, batch.reward, batch.terminated, batch.next_obs, batch.discount, batch.ids)
    return [np.asarray(leaf).__array_interface__["data"][0] for field in fields for leaf in leaves(field)]


def test_out_that_does_not_fit_is_refused():
    buffer = settled()
    batch = buffer.sample(64)
    before, expected = contents(batch), settled()
    expected.sample(64)
    for wrong in (buffer.get(buffer.ids[:32]), other_kind(), {"obs": 1}, np.zeros(64)):
        with pytest.raises(relive.ReplayError, match="out"):
            buffer.sample(64, out=wrong)
    assert contents(batch) == before
    assert contents(buffer.sample(64)) == contents(expected.sample(64))  # no batch number was used up


def other_kind() -> Any:
    """A batch of the right size of another schema."""
    buffer = relive.ReplayBuffer(64)
    for _ in range(64):
        buffer.push(np.zeros(2, np.float32), 0, 0.0, False, np.zeros(2, np.float32))
    return buffer.get(buffer.ids)
