"""A batch never changes under its holder: memory is recycled only when nobody holds it."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest

import relive
from model.compare import fingerprint
from model.marked import GAMMA, contents, make, run, transition
from model.reference import leaves


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
