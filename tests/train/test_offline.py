"""Runs that learn from a dataset: alone, and with steps in the environment after."""

import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import relive
from relive import audit, interop
from relive.cli import main
from relive.dqn import AgentConfig, TrainConfig
from relive.errors import ConfigError, ReplayError, SchemaError
from relive.interop.summary import summarise
from relive.study.offline import play
from relive.train import load_config, train
from relive.train.environments import make_training_envs
from relive.train.log import RunLog, read_metrics
from relive.train.loop import Progress, Trainer
from relive.train.stop import StopRequest

pytestmark = pytest.mark.usefixtures("blank_curves")

ENV = "CartPole-v1"
SIZE = 1_000

ALONE = TrainConfig(
    env=ENV,
    offline="data.npz",
    offline_updates=300,
    eval_every=100,
    eval_episodes=3,
    final_eval_episodes=4,
    agent=AgentConfig(hidden=(16,), batch_size=8, target_every=20),
)
BOTH = replace(
    ALONE, online=True, steps=400, capacity=1_000, learning_starts=40, replay_ratio=0.5, offline_share=0.25, num_envs=2
)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> relive.ReplayBuffer:
    """Random play of CartPole, written to data.npz in the directory that the test works in."""
    monkeypatch.chdir(tmp_path)
    buffer = play(ENV, [(None, 1.0, 1.0)], SIZE)
    store(buffer, "data.npz")
    return buffer


def store(buffer: relive.ReplayBuffer, name: str) -> None:
    interop.write(interop.of_buffer(buffer), Path(name))


def watched(config: TrainConfig) -> tuple[Trainer, list[relive.Batch]]:
    """Train by hand to the end; every batch that was learned from."""
    envs = make_training_envs(config.env, config.num_envs)
    trainer = Trainer(config, envs, Path(), StopRequest(), lambda _: None)
    seen: list[relive.Batch] = []
    update = trainer.agent.update

    def watched_update(batch: Any) -> Any:
        seen.append(batch)
        return update(batch)

    trainer.agent.update = watched_update  # type: ignore[method-assign]
    with RunLog(Path(), updates_before=config.updates_before) as log:
        while not trainer.done:
            trainer.advance(log)
    envs.close()
    return trainer, seen


def rows(batch: Any) -> NDArray[np.float64]:
    """What tells transitions apart: [B, 4 + 1 + 4]."""
    parts = (batch.obs, torch.as_tensor(batch.action)[:, None], batch.next_obs)
    return np.concatenate([np.asarray(part, np.float64) for part in parts], axis=1)


def test_each_pass_learns_from_every_transition_once(data: relive.ReplayBuffer) -> None:
    """Bug: draws with replacement, transitions of the last episode left out, steps made in the environment."""
    trainer, seen = watched(replace(ALONE, offline_updates=2 * SIZE // 8, agent=replace(ALONE.agent, batch_size=8)))
    ids = np.concatenate([batch.ids.numpy() for batch in seen]).reshape(2, SIZE)
    assert all(np.array_equal(np.sort(one), np.arange(SIZE)) for one in ids)
    assert not np.array_equal(*ids)
    learned = np.concatenate([rows(batch) for batch in seen[: SIZE // 8]])
    there = rows(data.get(data.ids))
    assert np.array_equal(learned[np.lexsort(learned.T)], there[np.lexsort(there.T)])
    assert len(trainer.buffer) == trainer.state.step == 0


@pytest.mark.parametrize("config", [ALONE, BOTH], ids=["alone", "then online"])
def test_a_run_from_data_is_a_function_of_its_config(config: TrainConfig, data: relive.ReplayBuffer) -> None:
    """Bug: passes, or the mixture's rounding, in an order that no seed decides."""

    def result(name: str, config: TrainConfig) -> list[Any]:
        train(config, Path(name))
        metrics = read_metrics(Path(name))
        loaded = torch.load(Path(name, "last.pt"), weights_only=True)
        kept = [metrics[column] for column in metrics if column not in ("seconds", "steps_per_second")]
        return [np.nan_to_num(np.stack(kept), nan=-1.0).tolist(), {key: one.tolist() for key, one in loaded.items()}]

    first = result("a", config)
    assert result("b", config) == first
    assert result("c", replace(config, seed=1))[1] != first[1]
    assert result("d", replace(config, agent=replace(config.agent, cql_alpha=1.0)))[1] != first[1]


@pytest.mark.usefixtures("drawn_curves")
def test_a_run_from_data_alone_leaves_what_every_run_leaves(data: relive.ReplayBuffer) -> None:
    """Bug: evaluations at step 0 drawn on top of one another, or a summary that tells of steps nobody made."""
    told: list[Progress] = []
    result = train(ALONE, Path("run"), report=told.append)
    assert (result.status, result.steps, result.updates, result.episodes) == ("finished", 0, 300, 0)
    assert load_config(Path("run")) == ALONE
    metrics = read_metrics(Path("run"))
    evaluated = ~np.isnan(metrics["eval_mean"])
    assert metrics["updates"][evaluated].tolist() == [100, 200, 300]
    assert (metrics["step"] == 0).all()
    assert np.isnan(metrics["epsilon"]).all()
    assert result.kept_step == metrics["updates"][evaluated][2 - int(np.argmax(metrics["eval_mean"][evaluated][::-1]))]
    assert [(now.step, now.steps) for now in told if now.evaluation is not None] == [(100, 300), (200, 300), (300, 300)]
    summary = Path("run/summary.md").read_text()
    assert "| dataset | data.npz, 300 of 300 updates from it alone |" in summary
    assert "environment steps |" not in summary
    assert f"from update {result.kept_step} (no step yet) |" in summary
    board = EventAccumulator("run").Reload()
    assert [event.step for event in board.Scalars("evaluation/mean")] == [100, 200, 300]
    with Image.open("run/curve.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 20


def test_steps_follow_with_their_share_of_the_data(data: relive.ReplayBuffer) -> None:
    """Bug: the dataset dropped once the agent acts, shares swapped, updates counted twice, random actions again."""
    trainer, seen = watched(BOTH)
    state = trainer.state
    assert (state.step, state.updates) == (400, 300 + 180)
    for batch in seen[:300]:
        assert (batch.ids < SIZE).all()  # the dataset's own
    part = np.array([np.bincount(trainer._source.part_of(batch.ids), minlength=2) for batch in seen[300:]])  # type: ignore[union-attr]
    assert (part == [2, 6]).all()  # a quarter of 8
    metrics = read_metrics(Path())
    acting = metrics["step"] > 0
    assert (metrics["epsilon"][acting] == BOTH.epsilon_end).all()
    evaluated = ~np.isnan(metrics["eval_mean"])
    places = (np.minimum(metrics["updates"], 300) + metrics["step"])[evaluated]
    late = places - np.arange(100, 800, 100)
    assert late.min() == 0 and late.max() <= 1  # two environments step together


def test_a_share_of_zero_leaves_the_data_behind(data: relive.ReplayBuffer) -> None:
    """Bug: a share of 0 refused by the mixture, or rounded up."""
    trainer, seen = watched(replace(BOTH, offline_share=0.0))
    assert trainer._source is trainer.buffer
    assert len(seen) == 480


def test_priorities_are_kept_for_steps_and_not_for_the_data(data: relive.ReplayBuffer) -> None:
    """Bug: the mixture's ids taken for the buffer's own, weights asked for while there is nothing but the data."""
    trainer, seen = watched(replace(BOTH, sampler="prioritized"))
    assert all("weight" not in vars(batch) for batch in seen[:300])
    assert all("weight" in vars(batch) for batch in seen[300:])
    newest = trainer.buffer.sample(64, beta=1.0).weight
    assert newest.std() > 0  # of one priority all weights would be 1


def test_learning_from_random_play_beats_it_by_far(data: relive.ReplayBuffer) -> None:
    """Bug: anything between the file and the weights that makes learning worse than what was recorded."""
    behaviour = summarise(interop.of_buffer(data)).returns.mean
    assert 15 < behaviour < 35
    agent = AgentConfig(double=True, hidden=(64, 64), cql_alpha=0.1, target_every=100)
    config = replace(ALONE, offline_updates=1_500, eval_every=250, eval_episodes=20, agent=agent)
    result = train(config, Path("run"))
    assert result.final is not None
    assert result.final.mean > 3 * behaviour


def broken(change: str) -> relive.ReplayBuffer:
    """Transitions of CartPole's shapes with one thing wrong in them."""
    fields = {"obs": np.zeros(4, np.float32), "action": np.int64(1), "reward": 1.0, "next_obs": np.ones(4, np.float32)}
    fields |= {
        "shape": {"obs": np.zeros(8, np.float32), "next_obs": np.ones(8, np.float32)},
        "dtype": {"obs": np.zeros(4), "next_obs": np.ones(4)},
        "kind": {"action": np.zeros(2, np.float32)},
        "action": {"action": np.int64(2)},
        "nan": {"next_obs": np.array([0, math.nan, 0, 0], np.float32)},
        "reward": {"reward": math.inf},
    }[change]
    buffer = relive.ReplayBuffer(10, seed=0)
    for _ in range(5):
        buffer.push(fields["obs"], fields["action"], fields["reward"], True, fields["next_obs"])
    return buffer


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("shape", r"obs: expected float32 \(4,\), got float32 \(8,\) \(bad\.npz, against CartPole-v1\)"),
        ("dtype", r"obs: expected float32 \(4,\), got float64 \(4,\)"),
        ("kind", r"action: expected int64 \(\), got float32 \(2,\)"),
        ("action", r"action: expected 0 to 1, got 2 \(transition 0 of bad\.npz, against CartPole-v1\)"),
        ("nan", r"next_obs: expected finite numbers, got \[ ?0\. *nan.*relive check"),
        ("reward", r"reward: expected finite numbers, got inf"),
    ],
)
def test_data_of_another_environment_are_refused(
    change: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: a gather out of bounds, NaN in every weight, or an error of a matrix product."""
    monkeypatch.chdir(tmp_path)
    store(broken(change), "bad.npz")
    with pytest.raises(SchemaError, match=says):
        train(replace(ALONE, offline="bad.npz"), Path("run"))
    assert not Path("run").exists()


def test_a_bad_transition_has_the_place_that_check_gives_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: its id was told, a number that no lane of the dataset has."""
    monkeypatch.chdir(tmp_path)
    field = relive.Field("float32", (4,))
    buffer = relive.ReplayBuffer(12, relive.Schema(field, relive.Field("int64"), lanes=2), seed=0)
    for step in range(6):
        obs = np.zeros((2, 4), np.float32)
        buffer.push(obs, np.zeros(2, int), np.array([0, math.nan if step == 4 else 0]), np.ones(2, bool), obs + 1)
    store(buffer, "bad.npz")
    says = r"transition 4 of lane 1 of bad\.npz, against CartPole-v1\)\. Look with relive check\.$"
    with pytest.raises(SchemaError, match=says):
        train(replace(ALONE, offline="bad.npz"), Path("run"))
    (error,) = audit.check_path("bad.npz").errors
    assert error.first == audit.report.Place(1, 4)


def test_no_dataset_is_refused(tmp_path: Path) -> None:
    """Bug: a traceback, or an empty run directory left behind."""
    with pytest.raises(ReplayError, match="nowhere"):
        train(replace(ALONE, offline=str(tmp_path / "nowhere.npz")), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_refused_dataset_is_the_only_thing_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bug: --trust-pickle recommended, which train lacks; a run announced in a directory that does not remain."""
    monkeypatch.chdir(tmp_path)
    Path("a buffer.pkl").write_bytes(pickle.dumps({"obs": 1}))
    assert main(["train", ENV, "--offline", "a buffer.pkl"]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "convert it first: relive convert 'a buffer.pkl' 'a buffer.npz' --trust-pickle" in said.err
    assert list(Path("runs").iterdir()) == []


def test_curves_of_runs_with_and_without_data_share_a_picture(data: relive.ReplayBuffer) -> None:
    """Bug: a run at step 0 throughout is a vertical line."""
    from relive.train.plot import Curve, plot_runs

    for name, config in (("alone", ALONE), ("both", BOTH)):
        train(config, Path(name))
        curve = Curve(name, config, read_metrics(Path(name)))
        assert (np.diff(curve.place) > 0).all()
        assert curve.place[-1] == config.length
    plot_runs([Path("alone"), Path("both")], Path("two.png"))
    assert Path("two.png").stat().st_size > 10_000


def test_an_empty_dataset_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a run that waits for data that never come."""
    empty = relive.ReplayBuffer(10, relive.Schema.from_env(make_training_envs(ENV, 1)), seed=0)
    monkeypatch.setattr(interop, "read", lambda *_, **__: empty)
    with pytest.raises(ConfigError, match=r"data.npz: expected transitions to learn from, got none"):
        train(ALONE, tmp_path / "run")
