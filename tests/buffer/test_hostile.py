"""What a hostile user found: each of these once lost data, ended the process, or raised from deep inside."""

import copy
import pickle
import subprocess
import sys
import weakref

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv

import relive
from relive import Field

ZEROS = np.zeros(4, np.float32)


def made() -> relive.ReplayBuffer:
    return relive.ReplayBuffer(8, relive.Schema(Field("float32", (4,)), Field("int64", (), 0, 3)), seed=0)


def misaligned() -> np.ndarray:
    block = np.frombuffer(bytearray(200), np.float32, 12, offset=1).reshape(3, 4)
    assert not block.flags.aligned
    assert block.flags.c_contiguous
    return block


@pytest.mark.parametrize("schema", ["given", "from the first push"])
def test_misaligned_arrays_are_stored(schema):
    buffer = made() if schema == "given" else relive.ReplayBuffer(8, seed=0)
    block = misaligned()
    block[:] = np.arange(12).reshape(3, 4)
    assert buffer.push(block[0], 0, 0.0, False, block[1]) == 0
    flags = np.zeros(1, bool)
    assert buffer.extend(block[1:2], np.zeros(1, int), np.zeros(1), flags, block[2:]).tolist() == [1]
    assert buffer.get(np.array([0, 1])).next_obs.tolist() == block[1:].tolist()


def test_misaligned_ids_are_read():
    buffer = made()
    buffer.push(ZEROS, 0, 0.0, False, ZEROS)
    ids = np.frombuffer(bytearray(17), np.int64, 2, offset=1)
    assert buffer.get(ids).ids.tolist() == [0, 0]


@pytest.mark.parametrize("reward", [1e39, -1e300, 10**39, np.float64(1e39), np.longdouble("1e400")])
@pytest.mark.parametrize("obs", [ZEROS, np.zeros(4, np.float16)], ids=["as it is", "cast"])
def test_a_reward_that_would_become_infinite_is_refused(reward, obs):
    buffer = made()
    with pytest.raises(relive.SchemaError, match="reward"):
        buffer.push(obs, 0, reward, False, ZEROS)
    with pytest.raises(relive.SchemaError, match="reward"):
        buffer.extend(ZEROS[None], [0], [reward], [False], ZEROS[None])
    assert len(buffer) == 0
    buffer.push(obs, 0, np.inf, False, ZEROS)  # said so
    assert buffer.get([0]).reward[0] == np.inf


def test_masked_arrays_are_refused():
    with pytest.raises(relive.SchemaError, match=r"obs: .*masked"):
        made().push(np.ma.array(ZEROS, mask=[0, 1, 0, 0]), 0, 0.0, False, ZEROS)
    with pytest.raises(relive.SchemaError, match=r"reward: .*masked"):
        made().push(ZEROS, 0, np.ma.masked, False, ZEROS)


@pytest.mark.parametrize("shape", [(2**32, 2**32), (2**61,), (2**70,), (1,) * 31])
def test_fields_beyond_all_memory_are_refused(shape):
    with pytest.raises(relive.ConfigError, match=r"shape|sides"):
        Field("float64", shape)


def test_tensors_that_numpy_cannot_read_are_refused_by_name():
    torch = pytest.importorskip("torch")
    for bad in (
        torch.zeros(4, requires_grad=True),
        torch.zeros(4, dtype=torch.bfloat16),
        torch.zeros(4, device="meta"),
    ):
        with pytest.raises(relive.SchemaError, match="obs: expected float32"):
            made().push(bad, 0, 0.0, False, ZEROS)


def test_an_out_that_is_no_batch_is_refused():
    torch = pytest.importorskip("torch")
    buffer = made()
    buffer.push(ZEROS, 0, 0.0, False, ZEROS)
    for output in ("numpy", "torch"):
        with pytest.raises(relive.ConfigError, match="out: expected a batch"):
            buffer.sample(2, output=output, out=[1, 2])
    batch = buffer.sample(2, output="torch")
    for wrong in (np.zeros(2, np.float32), [0.0, 0.0], torch.zeros(2, requires_grad=True), torch.zeros(2).bfloat16()):
        with pytest.raises(relive.ConfigError, match="out: expected"):
            buffer.sample(2, out=relive.Batch({**vars(batch), "reward": wrong}))
    with pytest.raises(relive.ConfigError, match="device"):
        buffer.sample(2, output="torch", device=[1])


def test_a_buffer_is_neither_copied_nor_pickled():
    for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(relive.ConfigError, match="cannot be copied"):
            attempt(made())


@pytest.mark.parametrize("name", ["self", "info", "__dict__", "priority", 1])
def test_extras_that_could_never_be_pushed_are_refused(name):
    with pytest.raises(relive.ConfigError, match="another name"):
        relive.Schema(Field("float32"), Field("int64"), {name: Field("float32")})


def test_keys_that_are_no_strings_are_refused():
    with pytest.raises(relive.ConfigError, match="keys that are strings, got 1"):
        relive.ReplayBuffer(4).push({1: 0.0}, 0, 0.0, False, {1: 1.0})


def test_numpy_numbers_are_numbers():
    view = relive.Transitions(n=np.int64(3), gamma=np.float32(0.5), stack=np.uint8(2))
    assert view == relive.Transitions(n=3, gamma=0.5, stack=2)
    assert relive.Schema(Field("float32"), Field("int64"), lanes=np.int64(2)).lanes == 2


class Small(gymnasium.Env):
    """Ends at every step; its observation is one byte."""

    observation_space = gymnasium.spaces.Box(0, 255, (2,), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.uint8), {}

    def step(self, action):
        return np.ones(2, np.uint8), 0.0, True, False, {}


def stepped(metadata="SameStep"):
    envs = SyncVectorEnv([Small] * 2, autoreset_mode=metadata)
    buffer = relive.ReplayBuffer(8, relive.Schema.from_env(envs), seed=0)
    writer = buffer.writer(envs)
    writer.reset(envs.reset()[0])
    action = np.zeros(2, np.int64)
    return buffer, writer, (action, *envs.step(action))


@pytest.mark.parametrize("final", [[300, -1], [2.5, 1.0], ["1", "2"], [[1], [1, 2]], [1, 2, 3]])
def test_a_final_observation_that_does_not_fit_is_refused(final):
    buffer, writer, (action, obs, reward, terminated, truncated, _) = stepped()
    finals = np.empty(2, object)
    finals[:] = [final, [1, 1]]
    with pytest.raises(relive.SchemaError, match="final_obs"):
        writer.step(action, obs, reward, terminated, truncated, {"final_obs": finals})
    assert len(buffer) == 0


def test_a_reset_with_the_info_is_told_what_to_leave_out():
    envs = SyncVectorEnv([Small] * 2)
    writer = relive.ReplayBuffer(8, relive.Schema.from_env(envs), seed=0).writer(envs)
    with pytest.raises(relive.SchemaError, match=r"mask: .* Pass the observations alone"):
        writer.reset(*envs.reset())


@pytest.mark.parametrize("info", [None, {}, {"final_obs": 3}, {"final_obs": [1]}, {"final_obs": {"a": 1}}])
def test_an_info_without_final_observations_is_refused(info):
    buffer, writer, (action, obs, reward, terminated, truncated, _) = stepped()
    with pytest.raises(relive.ProtocolError, match="final_obs"):
        writer.step(action, obs, reward, terminated, truncated, info)
    assert len(buffer) == 0


@pytest.mark.parametrize("name", ["action", "reward", "terminated", "truncated"])
@pytest.mark.parametrize("wrong", [[[1], [1, 2]], np.zeros(3)])
def test_a_step_with_a_value_that_does_not_fit_is_refused(name, wrong):
    buffer, writer, values = stepped()
    names = ("action", "obs", "reward", "terminated", "truncated", "info")
    with pytest.raises(relive.SchemaError, match=name):
        writer.step(**{**dict(zip(names, values, strict=True)), name: wrong})
    assert len(buffer) == 0


def test_a_callback_that_samples_while_an_array_goes():
    """Bug: the pool dropped an array while it stood in the pool's own list."""
    buffer, busy, refs = made(), [], []
    buffer.push(ZEROS, 0, 0.0, False, ZEROS)

    def again(_):
        if not busy:
            busy.append(1)
            buffer.sample(8)
            busy.clear()

    for _ in range(300):
        batch = buffer.sample(8)
        batch.obs.flags.writeable = False
        refs.append(weakref.ref(batch.obs, again))
        del batch


def run(code: str) -> subprocess.CompletedProcess[str]:
    head = (
        "import os, sys, threading, numpy as np, relive\n"
        "buffer = relive.ReplayBuffer(500, seed=0)\n"
        "frame = np.zeros((84, 84), np.uint8)\n"
        "for _ in range(200): buffer.push(frame, 0, 0.0, False, frame)\n"
        "def loop():\n"
        "    while not done: buffer.sample(64)\n"
        "done = False\n"
    )
    return subprocess.run([sys.executable, "-c", head + code], capture_output=True, text=True, timeout=120)


def test_daemon_threads_do_not_abort_the_end_of_the_process():
    code = (
        "for _ in range(3): threading.Thread(target=loop, daemon=True).start()\n"
        "for _ in range(20): buffer.sample(64)\n"
        "print('end', flush=True)\n"
    )
    for _ in range(3):
        done = run(code)
        assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


def test_a_child_of_a_fork_can_push_and_sample():
    code = (
        "thread = threading.Thread(target=loop); thread.start()\n"
        "for _ in range(8):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        buffer.push(frame, 0, 0.0, False, frame); buffer.sample(4); os._exit(7)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)\n"
        "done = True\n"
    )
    assert run(code).stdout.split() == ["7"] * 8
