"""Runs: what they leave behind, and that they are a function of their config."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from arena import ID
from numpy.typing import NDArray
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import relive
from relive.dqn import AgentConfig, TrainConfig, Update, preset
from relive.errors import ConfigError
from relive.train import evaluate, load_config, load_policy, plot_runs, resume, train
from relive.train.environments import make_training_envs
from relive.train.evaluate import EVALUATION_SEED, FINAL_SEED, Act, Evaluation
from relive.train.log import RunLog, read_metrics
from relive.train.loop import Progress, Trainer
from relive.train.plot import smooth
from relive.train.rundir import ACTORS, CHECKPOINT, CONTENTS
from relive.train.schedules import updates_owed
from relive.train.state import FrameStack
from relive.train.stop import StopRequest

pytestmark = pytest.mark.usefixtures("blank_curves")

TINY = TrainConfig(
    env="CartPole-v1",
    steps=800,
    capacity=1000,
    learning_starts=200,
    replay_ratio=0.25,
    eval_every=300,
    eval_episodes=4,
    final_eval_episodes=6,
    agent=AgentConfig(hidden=(16,), batch_size=8, target_every=20),
)


def weights(run: Path, which: str = "last") -> dict[str, torch.Tensor]:
    loaded: dict[str, torch.Tensor] = torch.load(run / f"{which}.pt", weights_only=True)
    return loaded


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def metrics_but_times(run: Path) -> NDArray[np.float64]:
    columns = read_metrics(run)
    return np.stack([columns[name] for name in columns if name not in ("seconds", "steps_per_second")])


@pytest.mark.parametrize("num_envs", [1, 4])
def test_a_run_is_a_function_of_its_config(tmp_path: Path, num_envs: int) -> None:
    """Bug: an unseeded generator in the environment, exploration, network or buffer, or a global one."""
    config = replace(TINY, num_envs=num_envs)
    train(config, tmp_path / "a")
    torch.rand(3), np.random.rand(3)  # noqa: NPY002 - global generators must not matter
    train(config, tmp_path / "b")
    train(replace(config, seed=1), tmp_path / "c")
    assert np.array_equal(metrics_but_times(tmp_path / "a"), metrics_but_times(tmp_path / "b"), equal_nan=True)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


PRIORITIZED = replace(TINY, sampler="prioritized", num_envs=4)


@pytest.mark.parametrize("config", [PRIORITIZED, replace(PRIORITIZED, sampler="rank-based", newest=2)], ids=str)
def test_a_prioritized_run_is_a_function_of_its_config(tmp_path: Path, config: TrainConfig) -> None:
    """Bug: priorities, or the draws from them, that depend on anything but the run; a setting parsed and ignored."""
    others = {
        "uniform": replace(config, sampler="uniform"),
        "alpha": replace(config, priority_alpha=0.9),
        "beta": replace(config, priority_beta=0.9),
        "newest": replace(config, newest=5),
    }
    train(config, tmp_path / "a")
    train(config, tmp_path / "b")
    assert np.array_equal(metrics_but_times(tmp_path / "a"), metrics_but_times(tmp_path / "b"), equal_nan=True)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert load_config(tmp_path / "a") == config
    for name, other in others.items():
        train(other, tmp_path / name)
        assert not same(weights(tmp_path / "a"), weights(tmp_path / name)), name


def test_a_uniform_run_knows_nothing_of_priorities(tmp_path: Path) -> None:
    """Bug: weights of one, or priorities kept in vain."""
    trainer, drawn, given, betas = watched(TINY, tmp_path)
    assert len(drawn) == 100
    assert given == []
    assert set(betas) == {None}
    assert all("weight" not in vars(batch) for batch, _ in drawn)
    assert trainer.buffer.sampler == relive.Uniform()


def watched(
    config: TrainConfig, run_dir: Path
) -> tuple[Trainer, list[tuple[relive.Batch, Update]], list[tuple[Any, Any]], list[float | None]]:
    """Train for 600 steps by hand; note every batch with its update, priorities given, and beta of every draw."""
    trainer = Trainer(config, make_training_envs(config.env, config.num_envs), run_dir, StopRequest(), lambda _: None)
    drawn: list[tuple[relive.Batch, Update]] = []
    given: list[tuple[Any, Any]] = []
    betas: list[float | None] = []
    update, update_priorities = trainer.agent.update, trainer.buffer.update_priorities
    sample = trainer.buffer.sample

    def watched_sample(n: int, *, beta: float | None, **how: Any) -> relive.Batch:
        betas.append(beta)
        return sample(n, beta=beta, **how)

    def watched_update(batch: Any) -> Update:
        drawn.append((batch, update(batch)))
        return drawn[-1][1]

    def watched_priorities(ids: Any, abs_td: Any) -> int:
        given.append((ids.clone(), abs_td.clone()))
        return update_priorities(ids, abs_td)

    trainer.agent.update = watched_update  # type: ignore[method-assign]
    trainer.buffer.update_priorities = watched_priorities  # type: ignore[method-assign]
    trainer.buffer.sample = watched_sample  # type: ignore[method-assign]
    with RunLog(run_dir) as log:
        while trainer.state.step < 600:
            trainer.advance(log)
    return trainer, drawn, given, betas


def test_every_batch_is_weighted_and_gives_its_errors_back(tmp_path: Path) -> None:
    """Bug: errors of other transitions, signed or weighted ones; weights drawn and dropped; beta that stands still."""
    config = replace(PRIORITIZED, num_envs=1, priority_alpha=0.8, priority_eps=0.01, priority_beta=0.0)
    trainer, drawn, given, betas = watched(config, tmp_path)
    assert trainer.buffer.sampler == relive.Prioritized(0.8, 0.01)
    assert len(drawn) == len(given) == 100
    for (batch, update), (ids, abs_td) in zip(drawn, given, strict=True):
        assert torch.equal(ids, batch.ids)
        assert torch.equal(abs_td, update.delta.abs())
        assert update.weight is batch.weight
    assert betas == [step / 800 for step in range(204, 604, 4)]


def test_a_prioritized_run_that_diverges_says_so(tmp_path: Path) -> None:
    """Bug: a run told about an argument of the buffer, or priorities that are not a number."""
    agent = replace(TINY.agent, learning_rate=1e30, max_grad_norm=None)
    with pytest.raises(ConfigError, match=r"training: expected finite TD errors, .*\(at step 2\d\d\).*learning_rate"):
        train(replace(PRIORITIZED, agent=agent), tmp_path / "run")


def test_evaluating_more_often_changes_no_training(tmp_path: Path) -> None:
    """Bug: evaluation shares the training's generator, environments or target network."""
    train(TINY, tmp_path / "seldom")
    train(replace(TINY, eval_every=100, eval_episodes=2), tmp_path / "often")
    assert same(weights(tmp_path / "seldom"), weights(tmp_path / "often"))


@pytest.mark.usefixtures("drawn_curves")
def test_the_run_directory_holds_all_that_the_summary_promises(tmp_path: Path) -> None:
    """Bug: a file missing, empty, or telling another story than the others."""
    run = tmp_path / "run"
    result = train(TINY, run)
    assert {path.name for path in run.iterdir()} == {
        next(path.name for path in run.glob(pattern)) for pattern in CONTENTS if pattern not in (CHECKPOINT, ACTORS)
    }
    assert load_config(run) == TINY
    assert result.steps == TINY.steps
    assert result.updates == updates_owed(TINY, TINY.steps) == 150
    metrics = read_metrics(run)
    assert (np.diff(metrics["step"]) > 0).all()
    evaluated = ~np.isnan(metrics["eval_mean"])
    assert metrics["step"][evaluated].tolist() == [300, 600, 800]
    assert np.isnan(metrics["loss"][metrics["step"] <= 200]).all()
    assert math.isfinite(metrics["loss"][-1])
    stored = json.loads((run / "result.json").read_text())
    assert result.final is not None
    assert stored["final"]["returns"] == list(result.final.returns)
    assert stored["updates"] == metrics["updates"][-1] == 150
    summary = (run / "summary.md").read_text()
    assert f"{result.final.mean:.1f} ±" in summary
    assert "`agent.hidden` = (16,)" in summary
    with Image.open(run / "curve.png") as picture:
        assert picture.width > 800
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 20  # something is drawn
    board = EventAccumulator(str(run)).Reload()
    shown = [(event.step, event.value) for event in board.Scalars("evaluation/mean")]
    assert shown == list(zip(metrics["step"][evaluated], np.float32(metrics["eval_mean"][evaluated]), strict=True))


def test_training_returns_are_those_of_the_episodes(tmp_path: Path) -> None:
    """Bug: a return that runs on into the next episode, loses its last reward, or counts a reset as a step."""
    result = train(replace(TINY, env=ID, steps=900), tmp_path / "run")
    metrics = read_metrics(tmp_path / "run")
    count = np.diff(metrics["episodes"], prepend=0)
    there = ~np.isnan(metrics["return_mean"])
    assert (there == (count > 0)).all()
    assert result.episodes == count.sum()
    # Returns are seeds drawn from 0..99 (the first is the run's, 0): their mean over some 225 episodes is 49.5 +- 2.
    mean = np.average(metrics["return_mean"][there], weights=count[there])
    assert 40 < mean < 60
    assert 3.5 < result.steps / result.episodes < 4.5  # an episode of seed s lasts 1 + s % 7 steps: 4 on average


def test_stored_weights_repeat_the_evaluations_of_the_run(tmp_path: Path) -> None:
    """Bug: weights saved after a further update, or for a network of another shape; other seeds at the end."""
    run = tmp_path / "run"
    result = train(TINY, run)
    policy = load_policy(run, "best")
    again = evaluate(policy, TINY.env, episodes=TINY.eval_episodes, seed=EVALUATION_SEED)
    final = evaluate(policy, TINY.env, episodes=TINY.final_eval_episodes, seed=FINAL_SEED)
    assert again is not None
    assert final is not None
    assert result.final is not None
    assert again.mean == np.nanmax(read_metrics(run)["eval_mean"])
    assert final.returns == result.final.returns


@pytest.mark.parametrize(("keep", "evaluation"), [("best", 2), ("last", 3)])
def test_the_weights_kept_are_those_that_keep_names(
    keep: Literal["best", "last"], evaluation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: `keep` parsed and ignored; a worse evaluation, or one equally good but older, taken for the best."""
    probe = np.random.default_rng(0).normal(0, 0.2, (500, 4)).astype(np.float32)
    policies: list[NDArray[np.int64]] = []
    means = iter([30.0, 5.0, 30.0, 20.0, 0.0])  # four evaluations on the way, and the final one

    def scripted(act: Act, env: str, **_: object) -> Evaluation:
        policies.append(act(probe))
        return Evaluation((next(means),), (1,), 0.0)

    monkeypatch.setattr("relive.train.loop.evaluate", scripted)
    monkeypatch.setattr("relive.train.runs.evaluate", scripted)
    result = train(replace(TINY, eval_every=200, keep=keep), tmp_path / "run")
    assert (result.kept, result.kept_step) == (keep, 200 * (evaluation + 1))
    assert all((policies[-2] != other).any() for other in policies[:3])  # else nothing could be told apart
    assert (policies[-1] == policies[evaluation]).all()
    assert (load_policy(tmp_path / "run", keep)(probe) == policies[evaluation]).all()


def test_stop_return_ends_the_run_at_an_evaluation(tmp_path: Path) -> None:
    """Bug: the run goes on, or ends on the noisy returns of training episodes."""
    result = train(replace(TINY, stop_return=1.0, threshold=1.0), tmp_path / "run")
    assert (result.status, result.steps, result.passed) == ("stopped early", 300, True)
    words = r"finished: an evaluation reached 1 \(stop_return\)"  # nothing went wrong, nothing is left to do
    assert re.search(rf"\| ended \| {words} \|", (tmp_path / "run" / "summary.md").read_text())
    with pytest.raises(ConfigError, match=f"interrupted or killed, got one that is {words}"):
        resume(tmp_path / "run")


def test_threshold_is_judged_by_the_final_evaluation(tmp_path: Path) -> None:
    """Bug: a missed threshold reported as reached."""
    result = train(replace(TINY, steps=300, threshold=499.0), tmp_path / "run")
    assert result.passed is False
    assert "threshold 499 missed" in (tmp_path / "run" / "summary.md").read_text()


def test_a_run_shorter_than_its_warm_up_makes_no_update(tmp_path: Path) -> None:
    """Bug: division by zero updates, or an update on data that is not there yet."""
    result = train(replace(TINY, steps=100), tmp_path / "run")
    assert (result.steps, result.updates) == (100, 0)
    assert np.isnan(read_metrics(tmp_path / "run")["loss"]).all()


def test_a_run_never_writes_over_another(tmp_path: Path) -> None:
    """Bug: half of an old run mixed with a new one."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").write_text("x")
    with pytest.raises(ConfigError, match="expected a new or empty one"):
        train(TINY, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["precious"]


def test_a_refused_run_leaves_no_directory_and_torch_as_it_was(tmp_path: Path) -> None:
    """Bug: an empty run directory, or one thread for the rest of the user's program."""
    threads = torch.get_num_threads()
    with pytest.raises(ConfigError, match="device: expected one that PyTorch can use here, got 'warp'"):
        train(replace(TINY, device="warp", threads=threads + 1), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("env", "num_envs"), [(ID, 1), (ID, 3), ("CartPole-v1", 4)])
def test_the_agent_acts_on_the_stacks_it_learns_from(env: str, num_envs: int, tmp_path: Path) -> None:
    """Bug: frames of the episode before in a stack after a reset, in either autoreset mode of the environments."""
    config = replace(TINY, env=env, num_envs=num_envs, stack=3, capacity=num_envs * 300, learning_starts=10**9)
    acted: list[NDArray[Any]] = []
    buffers: list[relive.ReplayBuffer] = []
    steps = stored_ids(config, acted, buffers)
    buffer = buffers[0]
    compared = 0
    for obs, ids in zip(acted, steps, strict=True):
        live = ids >= 0
        assert np.array_equal(buffer.get(ids[live]).obs, obs[live])
        compared += int(live.sum())
    assert compared == len(buffer) > 200


def stored_ids(
    config: TrainConfig, acted: list[NDArray[Any]], buffers: list[relive.ReplayBuffer]
) -> list[NDArray[np.int64]]:
    """Drive a Trainer's interaction by hand; note what the agent saw and which transitions were stored."""
    trainer = Trainer(config, make_training_envs(config.env, config.num_envs), Path(), StopRequest(), lambda _: None)
    buffers.append(trainer.buffer)
    ids: list[NDArray[np.int64]] = []
    act, step = trainer.agent.act, trainer.writer.step

    def watched_act(obs: NDArray[Any], epsilon: float) -> NDArray[np.int64]:
        acted.append(obs.copy())
        return act(obs, epsilon)

    def watched_step(*args: Any) -> NDArray[np.int64]:
        ids.append(step(*args))
        return ids[-1]

    trainer.agent.act = watched_act  # type: ignore[method-assign]
    trainer.writer.step = watched_step  # type: ignore[method-assign]
    while trainer.state.step < 240:
        trainer.interact()
    return ids


def test_a_frame_stack_repeats_the_first_frame_where_an_episode_begins() -> None:
    """Bug: zeros, or the frames of another lane."""
    frames = np.arange(8).reshape(4, 2)  # [time, lane]
    stack = FrameStack(3, frames[0])
    stack.push(frames[1], np.array([False, False]))
    stack.push(frames[2], np.array([True, False]))
    stack.push(frames[3], np.array([False, False]))
    assert stack.obs.tolist() == [[4, 4, 6], [3, 5, 7]]


def test_progress_is_reported_with_every_evaluation(tmp_path: Path) -> None:
    """Bug: an evaluation falls between two reports and is never shown."""
    told: list[Progress] = []
    train(TINY, tmp_path / "run", report=told.append)
    assert [now.step for now in told if now.evaluation is not None] == [300, 600, 800]
    assert all(now.step <= now.steps and now.steps_per_second > 0 for now in told)
    assert math.isfinite(told[-1].loss)


def test_smoothing_is_a_weighted_mean_over_the_steps_behind() -> None:
    """Bug: a window that looks ahead, or rows of many short episodes weighing as much as one long one."""
    random = np.random.default_rng(0)
    step = np.cumsum(random.integers(1, 50, 60)).astype(np.float64)
    value, weight = random.normal(size=60), random.integers(1, 9, 60).astype(np.float64)
    smoothed = smooth(step, value, weight, 120.0)
    for at in range(60):
        window = (step > step[at] - 120.0) & (np.arange(60) <= at)
        assert smoothed[at] == pytest.approx(np.average(value[window], weights=weight[window]))


def test_runs_in_two_environments_are_drawn_in_two_panels(tmp_path: Path) -> None:
    """Bug: returns of different environments on one axis."""
    train(replace(TINY, steps=300), tmp_path / "a")
    train(replace(TINY, steps=300, env=ID), tmp_path / "b")
    plot_runs([tmp_path / "a"], tmp_path / "one.png")
    plot_runs([tmp_path / "a", tmp_path / "b"], tmp_path / "two.png")
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "two.png") as two:
        assert two.height > 1.8 * one.height


def test_dqn_learns_cartpole(tmp_path: Path) -> None:
    """Bug: anything between the environment and the weights that makes learning worse than a random policy's 22."""
    config = replace(preset("CartPole-v1"), stop_return=200.0, threshold=150.0)
    result = train(config, tmp_path / "run")
    assert result.passed
