"""Runs on a Ray of this machine: what they leave behind, what is refused, and how they go on."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import relive
from relive import disk
from relive.cli import main
from relive.dqn import AgentConfig, TrainConfig
from relive.errors import ConfigError
from relive.snapshot import frame
from relive.train import Progress, resume, train
from relive.train.actor_log import read_actors
from relive.train.checkpoint import checkpoint_step
from relive.train.log import read_metrics
from relive.train.processes import limiter_for
from relive.train.rundir import save_config
from relive.train.schedules import updates_owed

pytest.importorskip("ray")

TINY = TrainConfig(
    env="CartPole-v1",
    ray="local",
    steps=2000,
    actors=2,
    shards=2,
    num_envs=2,
    capacity=2400,
    learning_starts=200,
    replay_ratio=0.5,
    eval_every=1000,
    eval_episodes=4,
    final_eval_episodes=10,
    checkpoint_every=1000,
    agent=AgentConfig(hidden=(64,), batch_size=64, learning_rate=2e-3, target_every=50, double=True),
)
PRIORITIZED = replace(
    TINY,
    sampler="prioritized",
    steps=4000,
    replay_ratio=1.0,
    eval_every=500,
    agent=replace(TINY.agent, n_step=3, target_every=10),
)


def alive() -> list[dict[str, Any]]:
    """Ray actors that there are."""
    from ray._private.state import actors

    return [one for one in actors().values() if one["State"] != "DEAD"]


def all_gone() -> bool:
    """Whether Ray has no actor any more, within a while."""
    until = time.monotonic() + 60
    while alive() and time.monotonic() < until:
        time.sleep(0.05)
    return not alive()


def shard_rows(run: Path, shard: int, lane: int) -> relive.Batch:
    """All rows of a lane in the snapshot of a shard."""
    buffer = relive.load(run / "checkpoint" / "replay" / f"shard-{shard:03d}")
    ids = buffer.ids[buffer.ids % buffer.lanes == lane]
    return buffer.reader(view=relive.Transitions(), sampler=relive.Uniform()).get(ids)


def test_a_run_learns_and_leaves_the_same_kind_of_run(
    local_ray: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bug: a lane that nobody writes, rows that do not chain, a file or column missing, actors that stay behind."""
    notes: list[str] = []
    run = tmp_path / "run"
    result = train(PRIORITIZED, run, report=lambda now: notes.extend(now.notes))
    assert (result.status, result.steps, result.restarts, notes) == ("finished", 4000, 0, [])
    assert result.updates == updates_owed(PRIORITIZED, 4000)
    assert all_gone() and local_ray.is_initialized()  # which was there before
    assert result.final is not None and result.final.mean > 45  # at random about 22
    assert result.shards is not None
    assert result.shards.transitions == (1200, 1200) and (result.shards.lost, result.shards.restarts) == (0, 0)

    metrics, actors = read_metrics(run), read_actors(run)
    assert metrics["step"][-1] == 4000
    assert metrics["step"].tolist() == actors["step"][::2].tolist() == actors["step"][1::2].tolist()
    assert metrics["episodes"][-1] == result.episodes == actors["episodes"][-2:].sum() > 10
    assert np.allclose(actors["epsilon"][:2], [0.4, 0.4**8], atol=1e-6)
    assert 4000 <= actors["steps"][-2:].sum() <= 4000 + 500
    assert (actors["steps"][-2:] > 300).all()
    assert 0 <= actors["age"][-2:].min() < 500
    names = {"summary.md", "result.json", "curve.png", "best.pt", "last.pt", "config.json", "checkpoint"}
    assert names <= {path.name for path in run.iterdir()}
    words = (run / "summary.md").read_text()
    assert "| actors | 2 processes in Ray (local) of 2 environments each, epsilon 0.4 to 0.000655 |" in words
    assert "| buffer | 2 shards in Ray (local) with 1,200 and 1,200 transitions; none lost |" in words
    assert json.loads((run / "result.json").read_text())["shards"]["transitions"] == [1200, 1200]

    for shard in (0, 1):
        for lane in (0, 1):
            rows = shard_rows(run, shard, lane)
            over = rows.terminated | rows.truncated
            same = (rows.next_obs[:-1] == rows.obs[1:]).all(axis=1)
            assert len(over) == 600 and over.any()
            assert (same == ~over[:-1]).all()
        buffer = relive.load(run / "checkpoint" / "replay" / f"shard-{shard:03d}")
        assert isinstance(buffer.sampler, relive.Prioritized)

    assert main(["check", str(run)]) == 0
    assert "continuity (shard 1)" in capsys.readouterr().out
    damaged = next((run / "checkpoint" / "replay" / "shard-001").glob("*-records.npy"))
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\1\1")
    assert main(["check", str(run)]) == 1
    assert "error    checksums (shard 1)" in capsys.readouterr().out


def test_initial_priorities_are_those_that_actors_gave(local_ray: Any, tmp_path: Path) -> None:
    """Bug: |delta| that is computed and lost on the way, so that all begin with the largest priority."""
    config = replace(PRIORITIZED, actors=1, steps=400, learning_starts=400, checkpoint_every=400, eval_every=400)
    train(config, tmp_path / "run")
    for shard in (0, 1):
        buffer = relive.load(tmp_path / "run" / "checkpoint" / "replay" / f"shard-{shard:03d}")
        weights = buffer.sample(512, beta=1.0).weight
        assert len(np.unique(weights)) > 100  # nothing was learned from them yet


@pytest.mark.slow
def test_a_run_that_was_interrupted_goes_on(local_ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: counters that a resumed run forgets, shards that begin empty, a checkpoint that is not found."""
    monkeypatch.setattr("relive.train.loop.REPORT_SECONDS", 0.0)
    config = replace(TINY, actors=1, stack=2, checkpoint_every=500, replay_ratio=0.1)
    run = tmp_path / "run"

    def stop(now: Progress) -> None:
        if now.step > 1100 and (checkpoint_step(run) or 0) >= 1000:
            signal.raise_signal(signal.SIGTERM)

    result = train(config, run, report=stop)
    assert result.status == "interrupted" and result.signal == "SIGTERM"
    assert all_gone()
    step = checkpoint_step(run)
    assert step is not None and step >= 1000
    pushed = sum(relive.load(run / "checkpoint" / "replay" / f"shard-{shard:03d}").num_pushed for shard in (0, 1))
    assert pushed >= step

    firsts: list[int] = []
    result = resume(run, report=lambda now: firsts.append(now.step))
    assert (result.status, result.steps, result.restarts) == ("finished", 2000, 0)
    assert firsts[0] >= step
    assert result.updates == updates_owed(config, 2000)
    metrics, actors = read_metrics(run), read_actors(run)
    assert (np.diff(metrics["step"]) > 0).all() and metrics["step"][-1] == 2000
    assert metrics["step"].tolist() == actors["step"].tolist()
    assert result.shards is not None and sum(result.shards.transitions) >= 2000 and result.shards.lost == 0
    assert all_gone()
    with pytest.raises(ConfigError, match="got one that is finished"):
        resume(run)


def test_a_run_that_never_made_a_checkpoint_says_so(tmp_path: Path) -> None:
    """Bug: the directory that shards have for their snapshots taken for a checkpoint, or for a damaged one."""
    save_config(tmp_path, TINY)
    folder = tmp_path / "checkpoint" / "replay"
    folder.mkdir(parents=True)
    disk.replace(folder, "shards.json", frame("relive shards", {"note": None}))  # as `RayReplay` begins
    assert checkpoint_step(tmp_path) is None
    with pytest.raises(ConfigError, match="expected a run with a checkpoint, found none"):
        resume(tmp_path)


def test_an_environment_that_fails_ends_the_run_with_its_words(
    local_ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bug: actors that are started for ever; an error that names nothing."""
    monkeypatch.setattr("relive.train.roster.MOST_DEATHS", 2)
    (tmp_path / "broken_env.py").write_text(_BROKEN)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = replace(TINY, env="broken_env:relive-tests/BrokenInRay-v0", actors=1, shards=1, num_envs=1, capacity=2000)
    # Workers see the module through the learner's path only if it was there before Ray began: else it is the import.
    with pytest.raises((ChildProcessError, ConfigError), match=r"broken|No module named"):
        train(config, tmp_path / "run")
    assert all_gone()


_BROKEN = """
import gymnasium
import numpy as np

class Broken(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}
    def step(self, action):
        raise RuntimeError("broken")

gymnasium.register("relive-tests/BrokenInRay-v0", Broken)
"""


def test_hosts_that_do_not_see_the_run_are_named(
    local_ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: snapshots that each host writes to a disk of its own, found missing when they are needed."""
    from relive.train import ray_session

    here = socket.gethostname()
    monkeypatch.setattr(ray_session.socket, "gethostname", lambda: "another")
    assert ray_session.unseen(tmp_path, [here]) == []
    monkeypatch.setattr(Path, "touch", lambda path: (path.parent / "elsewhere").write_bytes(b""))
    monkeypatch.setattr(Path, "unlink", lambda path: None)
    assert ray_session.unseen(tmp_path, [here]) == [here]
    monkeypatch.setattr("relive.train.ray_acting.unseen", lambda directory, hosts: ["b", "c"])
    with pytest.raises(ConfigError, match=r"a run directory that all hosts of shards see, got .*which b, c do not"):
        train(TINY, tmp_path / "run")
    assert all_gone()


def test_another_ray_than_that_this_process_is_connected_to_is_refused(local_ray: Any, tmp_path: Path) -> None:
    """Bug: a run on a cluster that nobody named."""
    with pytest.raises(ConfigError, match=r"which this process is connected to, got 10\.0\.0\.1:6379"):
        train(replace(TINY, ray="10.0.0.1:6379"), tmp_path / "run")


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        replace(TINY, learning_starts=0, update_every=1, replay_ratio=4.0),
        replace(TINY, learning_starts=0, update_every=2000, replay_ratio=0.01, actors=8, num_envs=1),
        replace(TINY, update_every=7, replay_ratio=0.3, actors=3, num_envs=4, learning_starts=5000),
    ],
)
def test_the_limiter_never_holds_all_actors_for_ever(config: TrainConfig) -> None:
    """Bug: a tolerance smaller than a round of updates, or than what every actor has under way."""
    from relive.train.ray_player import chunk

    limiter, block, batch = limiter_for(config, chunk(config)), chunk(config), config.agent.batch_size
    inserted = updates = 0
    for _ in range(500):
        updates = max(updates, updates_owed(config, inserted))
        under_way = 0
        while under_way < 2 * config.actors and limiter.may_insert(
            inserted + under_way * block, updates * batch, block
        ):
            under_way += 1
        assert under_way > 0  # the learner has done all it may
        inserted += block


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--ray", "local"], "actors: expected at least 1 with ray, got 0"),
        (["--shards", "2"], "shards: expected 1, its default, without --ray"),
        (["--actors", "2", "--shards", "2"], "shards: expected 1, its default, without --ray"),
        (
            ["--actors", "3", "--ray", "local", "--capacity", "100000"],
            "capacity: expected a multiple of actors=3 times num_envs=4: 99996 or",
        ),
        (
            ["--actors", "1", "--ray", "local", "--shards", "5"],
            "shards: expected at most 4: each of the 4 environments",
        ),
        (["--actors", "1", "--ray", "ray://head:10001"], "ray: expected HOST:PORT of its head, auto or local, got"),
        (
            ["--actors", "1", "--ray", "auto", "--sampler", "rank-based"],
            "sampler: expected uniform or prioritized with",
        ),
        (["--actors", "1", "--ray", "auto", "--newest", "1"], "newest: expected 0 with ray"),
        (["--actors", "1", "--ray", "auto", "--offline", "data"], "offline: expected none with actors"),
    ],
)
def test_the_command_line_refuses_what_cannot_be(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bug: an option that does nothing, or a run that fails when it has begun."""
    assert main(["train", "CartPole-v1", "--out", str(tmp_path / "run"), *options]) == 2
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "run").exists()


def relive_in_new_process(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)


def test_nothing_of_ray_is_imported_unless_used_and_its_absence_is_told(tmp_path: Path) -> None:
    """Bug: everybody needs Ray; a traceback for those who have none."""
    done = relive_in_new_process(
        "import sys\nfrom relive.cli import main\nimport relive.train.checkpoint, relive.train.runs\n"
        "assert 'ray' not in sys.modules\nsys.modules['ray'] = None\n"
        f"out = {str(tmp_path / 'run')!r}\n"
        "sys.exit(main(['train', 'CartPole-v1', '--ray', 'local', '--actors', '1', '--out', out]))"
    )
    assert done.returncode == 2, done
    assert "pip install 'relive[ray]'" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_an_address_where_nobody_listens_is_told_soon(tmp_path: Path) -> None:
    """Bug: minutes of silence, which is what Ray itself has."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    options = ["CartPole-v1", "--ray", f"127.0.0.1:{port}", "--actors", "1", "--out", str(tmp_path / "run")]
    done = relive_in_new_process(f"import sys\nfrom relive.cli import main\nsys.exit(main(['train', *{options!r}]))")
    assert done.returncode == 2, done
    assert f"ray: expected a Ray at 127.0.0.1:{port}, got none" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def in_session(session: int) -> list[str]:
    """Command lines of the processes of a session that live."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] not in "ZX":
                found.append((path / "cmdline").read_text().replace("\0", " "))
        except (OSError, IndexError):
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "interrupted", "failed"])
def test_a_learner_that_ends_leaves_nothing_of_a_ray_of_its_own(how: str, tmp_path: Path) -> None:
    """Bug: actors that wait for a learner who is gone, a Ray that nobody shuts down; tracebacks at a Ctrl-C."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "relive", "train", "CartPole-v1", "--ray", "local", "--actors", "2"]
    command += ["--shards", "2", "--steps", "1000000", "--learning-starts", "200", "--threshold", "None"]
    command += ["--stop-return", "None", "--eval-every", "400", "--eval-episodes", "1", "--out", str(run)]
    env = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, env=env)
    session = process.pid
    try:
        until = time.monotonic() + 240
        while not ((run / "actors.csv").exists() and (read_actors(run)["steps"] > 0).any()):
            assert time.monotonic() < until and process.poll() is None, process.communicate(timeout=10)
            time.sleep(0.1)
        assert any("Player" in line for line in in_session(session)), in_session(session)
        if how == "killed":
            process.kill()
            assert process.wait(60) == -signal.SIGKILL
        elif how == "interrupted":
            os.killpg(session, signal.SIGINT)  # as a terminal does: to every process
            out, err = process.communicate(timeout=60)
            assert process.returncode == 128 + signal.SIGINT
            assert "Ended by SIGINT" in out and "actors.csv" in out
            assert err == ""
            assert json.loads((run / "result.json").read_text())["shards"]["lost"] == 0
        else:
            (run / "best.pt").unlink(missing_ok=True)
            (run / "best.pt").mkdir()  # so that the next evaluation cannot be kept
            out, err = process.communicate(timeout=120)
            assert process.returncode not in (0, 1) or "best.pt" in err, (out, err)
        until = time.monotonic() + 90
        while in_session(session) and time.monotonic() < until:
            time.sleep(0.1)
        assert not in_session(session)
    finally:
        if in_session(session):
            os.killpg(session, signal.SIGKILL)
        process.communicate(timeout=60)
