"""`relive check PATH`: every format, damaged snapshots, what it says and how it ends."""

from __future__ import annotations

import json
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from recordings import Row, block, record, record_naively, vector

import relive
from relive.audit import check_path
from relive.cli import main

NAMES = {"minari": "data", "d4rl": "data.hdf5", "parquet": "data.parquet", "npz": "data.npz", "snapshot": "snap"}


def push_all(buffer: relive.ReplayBuffer, lanes: list[list[Row]]) -> relive.ReplayBuffer:
    """The buffer, with the rows of each lane in it."""
    for lane, rows in enumerate(lanes):
        one = block(rows)
        where = lane if len(lanes) > 1 else None
        buffer.extend(
            one.obs, one.action, one.reward, one.terminated, one.next_obs, truncated=one.truncated, lane=where
        )
    return buffer


def recorded(lanes: list[list[Row]], capacity: int, **axes: Any) -> relive.ReplayBuffer:
    """A buffer of CartPole."""
    schema = relive.Schema(relive.Field("float32", (4,)), relive.Field("int64", (), 0, 1), lanes=len(lanes))
    return push_all(relive.ReplayBuffer(capacity, schema, seed=0, **axes), lanes)


@pytest.fixture(scope="module")
def clean() -> relive.ReplayBuffer:
    """Episodes that end by either flag, in a ring that is full and cut the first of them."""
    return recorded([record(gymnasium.make("CartPole-v1", max_episode_steps=30), 2500)], 2000)


@pytest.fixture(scope="module")
def lost() -> relive.ReplayBuffer:
    """Two lanes whose final observations are lost."""
    return recorded(record_naively(vector("CartPole-v1", 2, AutoresetMode.SAME_STEP), 1000), 2000)


@pytest.fixture(scope="module")
def resets() -> relive.ReplayBuffer:
    """Two lanes with NEXT_STEP's resets in them."""
    return recorded(record_naively(vector("CartPole-v1", 2, AutoresetMode.NEXT_STEP), 1000), 2000)


def written(buffer: relive.ReplayBuffer, place: Path, kind: str) -> Path:
    """The buffer's contents as a file or directory."""
    path = place / NAMES[kind]
    if kind == "snapshot":
        buffer.save(path)
    else:
        relive.interop.write(relive.interop.of_buffer(buffer), path, format=kind)
    return path


@pytest.mark.parametrize("kind", NAMES)
def test_every_format_passes(clean, tmp_path, kind):
    path = written(clean, tmp_path, kind)
    report = check_path(path)
    assert not report.findings, str(report)
    assert report.num_transitions == 2000
    assert main(["check", str(path)]) == 0


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("mistake", ["lost", "resets"])
def test_mistakes_are_found_in_every_format(request, tmp_path, capsys, kind, mistake):
    path = written(request.getfixturevalue(mistake), tmp_path, kind)
    assert main(["check", str(path)]) == 1
    said = capsys.readouterr().out
    assert {"lost": "the final observations are lost", "resets": "resets are stored"}[mistake] in said
    assert said.strip().splitlines()[-1] == "Not sound: 1 error."


def sb3_pickle(path: Path, lanes: list[list[Row]], size: int, shared: bool) -> Path:
    """What `save_replay_buffer` writes, by a class of the same name: a ring, flags as float32."""
    module = types.ModuleType("stable_baselines3.common.buffers")
    module.ReplayBuffer = type("ReplayBuffer", (), {"__module__": module.__name__})  # type: ignore[attr-defined]
    count = len(lanes[0])
    at = np.arange(count) % size
    state: dict[str, Any] = {
        **{"buffer_size": size, "n_envs": len(lanes), "full": count >= size, "pos": count % size},
        **{"optimize_memory_usage": shared, "handle_timeout_termination": not shared},
    }
    columns = [block(rows) for rows in lanes]
    fields: dict[str, list[Any]] = {
        "observations": [one.obs for one in columns],
        "next_observations": [one.next_obs for one in columns],
        "actions": [one.action[:, None] for one in columns],
        "rewards": [one.reward for one in columns],
        "dones": [(one.terminated | one.truncated).astype(np.float32) for one in columns],
        "timeouts": [one.truncated.astype(np.float32) * (not shared) for one in columns],
    }
    for name, arrays in fields.items():
        values = np.stack(arrays, axis=1)
        state[name] = np.zeros((size, *values.shape[1:]), values.dtype)
        state[name][at] = values
    if shared:  # next_obs is what stands in the row that follows
        state["observations"][(at[-1] + 1) % size] = state.pop("next_observations")[at[-1]]
    buffer = module.ReplayBuffer()
    buffer.__dict__.update(state)
    parents = {name: types.ModuleType(name) for name in ("stable_baselines3", "stable_baselines3.common")}
    with pytest.MonkeyPatch.context() as patch:
        for name, parent in {**parents, module.__name__: module}.items():
            patch.setitem(sys.modules, name, parent)
        path.write_bytes(pickle.dumps(buffer))
    return path


@pytest.mark.parametrize("shared", [False, True], ids=["apart", "optimize_memory_usage"])
def test_buffers_of_stable_baselines3(tmp_path, shared):
    """With `optimize_memory_usage` final observations are lost, without it nothing is."""
    env = gymnasium.make("CartPole-v1")
    path = sb3_pickle(tmp_path / "sb3.pkl", [record(env, 1500, seed) for seed in (0, 1)], 1000, shared)
    with pytest.raises(relive.ConfigError, match="trust"):
        check_path(path)
    report = check_path(path, trust_pickle=True)
    assert [found.words[:32] for found in report.findings] == ["the final observations are lost:"] * shared
    assert main(["check", str(path), "--trust-pickle"]) == int(shared)


def test_a_pickle_that_is_code_is_refused_and_not_run(tmp_path, capsys):
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(Evil()))
    assert main(["check", str(path)]) == 2
    assert main(["check", str(path), "--trust-pickle"]) == 2
    assert not Evil.ran
    assert capsys.readouterr().out == ""


class Evil:
    """Runs code when it is unpickled."""

    ran: list[int] = []  # noqa: RUF012

    def __reduce__(self) -> tuple[Callable[[int], None], tuple[int]]:
        return self.ran.append, (1,)


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_damage_anywhere_is_an_error_that_names_the_file(clean, tmp_path, capsys, compression):
    path = tmp_path / "snap"
    clean.save(path, compression=compression)
    files = sorted(path.iterdir())
    assert len(files) > 2
    for file in files:
        if file.name == "lock" or not file.stat().st_size:
            continue
        whole = file.read_bytes()
        for damaged in (
            whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :],
            b"",
        ):
            file.write_bytes(damaged)
            report = check_path(path)
            assert [(found.rule, found.severity) for found in report.findings] == [("checksums", "error")], file
            assert file.name in report.findings[0].words
            assert main(["check", str(path)]) == 1
            assert str(file) in capsys.readouterr().out
        file.write_bytes(whole)
    assert check_path(path).passes


@pytest.mark.parametrize("sampler", [relive.Prioritized(), relive.samplers.RankBased()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("compression", [None, "zstd"])
def test_priorities_that_nobody_updates(tmp_path, sampler, compression):
    """A learner that draws, and never says how wrong it was."""
    buffer = recorded([record(gymnasium.make("CartPole-v1"), 500)], 500, sampler=sampler)
    path = tmp_path / "snap"
    buffer.save(path, compression=compression)
    assert not check_path(path).findings, "nothing was drawn yet"
    for _ in range(200):
        batch = buffer.sample(8)
    buffer.save(path, compression=compression)
    (found,) = check_path(path).findings
    assert (found.rule, found.severity, found.count) == ("priorities", "warning", 500)
    assert "although 200 batches were drawn" in found.words
    buffer.update_priorities(batch.ids, np.linspace(0.1, 0.9, 8))
    buffer.save(path, compression=compression)
    assert not check_path(path).findings


def test_priorities_that_are_all_the_same(tmp_path):
    """Somebody gave them: that is no reason to complain."""
    buffer = recorded([record(gymnasium.make("CartPole-v1"), 100)], 100, sampler=relive.Prioritized())
    for _ in range(200):
        buffer.sample(8)
    buffer.update_priorities(buffer.ids, np.full(100, 5.0))
    buffer.save(tmp_path / "snap")
    assert not check_path(tmp_path / "snap").findings


def test_priorities_of_windows_that_nobody_updates(tmp_path):
    """Transitions that begin no window have none."""
    view = relive.Sequences(8, stride=4)
    rows = record(gymnasium.make("CartPole-v1"), 500)
    buffer = recorded([rows], 500, sampler=relive.Prioritized(), view=view)
    for _ in range(200):
        buffer.sample(8)
    buffer.save(tmp_path / "snap")
    (found,) = check_path(tmp_path / "snap").findings
    assert (found.rule, found.count) == ("priorities", len(buffer.anchors))
    assert found.count < 300


def test_a_snapshot_whose_sampler_and_view_are_code(tmp_path):
    """A check needs neither the user's reward function nor the user's sampler."""
    goals = {name: relive.Field("float32", (2,)) for name in ("achieved_goal", "desired_goal")}
    view = relive.Hindsight("future", 4, lambda achieved, desired: achieved[:, 0])
    buffer = relive.ReplayBuffer(50, relive.Schema(goals, relive.Field("int64")), sampler=First(), view=view, seed=0)
    places = np.random.default_rng(0).normal(size=(41, 2)).astype(np.float32)
    for t in range(40):
        obs, following = ({"achieved_goal": places[at], "desired_goal": places[0]} for at in (t, t + 1))
        buffer.push(obs, 0, 1.0, False, following)
    buffer.save(tmp_path / "snap")
    assert not check_path(tmp_path / "snap").findings


class First:
    """Draws the first."""

    def draw(self, ids: Any, n: int, rng: Any) -> Any:
        """Always the same."""
        return ids[:1].repeat(n)


def test_a_buffer_that_nothing_was_pushed_to(tmp_path):
    relive.ReplayBuffer(10, relive.Schema(relive.Field("int64"), relive.Field("int64"))).save(tmp_path / "snap")
    assert not check_path(tmp_path / "snap").findings


def test_what_is_no_dataset(tmp_path, capsys):
    (tmp_path / "text").write_text("Hello")
    for args in (["nothing"], ["text"], ["."], ["text", "--format", "snapshot"], ["text", "--steps", "9"], []):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            assert main(["check", *args]) == 2, args
        said = capsys.readouterr()
        assert not said.out
        assert len(said.err.strip().splitlines()) == 1, said.err


def test_the_report_as_json(lost, tmp_path, capsys):
    path = written(lost, tmp_path, "npz")
    assert main(["check", str(path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["passes"]
    assert report["findings"][0]["rule"] == "ends"
    assert report["findings"][0]["first"] == {"lane": 0, "index": next(t for t in range(99) if ended(lost, t))}


def ended(buffer: relive.ReplayBuffer, t: int) -> bool:
    """Whether transition t of lane 0 is the last of its episode."""
    return bool(buffer.get([2 * t]).terminated[0])


@pytest.mark.parametrize("kind", ["npz", "parquet", "d4rl", "minari"])
def test_not_a_number_in_a_file(tmp_path, kind):
    rows = record(gymnasium.make("CartPole-v1"), 300)
    rows[7] = (*rows[7][:2], float("nan"), *rows[7][3:])
    report = check_path(written(recorded([rows], 300), tmp_path, kind))
    assert [(found.rule, found.count, found.first.index) for found in report.errors if found.first] == [
        ("finite", 1, 7)
    ]


def test_a_check_with_a_finding_is_not_ok_in_json(tmp_path, capsys):
    """Once it said "no NaN, no inf" beside the NaN that it had found."""
    fields = {"obs": np.zeros((3, 1), np.float32), "action": np.zeros(3, int), "terminated": np.zeros(3, bool)}
    np.savez(tmp_path / "nan.npz", reward=np.array([0, np.nan, 0], np.float32), **fields)
    assert main(["check", str(tmp_path / "nan.npz"), "--json"]) == 1
    checks = {one["rule"]: one for one in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["finite"] == {"rule": "finite", "ok": False, "words": None}
    assert checks["reading"] == {"rule": "reading", "ok": True, "words": "every block can be read"}


def test_nothing_to_check(tmp_path, capsys):
    fields = {"obs": np.zeros((0, 1), np.float32), "action": np.zeros(0, int), "terminated": np.zeros(0, bool)}
    np.savez(tmp_path / "none.npz", reward=np.zeros(0, np.float32), next_obs=fields["obs"], **fields)
    assert main(["check", str(tmp_path / "none.npz")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Nothing to check: 0 transitions."
