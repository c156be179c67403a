"""Resuming: whatever a run is, killed and resumed it ends as if it had never stopped; and what is refused."""

import itertools
import json
import multiprocessing
import random
import re
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from arena import ID
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import relive
from relive import interop
from relive.cli import main
from relive.dqn import AgentConfig, TrainConfig
from relive.errors import ConfigError, SnapshotError
from relive.study.offline import play
from relive.train import Result, load_config, resume, train
from relive.train import checkpoint as train_checkpoint
from relive.train.checkpoint import Checkpoint, checkpoint_step, load_checkpoint, roll_back, verified_step
from relive.train.environments import make_training_envs
from relive.train.evaluate import Evaluation
from relive.train.log import RunLog, read_metrics
from relive.train.loop import Trainer
from relive.train.prove import _unlike_buffers, differences, prove_resume, shorten
from relive.train.rundir import WEIGHTS, lock_run
from relive.train.stop import StopRequest

pytestmark = pytest.mark.usefixtures("blank_curves")

TINY = TrainConfig(
    env="CartPole-v1",
    steps=400,
    checkpoint_every=200,
    capacity=240,
    learning_starts=60,
    replay_ratio=0.5,
    epsilon_fraction=0.9,
    eval_every=150,
    eval_episodes=2,
    final_eval_episodes=2,
    agent=AgentConfig(hidden=(16,), batch_size=8, target_every=30),
)
ALONE = replace(TINY, offline="data.npz", offline_updates=400)
BOTH = replace(ALONE, offline_updates=150, online=True, steps=250, offline_share=0.25)


class Killed(BaseException):
    """In place of a SIGKILL: nothing of the run is concluded."""


def killed_at(step: int, run: Callable[[], Result]) -> None:
    """Train, and stop dead once `step` steps are made; updates from a dataset alone, before them, are some."""
    advance = Trainer.advance

    def mortal(trainer: Trainer, log: RunLog) -> None:
        advance(trainer, log)
        if trainer.place >= step:
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "advance", mortal)
        run()


def killed_run(config: TrainConfig, run_dir: Path, step: int) -> Path:
    """A run that was killed at this step."""
    killed_at(step, lambda: train(config, run_dir))
    return run_dir


ALL_OPTIONS = AgentConfig(hidden=(16,), batch_size=8, double=True, dueling=True, n_step=3, target="soft", tau=0.01)

RUNS = {
    "uniform": TINY,
    "uniform, 4 environments in vector form": replace(TINY, num_envs=4, newest=2),
    "prioritized": replace(TINY, sampler="prioritized", agent=ALL_OPTIONS),
    "prioritized, 4 environments": replace(TINY, sampler="prioritized", num_envs=4),
    "prioritized, stacks of frames": replace(TINY, sampler="prioritized", num_envs=4, stack=3),
    "rank-based": replace(TINY, sampler="rank-based", newest=3),
    "rank-based, 2 environments": replace(TINY, sampler="rank-based", num_envs=2, agent=ALL_OPTIONS),
    "same-step resets": replace(TINY, env="MountainCar-v0", num_envs=3, agent=ALL_OPTIONS),
    "same-step resets, prioritized stacks": replace(
        TINY, env=ID, num_envs=3, stack=2, sampler="prioritized", agent=ALL_OPTIONS
    ),
    "checkpoints that are no multiple of the environments": replace(TINY, steps=399, checkpoint_every=133, num_envs=4),
    "a buffer that is never full": replace(TINY, capacity=1000, env="Acrobot-v1"),
    "rounds of updates": replace(TINY, update_every=48, learning_starts=230),
    "a dataset alone": replace(ALONE, agent=replace(ALL_OPTIONS, cql_alpha=1.0)),
    "a dataset, and a checkpoint just before the first step": replace(BOTH, offline_updates=300, checkpoint_every=100),
    "a dataset, then prioritized steps beside it": replace(BOTH, num_envs=2, sampler="prioritized", agent=ALL_OPTIONS),
    "a dataset beside steps from the first": replace(BOTH, offline_updates=0, steps=400, sampler="rank-based"),
}


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random play of CartPole in a file."""
    path = tmp_path_factory.mktemp("recorded") / "data.npz"
    interop.write(interop.of_buffer(play("CartPole-v1", [(None, 1.0, 1.0)], 300)), path)
    return path


@pytest.fixture
def data(recorded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as data.npz in the directory that the test works in."""
    monkeypatch.chdir(tmp_path)
    return shutil.copy(recorded, tmp_path / "data.npz")


@pytest.mark.parametrize("name", RUNS)
def test_killed_and_resumed_ends_as_never_stopped(name: str, data: Path, tmp_path: Path) -> None:
    """Bug: anything that a run remembers and its checkpoint does not; an environment that goes on in one of both."""
    config = RUNS[name]
    through = train(config, tmp_path / "through")
    run = killed_run(config, tmp_path / "run", 370)
    assert 200 <= (checkpoint_step(run) or 0) <= 300
    resumed = resume(run)
    assert list(differences(tmp_path / "through", run)) == []
    assert {path.name for path in run.iterdir()} >= {"result.json", "summary.md", "curve.png", "last.pt", "best.pt"}
    assert (through.steps, through.updates, through.episodes) == (resumed.steps, resumed.updates, resumed.episodes)
    assert through.final is not None and resumed.final is not None
    assert through.final.returns == resumed.final.returns


def test_a_run_killed_again_and_again_ends_as_never_stopped(tmp_path: Path) -> None:
    """Bug: a second resume that begins where the first did, or takes what the first left behind for its own."""
    config = replace(TINY, checkpoint_every=50, sampler="prioritized", num_envs=2)
    train(config, tmp_path / "through")
    run = killed_run(config, tmp_path / "run", 90)
    for step in (60, 130, 135, 249, 340, 399):
        killed_at(step, lambda: resume(run))
    resume(run)
    assert list(differences(tmp_path / "through", run)) == []


def _lose(part: str, name: str, value: Any) -> Callable[[Checkpoint], Checkpoint]:
    def lose(checkpoint: Checkpoint) -> Checkpoint:
        state = getattr(checkpoint, part)
        assert name in state
        return replace(checkpoint, **{part: {**state, name: value(state) if callable(value) else value}})

    return lose


def _other_best(loop: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {**loop["best_weights"], "q.bias": torch.ones(2)}


def _one_batch_ahead(checkpoint: Checkpoint) -> Checkpoint:
    checkpoint.buffer.sample(1)
    return checkpoint


FORGETFUL: dict[str, Callable[[Checkpoint], Checkpoint]] = {
    "generator": _lose("agent", "rng", np.random.default_rng(5).bit_generator.state),
    "target network": _lose("agent", "target", lambda state: state["online"]),
    "first moment": _lose("agent", "moment1", lambda state: torch.zeros_like(state["moment1"])),
    "second moment": _lose("agent", "moment2", lambda state: torch.zeros_like(state["moment2"])),
    "Adam's step": _lose("agent", "adam_step", torch.tensor(0.0)),
    "updates of the agent": _lose("agent", "num_updates", 0),
    "meter": _lose("loop", "meter", {"sums": torch.zeros(2), "count": 0, "last": (0.0, 0.0)}),
    "updates": _lose("loop", "updates", 0),
    "episodes": _lose("loop", "episodes", 0),
    "returns since the row": _lose("loop", "fresh", []),
    "newest returns": _lose("loop", "recent", []),
    "best": _lose("loop", "best_return", 1e9),
    "step of the best": _lose("loop", "best_step", 7),
    "weights of the best": _lose("loop", "best_weights", _other_best),
    "metrics": lambda checkpoint: replace(checkpoint, metrics=""),
    "generator of the buffer": _one_batch_ahead,
}

FORGETFUL_OF_DATA: dict[str, Callable[[Checkpoint], Checkpoint]] = {
    "place in the pass": _lose("data", "passes", lambda data: {**data["passes"], "epoch_at": 0}),
    "number of the pass": _lose("data", "passes", lambda data: {**data["passes"], "epoch": 1}),
    "draws of the mixture": _lose("data", "mixed", 0),
}


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run trained through and the same killed, its checkpoint in the midst of a row and past an evaluation."""
    place = tmp_path_factory.mktemp("twins")
    with pytest.MonkeyPatch.context() as patch:
        script(patch, 30.0)
        train(TINY, place / "through")
        script(patch, 30.0)
        killed_run(TINY, place / "killed", 390)
    return place / "through", place / "killed"


@pytest.fixture(scope="module")
def twins_with_data(recorded: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same of a run from a dataset, killed while it acts."""
    place = tmp_path_factory.mktemp("twins")
    config = replace(
        BOTH, offline=str(recorded), offline_share=0.3, offline_updates=100, steps=200, checkpoint_every=100
    )
    with pytest.MonkeyPatch.context() as patch:
        script(patch)
        train(config, place / "through")
        killed_run(config, place / "killed", 290)
    return place / "through", place / "killed"


def script(patch: pytest.MonkeyPatch, *first: float) -> None:
    """Few rows, and evaluations whose first is the best: a resume that loses it gets no second chance."""
    means = itertools.chain(first, itertools.repeat(5.0))
    patch.setattr("relive.train.loop.ROWS", 3)
    for module in ("loop", "runs"):
        patch.setattr(f"relive.train.{module}.evaluate", lambda *_, **__: Evaluation((next(means),), (1,), 0.0))


@pytest.mark.parametrize("what", ["nothing", *FORGETFUL])
def test_a_resume_that_forgets_is_found_out(
    what: str, twins: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: a comparison that passes whatever was lost; the proof would prove nothing."""
    script(monkeypatch)
    through, killed = twins
    run = shutil.copytree(killed, tmp_path / "run")
    forget = FORGETFUL.get(what, lambda checkpoint: checkpoint)
    monkeypatch.setattr("relive.train.runs.load_checkpoint", lambda *args: forget(load_checkpoint(*args)))
    resume(run)
    found = list(differences(through, run))
    assert bool(found) == (what != "nothing"), found


@pytest.mark.parametrize("what", ["nothing", *FORGETFUL_OF_DATA])
def test_a_resume_that_forgets_where_it_was_in_the_data_is_found_out(
    what: str, twins_with_data: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: passes that begin anew, batches of the mixture rounded as the first ones were."""
    script(monkeypatch)
    through, killed = twins_with_data
    run = shutil.copytree(killed, tmp_path / "run")
    forget = FORGETFUL_OF_DATA.get(what, lambda checkpoint: checkpoint)
    monkeypatch.setattr("relive.train.runs.load_checkpoint", lambda *args: forget(load_checkpoint(*args)))
    resume(run)
    found = list(differences(through, run))
    assert bool(found) == (what != "nothing"), found
    assert what == "nothing" or any(name.startswith("last.pt") for name in found)


def test_environments_that_begin_otherwise_are_found_out(
    twins: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: a reset without a seed, which no comparison of the agent's state at the checkpoint would see."""
    through, killed = twins
    script(monkeypatch)
    monkeypatch.setattr("relive.train.acting.reset_seed", lambda config, step: 12345)
    resume(shutil.copytree(killed, tmp_path / "run"))
    assert list(differences(through, tmp_path / "run"))


OFF_BY_ONE: dict[str, Callable[[relive.ReplayBuffer], object]] = {
    "nothing": lambda buffer: None,
    "a priority": lambda buffer: buffer.update_priorities([buffer.ids[7]], [2.0]),
    "a batch": lambda buffer: buffer.sample(1),
    "a truncation": lambda buffer: buffer.end_episodes(),
    "a transition": lambda buffer: buffer.push([99.0], 0, 0.0, False, [100.0]),
}


@pytest.mark.parametrize("what", OFF_BY_ONE)
def test_buffers_that_differ_in_one_thing_are_found_out(what: str) -> None:
    """Bug: a comparison that looks at the ids or at the transitions only."""
    buffers = []
    for _ in range(2):
        buffer = relive.ReplayBuffer(100, sampler=relive.Prioritized(), seed=0)
        for t in range(150):
            buffer.push([float(t)], 0, 1.0, t % 9 == 0, [float(t + 1)])
        buffers.append(buffer)
    OFF_BY_ONE[what](buffers[1])
    found = list(_unlike_buffers(replace(TINY, sampler="prioritized"), *buffers))
    assert bool(found) == (what != "nothing"), found


@pytest.mark.parametrize("config", [TINY, BOTH], ids=["steps", "a dataset, then steps"])
def test_metrics_and_tensorboard_tell_the_run_once(config: TrainConfig, data: Path, tmp_path: Path) -> None:
    """Bug: rows after the checkpoint twice, a gap before it, seconds that begin anew."""
    run = killed_run(replace(config, checkpoint_every=100), tmp_path / "run", 290)
    before = read_metrics(run)
    resume(run)
    metrics = read_metrics(run)
    place = np.minimum(metrics["updates"], config.updates_before) + metrics["step"]
    assert place.tolist() == list(range(2, 401, 2))
    kept = 100
    assert metrics["seconds"][:kept].tolist() == before["seconds"][:kept].tolist()
    assert (np.diff(metrics["seconds"]) >= 0).all()
    board = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    shown = [(event.step, event.value) for event in board.Scalars("train/seconds")]
    assert shown == list(zip(place, np.float32(metrics["seconds"]), strict=True))
    result = json.loads((run / "result.json").read_text())
    assert result["seconds"] >= metrics["seconds"][-1]
    assert result["resumed_at"] == 200
    assert (
        f"\n| resumed | from step {200 - config.updates_before}, the last time |\n" in (run / "summary.md").read_text()
    )


def test_seconds_go_on_from_the_checkpoint_not_from_the_row_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: time between the last row and the checkpoint counted by nobody."""
    monkeypatch.setattr("relive.train.loop.ROWS", 1)
    run = killed_run(replace(TINY, eval_every=1000), tmp_path / "run", 250)
    assert load_checkpoint(run, load_config(run)).loop["seconds"] > 0


def trainer_of(config: TrainConfig, run_dir: Path, stop: StopRequest | None = None) -> Trainer:
    envs = make_training_envs(config.env, config.num_envs)
    return Trainer(config, envs, run_dir, stop or StopRequest(), lambda _: None)


@pytest.mark.parametrize(("env", "num_envs"), [("CartPole-v1", 1), ("CartPole-v1", 3), (ID, 3)])
def test_at_a_checkpoint_every_episode_ends_as_truncated(env: str, num_envs: int, tmp_path: Path) -> None:
    """Bug: returns, stacks or windows that run on from a cut episode into the next; a cut taken for a terminal end."""
    config = replace(TINY, env=env, num_envs=num_envs, stack=2, steps=1000, capacity=900, learning_starts=500)
    trainer = trainer_of(config, tmp_path)
    buffer = trainer.buffer
    acted: list[Any] = []
    act = trainer.agent.act
    trainer.agent.act = lambda obs, epsilon: (acted.append(obs.copy()), act(obs, epsilon))[1]  # type: ignore[method-assign]
    stored: list[Any] = []
    step = trainer.writer.step
    trainer.writer.step = lambda *args: stored.append(step(*args)) or stored[-1]  # type: ignore[method-assign]
    cuts = 0
    with RunLog(tmp_path) as log:
        for _ in range(400 // num_envs):
            before = checkpoint_step(tmp_path)
            trainer.advance(log)
            if checkpoint_step(tmp_path) != before:
                newest = buffer.get([buffer.ids[buffer.ids % num_envs == lane][-1] for lane in range(num_envs)])
                assert (newest.terminated | newest.truncated).all()
                cuts += int(newest.truncated.sum())
                assert trainer.state.running.tolist() == [0.0] * num_envs
    assert cuts > 0
    for obs, ids in zip(acted, stored, strict=True):  # learned from as acted on, across the cuts too
        assert np.array_equal(buffer.get(ids[ids >= 0]).obs, obs[ids >= 0])


def test_a_step_that_was_cut_short_is_no_checkpoint(tmp_path: Path) -> None:
    """Bug: a signal in the midst of a step's updates, and a checkpoint that takes the step for done."""
    stop = StopRequest()
    trainer = trainer_of(replace(TINY, checkpoint_every=100), tmp_path, stop)
    learn = trainer._learn

    def interrupted() -> None:
        learn()
        if trainer.state.step == 200:
            stop.signal = signal.SIGTERM

    trainer._learn = interrupted  # type: ignore[method-assign]
    with RunLog(tmp_path) as log:
        while not trainer.done:
            trainer.advance(log)
    assert trainer.state.step == 200
    assert checkpoint_step(tmp_path) == 100


def test_an_interrupted_run_resumes_and_says_so_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a checkpoint at the interrupt (its truncation would make it another run); the old result left behind."""
    train(TINY, tmp_path / "through")
    interact = Trainer.interact

    def interrupting(trainer: Trainer) -> None:
        interact(trainer)
        if trainer.state.step == 333:
            signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "interact", interrupting)
        result = train(TINY, tmp_path / "run")
    assert (result.status, result.steps) == ("interrupted", 333)
    assert checkpoint_step(tmp_path / "run") == 200
    killed_at(250, lambda: resume(tmp_path / "run"))
    assert not (tmp_path / "run" / "result.json").exists()
    assert resume(tmp_path / "run").status == "finished"
    assert list(differences(tmp_path / "through", tmp_path / "run")) == []


def test_a_run_killed_after_its_last_step_is_only_concluded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a run that goes on beyond its steps, or cannot be concluded."""
    run = killed_run(TINY, tmp_path / "run", 400)
    assert not (run / "result.json").exists()
    assert resume(run).steps == 400
    assert read_metrics(run)["step"][-1] == 400


def test_the_best_weights_are_put_back(tmp_path: Path) -> None:
    """Bug: after a resume best.pt is of an evaluation that has not happened yet."""
    run = killed_run(replace(TINY, keep="best", eval_every=150), tmp_path / "run", 390)
    best = load_checkpoint(run, replace(TINY, keep="best", eval_every=150)).loop["best_weights"]
    for weights in (best, None):
        torch.save({"other": torch.zeros(1)}, run / "best.pt")
        roll_back(run, weights)
        if weights is None:
            assert not (run / "best.pt").exists()
        else:
            stored = torch.load(run / WEIGHTS["best"], weights_only=True)
            assert all(torch.equal(stored[name], weights[name]) for name in weights)


def contents(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def damaged(run: Path, how: str) -> None:
    """Break one thing of a checkpoint."""
    (agent,) = (run / "checkpoint").glob("agent-*.pt")
    data = agent.read_bytes()
    match how:
        case "missing":
            agent.unlink()
        case "empty":
            agent.write_bytes(b"")
        case "truncated":
            agent.write_bytes(data[:-1])
        case "another":
            shutil.copy(run / "best.pt", agent)
        case "flipped":
            agent.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])


@pytest.mark.parametrize("how", ["missing", "empty", "truncated", "another", "flipped"])
def test_a_damaged_checkpoint_is_named(how: str, twins: tuple[Path, Path], tmp_path: Path) -> None:
    """Bug: a run that goes on from half a checkpoint, or a traceback of PyTorch's; `info` that says it would go on."""
    run = shutil.copytree(twins[1], tmp_path / "run")
    config = load_config(run)
    assert verified_step(run, config) == 200
    damaged(run, how)
    before = contents(run)
    says = (
        r"checkpoint/agent-200\.pt: expected.* Put it back from a copy, or train anew.*checkpoint/replay is a dataset"
    )
    with pytest.raises(SnapshotError, match=says):
        resume(run)
    with pytest.raises(SnapshotError, match=says):
        verified_step(run, config)
    assert contents(run) == before


def test_a_lost_manifest_is_damage_and_not_a_checkpoint_that_was_never_due(
    twins: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bug: "its first was due at step 200", of a run that has made it."""
    run = shutil.copytree(twins[1], tmp_path / "run")
    (run / "checkpoint" / "replay" / "manifest.json").unlink()
    with pytest.raises(
        SnapshotError, match=r"replay/manifest\.json: expected .* no such file: it is damaged.*train anew"
    ):
        resume(run)
    assert main(["info", str(run)]) == 0
    assert re.search(r"  to resume +impossible: .*manifest\.json: .* it is damaged", capsys.readouterr().out)


def test_a_damaged_buffer_is_no_checkpoint_to_go_on_from(
    twins: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bug: `relive info` says where the run goes on from, and it does not."""
    run = shutil.copytree(twins[1], tmp_path / "run")
    assert main(["info", str(run)]) == 0
    assert "goes on from step 200" in capsys.readouterr().out
    largest = max((run / "checkpoint" / "replay").rglob("*"), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    assert main(["info", str(run)]) == 0
    assert re.search(rf"  to resume +impossible: .*{largest.name}", capsys.readouterr().out)


def test_a_dataset_that_is_gone_or_another_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bug: draws that go on in other transitions; a path told without what it is relative to."""
    config = replace(ALONE, eval_every=1000)
    train(config, tmp_path / "through")
    run = killed_run(config, tmp_path / "run", 250)
    before = contents(run)
    kept = data.rename(tmp_path / "kept.npz")

    def refused(says: str) -> None:
        with pytest.raises(ConfigError, match=says):
            resume(run)
        assert contents(run) == before

    place = rf"^data\.npz \(in {re.escape(str(tmp_path))}\): expected the "
    refused(place + r"dataset that the run began with, .* got nothing there\. Put it back, or")
    whole, began = dict(np.load(kept)), place + "300 transitions that the run began with, got "
    for name, values in whole.items():  # every array counts, also in its last row
        if values.shape[:1] == (300,):
            other = values.copy()
            other[-1] = 1 - other[-1] if values.dtype.kind != "b" else ~other[-1]
            np.savez(data, **{**whole, name: other})
            refused(began + "300 with other contents")
    data.unlink()
    interop.write(interop.of_buffer(play("CartPole-v1", [(None, 1.0, 1.0)], 290)), data)
    refused(began + "290 with other contents. Put them back")
    monkeypatch.chdir("/")
    refused(r"^data\.npz \(in /\): expected the dataset .*, or resume where the run was begun\.$")
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--resume", "run"]) == 2
    assert capsys.readouterr().out == ""  # nothing is announced that does not begin
    assert main(["check", "run"]) == 0
    said = capsys.readouterr().out
    assert "ok       checkpoint" in said and "relive check data.npz" in said
    assert said.endswith("\nSound: no transition in it yet.\n") and " continuity " not in said
    assert main(["info", "run"]) == 0
    assert "(goes on from update 200)" in capsys.readouterr().out
    np.savez_compressed(data, **whole)  # what counts is what is in it
    assert main(["train", "--resume", "run"]) == 0
    assert "at update 200, its last checkpoint" in capsys.readouterr().out
    assert list(differences(tmp_path / "through", run)) == []


@pytest.mark.parametrize("reads", ["_read_state", "load"])
def test_a_newer_checkpoint_that_comes_meanwhile_is_read_instead(
    reads: str, twins: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: a run that trains on reported as damaged; an agent of one checkpoint and a buffer of the next."""
    run = shutil.copytree(twins[1], tmp_path / "run")
    owner: Any = {"_read_state": train_checkpoint, "load": relive}[reads]
    read, came = getattr(owner, reads), 0

    def late(*args: Any, **how: Any) -> Any:
        nonlocal came
        came += 1
        if came == 1:
            shutil.rmtree(run / "checkpoint")
            shutil.copytree(twins[0] / "checkpoint", run / "checkpoint")
        return read(*args, **how)

    monkeypatch.setattr(owner, reads, late)
    found, expected = load_checkpoint(run, TINY), load_checkpoint(twins[0], TINY)
    assert (found.step, found.loop["updates"]) == (400, expected.loop["updates"])
    assert list(_unlike_buffers(TINY, found.buffer, expected.buffer)) == []


def test_checkpoints_that_never_stand_still_are_told(
    twins: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: a reader that goes on for ever."""
    notes = itertools.count()
    monkeypatch.setattr(train_checkpoint, "_read_note", lambda run: {"step": next(notes), "agent": "x", "sha256": ""})
    with pytest.raises(SnapshotError, match=r"expected a checkpoint that stands while it is read, got newer ones"):
        load_checkpoint(twins[1], TINY)


def test_the_snapshot_of_another_buffer_is_no_checkpoint(twins: tuple[Path, Path], tmp_path: Path) -> None:
    """Bug: KeyError, or a file of the note's choice that is read."""
    run = shutil.copytree(twins[1], tmp_path / "run")
    shutil.rmtree(run / "checkpoint" / "replay")
    buffer = relive.ReplayBuffer(10, seed=0)
    buffer.push([0.0], 0, 0.0, False, [1.0])
    buffer.save(run / "checkpoint" / "replay", note={"step": 3})
    with pytest.raises(SnapshotError, match="expected the snapshot of a run's checkpoint, got another"):
        resume(run)


def test_what_cannot_be_resumed_is_refused_and_left_alone(twins: tuple[Path, Path], tmp_path: Path) -> None:
    """Bug: a finished run trained on, settings that changed half way, two trainings in one directory."""
    through, killed = twins
    cases: dict[str, tuple[Path, str]] = {
        "finished": (
            shutil.copytree(through, tmp_path / "a"),
            r"expected a run that was interrupted or killed, got one",
        ),
        "none": (tmp_path / "b", r"b: expected a run with a checkpoint, found none \(--checkpoint-every N makes"),
        "too early": (
            tmp_path / "c",
            r"c: expected a run with a checkpoint, found none \(its first was due at step 200",
        ),
        "changed": (shutil.copytree(killed, tmp_path / "d"), r"config\.json, got others \(steps, agent\)"),
        "no run": (tmp_path, r"expected a run directory with config\.json in it, found none"),
    }
    killed_run(replace(TINY, checkpoint_every=None), tmp_path / "b", 250)
    killed_run(TINY, tmp_path / "c", 150)
    config = json.loads((tmp_path / "d" / "config.json").read_text())
    config["agent"]["gamma"] = 0.5
    (tmp_path / "d" / "config.json").write_text(json.dumps({**config, "steps": 500}))
    for name, (run, says) in cases.items():
        before = contents(run)
        with pytest.raises(ConfigError, match=says):
            resume(run)
        assert contents(run) == before, name


@pytest.mark.parametrize("content", [b"", b"[1]", b"{}", b"null", b"\xff", None])
def test_a_result_that_is_none_is_named(
    content: bytes | None, twins: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bug: a traceback; a finished run taken for one that goes on, because a file of it was damaged."""
    path = shutil.copytree(twins[1], tmp_path / "run") / "result.json"
    path.mkdir() if content is None else path.write_bytes(content)
    assert main(["train", "--resume", str(tmp_path / "run")]) == 2
    said = capsys.readouterr()
    assert re.search(r"/result\.json: expected the result of a run, got .*\. Remove it to go on from", said.err)
    assert said.out == ""


def test_a_run_that_is_running_is_not_resumed(twins: tuple[Path, Path], tmp_path: Path) -> None:
    """Bug: two trainings that write to one directory; a lock that outlives its holder."""
    run = shutil.copytree(twins[1], tmp_path / "run")
    with lock_run(run), pytest.raises(ConfigError, match="expected a run that nobody trains, got one whose training"):
        resume(run)

    def concurrent(*_: Any) -> None:
        with pytest.raises(ConfigError, match="expected a run that nobody trains"):
            resume(tmp_path / "new")
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):  # every training holds it
        patch.setattr(Trainer, "advance", concurrent)
        train(TINY, tmp_path / "new")
    resume(run)


def test_a_failed_save_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: the agent of the committed checkpoint overwritten or removed before the new one is committed."""
    config = replace(TINY, checkpoint_every=100)
    train(config, tmp_path / "through")
    save = relive.ReplayBuffer.save

    def failing(buffer: relive.ReplayBuffer, path: Path, **how: Any) -> int:
        if how["note"]["step"] == 300:
            raise OSError("disk full")
        return save(buffer, path, **how)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError, match="disk full") as caught:
        patch.setattr(relive.ReplayBuffer, "save", failing)
        train(config, tmp_path / "run")
    assert caught.value.__notes__ == [
        "The run stopped at step 300. Its checkpoint at step 200 is whole: once this is mended, "
        f"`relive train --resume {tmp_path / 'run'}` goes on."
    ]
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoint").glob("*.pt")) == [
        "agent-200.pt",
        "agent-300.pt",
    ]
    resume(tmp_path / "run")
    assert list(differences(tmp_path / "through", tmp_path / "run")) == []
    assert [path.name for path in (tmp_path / "run" / "checkpoint").glob("agent*")] == ["agent-400.pt"]


@pytest.mark.parametrize("name", ["write_file", "save", "unlink"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_place_of_a_checkpoint(
    name: str, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: an order of writing in which the buffer is committed without its agent, or the agent dropped too early."""
    config = replace(TINY, checkpoint_every=100, sampler="prioritized")
    train(config, tmp_path / "through")
    owner: Any = {"write_file": train_checkpoint, "save": relive.ReplayBuffer, "unlink": Path}[name]
    act, calls = getattr(owner, name), 0

    def deadly(*args: Any, **how: Any) -> Any:
        nonlocal calls
        calls += name != "unlink" or args[0].name.startswith("agent-")
        fatal = calls == 2
        if fatal and when == "before":
            raise Killed
        done = act(*args, **how)
        if fatal:
            raise Killed
        return done

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(owner, name, deadly)
        train(config, tmp_path / "run")
    assert (
        checkpoint_step(tmp_path / "run")
        == {"write_file": 100, "save": 100 if when == "before" else 200, "unlink": 300}[name]
    )
    resume(tmp_path / "run")
    assert list(differences(tmp_path / "through", tmp_path / "run")) == []
    assert [path.name for path in (tmp_path / "run" / "checkpoint").glob("agent*")] == ["agent-400.pt"]


def test_checkpoints_change_the_run_and_only_they_do(tmp_path: Path) -> None:
    """Bug: environments that are not reset at a checkpoint (then none could be resumed exactly), or are without one."""
    plain = replace(TINY, checkpoint_every=None)
    train(plain, tmp_path / "plain")
    train(replace(TINY, checkpoint_every=4000), tmp_path / "none")
    train(TINY, tmp_path / "some")
    returns = [read_metrics(tmp_path / name)["return_mean"] for name in ("plain", "none", "some")]
    assert np.array_equal(returns[0], returns[1], equal_nan=True)
    assert not np.array_equal(returns[0], returns[2], equal_nan=True)
    assert "checkpoint" not in (tmp_path / "none" / "summary.md").read_text().split("## Files")[1]
    assert "`checkpoint`" in (tmp_path / "some" / "summary.md").read_text().split("## Files")[1]


def test_the_proof_is_of_the_settings_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a proof of a run so short that nothing is learned, evicted or evaluated in one of its halves."""
    config = replace(RUNS["prioritized, 4 environments"], learning_starts=1000, update_every=256, capacity=10_000)
    short = shorten(config, 400)
    assert (short.steps, short.checkpoint_every, short.sampler) == (400, 200, "prioritized")
    assert short.capacity == 400 and short.learning_starts <= 100 and short.update_every <= 50
    assert 0 < short.eval_every < 200
    assert replace(short, **{name: getattr(config, name) for name in vars(config) if name != "agent"}) == config
    monkeypatch.setattr("relive.train.prove.PROBE_SECONDS", 0.2)
    assert 64 <= shorten(config, None).steps <= 10_000
    with pytest.raises(ConfigError, match="steps: expected at least 8, two of every environment, got 6"):
        shorten(config, 6)


def test_the_proof_is_of_both_halves_of_a_run_with_a_dataset(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: all the dataset's updates, however many, before the few steps; a budget that counts one of both alone."""
    alone = shorten(replace(ALONE, offline_updates=20_000), 401)
    assert (alone.offline_updates, alone.checkpoint_every, alone.length) == (400, 200, 400)
    both = shorten(replace(BOTH, offline_updates=20_000, num_envs=4), 400)
    assert (both.offline_updates, both.steps, both.checkpoint_every) == (200, 200, 100)
    only_steps = shorten(replace(BOTH, offline_updates=0), 400)
    assert (only_steps.offline_updates, only_steps.steps, only_steps.checkpoint_every) == (0, 400, 200)
    monkeypatch.setattr("relive.train.prove.PROBE_SECONDS", 0.1)
    for config in (ALONE, BOTH):
        assert 64 <= shorten(config, None).length <= 10_000
    with pytest.raises(ConfigError, match="at least 16, two of every environment and as many updates, got 12"):
        shorten(replace(BOTH, num_envs=4), 12)
    with pytest.raises(ConfigError, match="steps: expected at least 2, got 1"):
        shorten(ALONE, 1)


def begin_or_go_on(config: TrainConfig, run_dir: Path) -> None:
    """What a scheduler does with a machine that may vanish; in a process of its own."""
    if checkpoint_step(run_dir) is None:
        shutil.rmtree(run_dir, ignore_errors=True)
        train(config, run_dir)
    else:
        resume(run_dir)


def kill_often(config: TrainConfig, run_dir: Path, kills: int, longest: float) -> int:
    """Train, with this many SIGKILLs at random instants on the way; returns how many hit."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["relive.train"])  # a process starts in a tenth of a second
    for hits in range(kills + 1):
        process = context.Process(target=begin_or_go_on, args=(config, run_dir))
        process.start()
        if hits < kills:
            time.sleep(0.1 + random.uniform(0.0, longest))
            process.kill()
        process.join()
        assert process.exitcode in (0, -signal.SIGKILL), "a process found what a killed one left behind and failed"
        if process.exitcode == 0:
            return hits
    raise AssertionError("the last process was killed by somebody else")


@pytest.mark.parametrize(
    ("kills", "source"),
    [
        (5, "steps"),
        (3, "a dataset, then steps"),
        pytest.param(300, "steps", marks=pytest.mark.slow),
        pytest.param(300, "a dataset, then steps", marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_instant_it_loses_no_more_than_a_checkpoint(
    kills: int, source: str, recorded: Path, tmp_path: Path
) -> None:
    """Bug: an instant, most of all within a checkpoint, at which the agent and the buffer are of different steps."""
    # A checkpoint every sixth step: most of the time goes into making them.
    config = replace(TINY, steps=30 * kills, checkpoint_every=6, sampler="prioritized", eval_every=100 * kills)
    if source != "steps":
        both = {"steps": 15 * kills, "offline_updates": 15 * kills, "online": True, "offline_share": 0.3}
        config = replace(config, offline=str(recorded), **both)  # type: ignore[arg-type]
    train(config, tmp_path / "through")
    hits = kill_often(config, tmp_path / "run", kills, 0.5)
    assert list(differences(tmp_path / "through", tmp_path / "run")) == []
    assert hits > 0
    # And nothing half written is left, of the run or of its checkpoint.
    for folder in (".", "checkpoint"):
        through, run = (
            {path.name for path in (tmp_path / name / folder).iterdir() if "tfevents" not in path.name}
            for name in ("through", "run")
        )
        assert through == run


@pytest.mark.parametrize("source", [pytest.param("steps", marks=pytest.mark.slow), "a dataset, then steps"])
def test_the_proof_kills_a_real_training_and_compares(source: str, recorded: Path, tmp_path: Path) -> None:
    """Bug: a proof of another run, without a kill, or that writes to the run it is about."""
    # Four environments in vector form make no step where they reset: checkpoints a little off the round numbers.
    config = replace(TINY, num_envs=4, sampler="prioritized")
    if source != "steps":
        config = replace(config, offline=str(recorded), offline_updates=100, online=True)
    run = killed_run(config, tmp_path / "run", 50)
    before = contents(run)
    told: list[str] = []
    proof = prove_resume(run, steps=1200, report=told.append)
    assert proof.passed, proof.differences
    assert proof.config == shorten(config, 1200)
    assert len(told) == 3
    place, extent = f"step {proof.resumed_at}", "1,200 steps"
    if source != "steps":
        extent = "600 updates and 600 steps"
        place = f"update {proof.resumed_at}" if proof.resumed_at <= 600 else f"step {proof.resumed_at - 600}"
    assert f"for {extent}, with a checkpoint every {proof.config.checkpoint_every} of them" in told[0]
    assert f"{proof.killed_after:.2f} s after its first checkpoint. Resuming it from {place}." in told[-1]
    assert proof.resumed_at % (proof.config.checkpoint_every or 0) < 10
    assert contents(run) == before
