"""Runs with actors in processes: what they leave behind, who is replaced, and how they end."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from arena import ID

import relive
from relive.cli import main
from relive.dqn import AgentConfig, TrainConfig
from relive.errors import ConfigError
from relive.train import Progress, resume, train
from relive.train.actor import stride
from relive.train.actor_log import ActorLog, Tally, read_actors
from relive.train.actor_process import Life, end
from relive.train.checkpoint import checkpoint_step, load_checkpoint
from relive.train.log import read_metrics
from relive.train.processes import Processes, _how_it_ended, limiter_for
from relive.train.prove import prove_resume
from relive.train.rundir import save_config
from relive.train.schedules import updates_owed
from relive.train.state import LoopState

pytestmark = pytest.mark.usefixtures("blank_curves")

TINY = TrainConfig(
    env="CartPole-v1",
    steps=3000,
    actors=2,
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


_earlier: set[str] = set()


@pytest.fixture(autouse=True)
def earlier() -> None:
    """What tests of killed owners have left to the end of this process is none of ours."""
    _earlier.clear()
    _earlier.update(segments())


def segments() -> set[str]:
    """Shared memory of this process's buffers and weights, made since the test began."""
    return {path.name for path in Path("/dev/shm").glob(f"relive-{os.getpid()}-*")} - _earlier


def actor_processes() -> list[multiprocessing.process.BaseProcess]:
    """Actors of this process."""
    return [child for child in multiprocessing.active_children() if child.name.startswith("relive-actor")]


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> None:
    """A learner that waits for all of its actors, as on a busy machine one may come when the steps are made."""
    advance = Processes.advance

    def wait_and_advance(self: Processes, state: LoopState) -> None:
        advance(self, state)
        until = time.monotonic() + 120
        while self.buffer._engine.board[0] < self._config.actors and time.monotonic() < until:
            time.sleep(0.01)

    monkeypatch.setattr(Processes, "advance", wait_and_advance)


def lane_rows(buffer: relive.ReplayBuffer, lane: int) -> relive.Batch:
    ids = buffer.ids[buffer.ids % buffer.lanes == lane]
    return buffer.reader(view=relive.Transitions(), sampler=relive.Uniform()).get(ids)


@pytest.mark.usefixtures("together")
def test_a_run_with_actors_learns_and_leaves_the_same_kind_of_run(tmp_path: Path) -> None:
    """Bug: a lane that nobody writes, rows that do not chain, a file or column missing, actors that stay behind."""
    before = segments()
    notes: list[str] = []
    result = train(PRIORITIZED, tmp_path / "run", report=lambda now: notes.extend(now.notes))
    assert (result.status, result.steps, result.restarts, notes) == ("finished", 4000, 0, [])
    assert result.updates == updates_owed(PRIORITIZED, 4000)
    assert not actor_processes()
    assert segments() == before
    assert result.final is not None and result.final.mean > 45  # at random about 22

    metrics, actors = read_metrics(tmp_path / "run"), read_actors(tmp_path / "run")
    assert metrics["step"][-1] == 4000
    assert metrics["step"].tolist() == actors["step"][::2].tolist() == actors["step"][1::2].tolist()
    assert metrics["episodes"][-1] == result.episodes == actors["episodes"][-2:].sum() > 10
    assert actors["actor"].tolist() == [0, 1] * len(metrics["step"])
    assert np.allclose(actors["epsilon"][:2], [0.4, 0.4**8], atol=1e-6)
    block = stride(TINY) * TINY.num_envs
    assert 4000 - 2 * block <= actors["steps"][-2:].sum() <= 4000 + 400
    assert (actors["steps"][-2:] > 0).all()  # how the steps are shared is a matter of timing
    assert (np.diff(actors["waited"][::2]) >= 0).all()
    assert 0 <= actors["age"][-2:].min() < 300
    assert {"summary.md", "result.json", "curve.png", "best.pt", "last.pt", "config.json"} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }
    words = (tmp_path / "run" / "summary.md").read_text()
    assert "| actors | 2 processes of 2 environments each, epsilon 0.4 to 0.000655 |" in words
    assert "actors.csv" in words
    assert json.loads((tmp_path / "run" / "result.json").read_text())["restarts"] == 0

    buffer = load_checkpoint(tmp_path / "run", PRIORITIZED).buffer
    assert buffer.capacity == 2400 and buffer.num_pushed >= 4000
    for lane in range(4):
        rows = lane_rows(buffer, lane)
        over = rows.terminated | rows.truncated
        same = (rows.next_obs[:-1] == rows.obs[1:]).all(axis=1)
        assert 0 < len(over) <= 600 and (over.any() or len(over) < 600)
        assert (same == ~over[:-1]).all()


def kill_once(victim: int, after: int) -> Callable[[Progress], None]:
    """A spectator who kills an actor once so many steps are made."""
    killed: list[int] = []

    def report(now: Progress) -> None:
        if now.step >= after and not killed:
            (process,) = [one for one in actor_processes() if one.name == f"relive-actor-{victim}"]
            assert process.pid is not None
            killed.append(process.pid)
            os.kill(process.pid, signal.SIGKILL)

    return report


@pytest.mark.usefixtures("together")
def test_a_killed_actor_is_replaced_and_counted_and_the_run_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: a learner that waits for the dead; lanes that nobody writes; counters that a resumed run forgets."""
    monkeypatch.setattr("relive.train.loop.REPORT_SECONDS", 0.0)
    config = replace(TINY, env=f"arena:{ID}", stack=2, steps=6000, checkpoint_every=500, eval_every=20_000)
    config = replace(config, replay_ratio=0.1)
    notes: list[str] = []
    kill = kill_once(1, after=600)

    def stop_at_the_end(now: Progress) -> None:
        kill(now)
        notes.extend(now.notes)
        if notes and now.step > 2000 and (checkpoint_step(tmp_path / "run") or 0) >= 1500:
            signal.raise_signal(signal.SIGTERM)

    result = train(config, tmp_path / "run", report=stop_at_the_end)
    assert result.status == "interrupted" and result.restarts == 1
    assert len(notes) == 1 and notes[0] == "actor 1 died (by SIGKILL) and was replaced; restarts: 1"
    assert not actor_processes()
    step = checkpoint_step(tmp_path / "run")
    assert step is not None
    before = load_checkpoint(tmp_path / "run", config).buffer
    ids, pushed = before.ids, before.num_pushed

    result = resume(tmp_path / "run")
    assert (result.status, result.steps, result.restarts) == ("finished", 6000, 1)
    assert result.updates == updates_owed(config, 6000)
    metrics, actors = read_metrics(tmp_path / "run"), read_actors(tmp_path / "run")
    assert (np.diff(metrics["step"]) > 0).all() and metrics["step"][-1] == 6000
    assert metrics["step"].tolist() == actors["step"][::2].tolist()
    assert actors["restarts"][-1] == 1 and actors["restarts"][-2] == 0
    assert "1 died and were replaced" in (tmp_path / "run" / "summary.md").read_text()
    after = load_checkpoint(tmp_path / "run", config).buffer
    assert after.num_pushed >= 6000 > pushed >= step
    assert ids[-1] < after.ids[-1]
    assert not actor_processes() and not segments()
    for lane in range(4):
        rows = lane_rows(after, lane)
        over = rows.terminated | rows.truncated
        assert 0 < len(rows.reward) <= 600
        assert (rows.obs[:, 0] == np.where(np.roll(over, 1), 0, np.roll(rows.next_obs[:, 0], 1)))[1:].all()


@pytest.mark.parametrize(
    ("code", "words", "how"),
    [
        (-9, "", "by SIGKILL"),
        (-40, "", "by signal 40"),
        (3, "", "exit code 3"),
        (1, "ValueError: no", "ValueError: no"),
    ],
)
def test_how_an_actor_ended_in_words(code: int, words: str, how: str) -> None:
    """Bug: a learner that dies of the name of a real-time signal, which has none."""
    assert _how_it_ended(code, words) == how


@pytest.mark.parametrize(
    ("env", "deaths", "words"),
    [("Broken", 2, "RuntimeError: broken"), ("BrokenPipe", 1, "BrokenPipeError: the simulator's pipe broke")],
)
def test_an_actor_that_cannot_play_ends_the_run_with_its_words(
    env: str,
    deaths: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Bug: processes that are started for ever; an error that names nothing, or is taken for the end of the learner."""
    monkeypatch.setattr("relive.train.roster.MOST_DEATHS", deaths)
    config = replace(TINY, env=f"arena:relive-tests/{env}-v0", actors=1, capacity=2000, num_envs=1)
    with pytest.raises(ChildProcessError, match=f"actor 0: expected it to play, it died {deaths} times.*{words}"):
        train(config, tmp_path / "run")
    assert capfd.readouterr().err.count("Traceback") == 1
    assert not actor_processes() and not segments()


def test_what_a_full_disk_refuses_of_actors_csv_is_named(tmp_path: Path) -> None:
    """Bug: "No space left on device", and nothing that says on which."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = ActorLog(tmp_path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, before[1]))
    try:
        with pytest.raises(OSError, match=r"File too large.*actors\.csv"):
            for step in range(100):
                log.write(Tally().row(step, 0, 0.4, 1.0, 0))
        with pytest.raises(OSError, match=r"File too large.*actors\.csv"):
            log.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def learner(run: Path, *options: str, env: str = "CartPole-v1") -> subprocess.Popen[str]:
    """`relive train` in a session of its own, once its actors have made steps, or one hangs."""
    command = [sys.executable, "-m", "relive", "train", env, "--actors", "1", "--steps", "1000000"]
    command += ["--learning-starts", "200", "--threshold", "None", "--stop-return", "None", "--out", str(run), *options]
    pipe = subprocess.PIPE
    hangs = run.with_name("hangs")
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    around = os.environ | {"PYTHONPATH": paths, "HANGS": str(hangs)}
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, env=around)
    until = time.monotonic() + 300
    while time.monotonic() < until and process.poll() is None:
        if hangs.exists() or ((run / "actors.csv").exists() and (read_actors(run)["steps"] > 0).any()):
            return process
        time.sleep(0.05)
    process.kill()
    raise AssertionError(process.communicate())


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


def gone(session: int, seconds: float = 120.0) -> bool:
    """Whether nothing of a session, and none of its shared memory, is left within so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not in_session(session) and not list(Path("/dev/shm").glob(f"relive-{session}-*")):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("how", ["killed", "interrupted"])
def test_a_learner_that_ends_leaves_no_process_and_no_segment(how: str, tmp_path: Path) -> None:
    """Bug: actors that play on for nobody, memory that nobody frees; a Ctrl-C that actors answer with tracebacks."""
    every = ("--eval-every", "400", "--eval-episodes", "1")
    process = learner(tmp_path / "run", *every)
    session = process.pid
    try:
        assert len([line for line in in_session(session) if "spawn_main" in line]) >= 1
        assert list(Path("/dev/shm").glob(f"relive-{session}-*"))
        if how == "killed":
            process.kill()
            assert process.wait(180) == -signal.SIGKILL
        else:
            os.killpg(session, signal.SIGINT)  # as a terminal does: to every process
            out, err = process.communicate(timeout=180)
            assert process.returncode == 128 + signal.SIGINT
            assert "Ended by SIGINT" in out and "actors.csv" in out
            assert err == ""
            assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "interrupted"
        assert gone(session), in_session(session)
    finally:
        if in_session(session):
            os.killpg(session, signal.SIGKILL)
        process.communicate(timeout=180)


@pytest.mark.parametrize("how", ["killed", "interrupted twice"])
def test_an_actor_that_hangs_outlives_no_learner(how: str, tmp_path: Path) -> None:
    """Bug: an actor that lives for ever with its memory; a second Ctrl-C after which the learner waits for it."""
    process = learner(tmp_path / "run", env="arena:relive-tests/Hanging-v0")
    session = process.pid
    try:
        if how == "killed":
            process.kill()
        else:
            os.killpg(session, signal.SIGINT)
            time.sleep(0.7)  # by now it waits for the actor
            os.killpg(session, signal.SIGINT)
            assert "Traceback" not in process.communicate(timeout=180)[1]
            assert process.returncode == 128 + signal.SIGINT
        assert gone(session), in_session(session)
    finally:
        if in_session(session):
            os.killpg(session, signal.SIGKILL)
        process.communicate(timeout=180)


class Hesitant:
    """A process, to be ended, whose end somebody does not want to wait for."""

    def __init__(self) -> None:
        self.killed = self.joined = 0

    def join(self, timeout: float | None = None) -> None:
        self.joined += 1
        if not self.killed:
            raise KeyboardInterrupt

    def kill(self) -> None:
        self.killed += 1

    def close(self) -> None:
        """As a connection."""


def test_who_does_not_wait_for_actors_to_end_has_them_killed() -> None:
    """Bug: an interrupt that leaves actors alive, which the interpreter then waits for."""
    actors = [Hesitant(), Hesitant()]
    lives = {number: Life(actor, actor) for number, actor in enumerate(actors)}  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        end(lives, 60.0)
    assert not lives
    assert [(actor.killed, actor.joined) for actor in actors] == [(1, 2), (1, 1)]


_FORGETFUL = """
import pathlib, sys
from relive.dqn import TrainConfig
from relive.train.environments import make_training_envs
from relive.train.loop import Trainer
from relive.train.stop import StopRequest

if __name__ == "__main__":
    config = TrainConfig("CartPole-v1", actors=1)
    envs = make_training_envs(config.env, 1)
    trainer = Trainer(config, envs, pathlib.Path(sys.argv[1]), StopRequest(), print)
    while trainer.state.step < 100:
        trainer.interact()
"""


@pytest.mark.slow
def test_who_forgets_to_close_leaves_nothing_either(tmp_path: Path) -> None:
    """Bug: an interpreter that waits at its end for actors who wait for it."""
    (tmp_path / "forgetful.py").write_text(_FORGETFUL)
    command = [sys.executable, str(tmp_path / "forgetful.py"), str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.communicate(timeout=180)[1] == ""
        assert process.returncode == 0
        assert gone(process.pid)
    finally:
        process.kill()


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        replace(TINY, learning_starts=0, update_every=1, replay_ratio=4.0),
        replace(TINY, learning_starts=0, update_every=2000, replay_ratio=0.01, actors=8, num_envs=1),
        replace(TINY, update_every=7, replay_ratio=0.3, actors=3, num_envs=4, learning_starts=5000),
    ],
)
def test_the_limiter_never_holds_the_learner_nor_all_actors_for_ever(config: TrainConfig) -> None:
    """Bug: a tolerance smaller than a round of updates, or than what every actor hands over at a time."""
    limiter = limiter_for(config)
    batch, block = config.agent.batch_size, stride(config) * config.num_envs
    limiter.check(block=block, batch=batch)
    inserted = updates = 0
    for _ in range(1000):
        while updates < updates_owed(config, inserted):
            assert limiter.may_sample(inserted, updates * batch, batch)  # what is owed is allowed
            updates += 1
        assert limiter.may_insert(inserted, updates * batch, block)  # the learner has done all it may
        inserted += block
    late = 0
    while limiter.may_insert(inserted + late, updates * batch, block):
        late += block  # while the learner evaluates
    assert config.learning_starts / 10 - 2 * block <= late < 100 * (block * config.actors + config.update_every + 600)


def test_a_run_with_actors_is_not_proved_to_resume_bit_for_bit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bug: two trainings that always differ, and a complaint about the first number that does."""
    save_config(tmp_path, TINY)
    with pytest.raises(ConfigError, match="expected a run without actors, got one with 2"):
        prove_resume(tmp_path)
    assert main(["check", str(tmp_path), "--resume"]) == 2
    assert "Their steps come in an order of their own" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["--actors", "3", "--capacity", "100000"],
            "capacity: expected a multiple of actors=3 times num_envs=4: 99996 or 100008",
        ),
        (["--actors", "2", "--epsilon-end", "0.1"], "--epsilon-end: expected none with --actors"),
        (["--actors", "2", "--offline", "data"], "offline: expected none with actors"),
        (["--publish-every", "8"], "publish_every: expected 32, its default, without actors"),
    ],
)
def test_the_command_line_refuses_what_would_be_ignored(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bug: an option that does nothing."""
    assert main(["train", "CartPole-v1", "--out", str(tmp_path / "run"), *options]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
