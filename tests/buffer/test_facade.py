"""What a user sees first: the original five fields, what a buffer says of itself, and what it takes of the machine."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

import relive

MIB = 2**20


def test_the_original_five_fields_in_the_original_order():
    buffer = relive.ReplayBuffer(10_000, seed=0)
    for step in range(50):
        state, next_state = np.full(4, step, np.float32), np.full(4, step + 1, np.float32)
        buffer.push(state, step % 2, float(step), step == 49, next_state)
    state, action, reward, done, next_state = buffer.sample(32)
    assert (state.shape, action.shape, reward.shape, done.shape, next_state.shape) == ((32, 4), *[(32,)] * 3, (32, 4))
    assert (state[:, 0] == reward).all()
    assert (next_state[:, 0] == reward + 1).all()
    assert (action == reward % 2).all()
    assert (done == (reward == 49)).all()


def test_the_defaults_are_the_original_algorithm():
    buffer = relive.ReplayBuffer(100)
    assert buffer.view == relive.Transitions(n=1, gamma=0.99, stack=1, padding="repeat")
    assert buffer.sampler == relive.Uniform()
    assert buffer.storage == relive.Memory()
    assert (buffer.capacity, buffer.lanes, buffer.schema, len(buffer)) == (100, 1, None, 0)


def test_a_buffer_and_a_batch_describe_themselves():
    buffer = relive.ReplayBuffer(1_000, view=relive.Transitions(n=3), seed=7)
    assert "schema" in repr(buffer)
    for _ in range(12):
        buffer.push(np.zeros(4, np.float32), 0, 0.0, False, np.zeros(4, np.float32), logp=0.5)
    for piece in ("12", "1,000", "n=3", "seed=7", "Uniform", "Memory", "obs: float32 (4,)", "logp"):
        assert piece in repr(buffer)
    batch = buffer.sample(5)
    for piece in ("obs=float32[5, 4]", "action=int64[5]", "logp", "discount"):
        assert piece in repr(batch)
    with pytest.raises(AttributeError, match="colour"):
        _ = batch.colour


def test_a_batch_can_be_copied_and_pickled():
    buffer = relive.ReplayBuffer(8, seed=0)
    buffer.push({"x": np.ones(2, np.float32)}, 0, 1.0, False, {"x": np.zeros(2, np.float32)})
    batch = buffer.sample(3)
    for again in (copy.deepcopy(batch), pickle.loads(pickle.dumps(batch))):
        assert again.obs["x"].tolist() == batch.obs["x"].tolist()
        assert again.ids.tolist() == batch.ids.tolist()


def test_a_batch_of_no_ids_is_empty():
    buffer = relive.ReplayBuffer(8)
    buffer.push(np.ones(2, np.float32), 0, 1.0, False, np.zeros(2, np.float32))
    assert buffer.get(np.array([], np.int64)).obs.shape == (0, 2)
    assert buffer.get([]).ids.tolist() == []


def test_ids_may_be_any_integers():
    buffer = relive.ReplayBuffer(8)
    for step in range(5):
        buffer.push(np.float32(step), step, 1.0, True, np.float32(-step))
    batch = buffer.sample(4)
    assert buffer.get(batch.ids).action.tolist() == batch.action.tolist()
    for ids in ([4, 0, 4], (4, 0, 4), np.array([4, 0, 4], np.uint8), np.array([4, 9, 0, 9, 4])[::2]):
        assert buffer.get(ids).action.tolist() == [4, 0, 4]


# Tensors.


def small() -> relive.ReplayBuffer:
    buffer = relive.ReplayBuffer(64, seed=3)
    for step in range(64):
        state = {"x": np.full((2, 3), step, np.float32), "y": np.uint8(step)}
        buffer.push(state, step, float(step), step % 9 == 8, state)
    return buffer


def test_tensors_hold_what_arrays_hold():
    torch = pytest.importorskip("torch")
    arrays, tensors = small().sample(16), small().sample(16, output="torch")
    for name in ("action", "reward", "terminated", "truncated", "discount", "ids"):
        tensor = getattr(tensors, name)
        assert isinstance(tensor, torch.Tensor)
        assert tensor.device.type == "cpu"
        assert np.array_equal(tensor.numpy(), getattr(arrays, name))
    for name in ("obs", "next_obs"):
        for leaf in ("x", "y"):
            assert np.array_equal(getattr(tensors, name)[leaf].numpy(), getattr(arrays, name)[leaf])
    assert tensors.terminated.dtype == torch.bool
    assert tensors.reward.dtype == torch.float32


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_tensors_go_to_the_device_asked_for(device):
    torch = pytest.importorskip("torch")
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    buffer, twin = small(), small()
    held = []
    for _ in range(20):
        batch, expected = buffer.sample(16, output="torch", device=device), twin.sample(16)
        assert batch.obs["x"].device.type == batch.ids.device.type == device
        held.append((batch, expected.obs["x"].copy(), expected.reward.copy()))
    for batch, obs, reward in held:
        assert np.array_equal(batch.obs["x"].cpu().numpy(), obs)
        assert np.array_equal(batch.reward.cpu().numpy(), reward)


def test_devices_that_are_not_there():
    torch = pytest.importorskip("torch")
    buffer, twin = small(), small()
    wrong = ["abacus", "cuda:999"] + ([] if torch.cuda.is_available() else ["cuda"])
    for device in wrong:
        with pytest.raises(relive.ConfigError, match="device"):
            buffer.sample(4, output="torch", device=device)
    assert buffer.sample(4).ids.tolist() == twin.sample(4).ids.tolist()  # nothing was drawn


def test_a_dtype_without_a_tensor_is_refused():
    pytest.importorskip("torch")
    schema = relive.Schema(relive.Field("float32"), relive.Field("int64"), {"name": relive.Field("U4")})
    buffer = relive.ReplayBuffer(4, schema, seed=0)
    buffer.push(0.0, 0, 0.0, False, 0.0, name="abc")
    with pytest.raises(relive.ConfigError, match="torch"):
        buffer.sample(2, output="torch")
    assert buffer.sample(2).name.tolist() == ["abc", "abc"]


# What it takes of the machine.


FRAMES = relive.Schema(relive.Field("uint8", (84, 84)), relive.Field("int64", (), 0, 17))


def resident() -> int:
    """Bytes of this process that lie in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="measured by Linux")


def test_a_frame_workload_takes_one_frame_a_transition():
    """Within 2 %: next_obs and the stack of four are derived."""
    plan = relive.plan(FRAMES, 100_000, relive.Transitions(n=3, stack=4))
    assert plan.transition_bytes <= 1.02 * 84 * 84
    assert plan.full_bytes <= 1.02 * 100_000 * 84 * 84


@needs_proc
def test_an_empty_buffer_of_100_gb_costs_nothing():
    before = resident()
    buffer = relive.ReplayBuffer(100 * 2**30 // 7_200, FRAMES)
    assert buffer.capacity > 14_000_000
    assert resident() - before < 4 * MIB
    frame = np.ones((84, 84), np.uint8)
    buffer.push(frame, 1, 0.0, False, frame)
    assert buffer.sample(4).obs.all()
    assert resident() - before < 16 * MIB  # a few pages, each of 2 MiB at most


@needs_proc
def test_memory_is_taken_as_it_is_filled_and_as_the_plan_says():
    view, count = relive.Transitions(stack=4), 8_000
    plan = relive.plan(FRAMES, count, view)
    buffer = relive.ReplayBuffer(count, FRAMES, view=view)
    state = np.zeros((84, 84), np.uint8)
    before = resident()
    for step in range(3 * count):
        after = np.full((84, 84), step % 251, np.uint8)
        buffer.push(state, 0, 0.0, step % 500 == 499, after)
        state = after
    assert len(buffer) == count
    ended = count // 500 + 1
    assert resident() - before <= 1.02 * plan.bytes(ended) + 8 * MIB


def test_a_plan_that_cannot_fit_is_refused_with_the_figures():
    with pytest.raises(relive.ConfigError, match=r"[GT]iB.*7,\d\d\d B.*fits") as raised:
        relive.plan(FRAMES, 10**9)
    fits = int(str(raised.value).split("capacity of ")[1].split(" ")[0].replace(",", ""))
    assert relive.plan(FRAMES, fits).full_bytes <= relive.plan(FRAMES, 1).available_bytes
    with pytest.raises(relive.ConfigError, match="8 or 12"):
        relive.plan(FRAMES, 10, lanes=4)


@pytest.mark.parametrize("capacity", [10**12, 10**15, 10**18, 2**63, 10**30])
def test_a_capacity_beyond_any_machine_is_refused(capacity):
    with pytest.raises(relive.ConfigError, match=r"capacity|Memory"):
        relive.ReplayBuffer(capacity, FRAMES)
