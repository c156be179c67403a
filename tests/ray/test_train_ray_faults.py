"""Runs on a Ray of several nodes, of which something dies: learning goes on, and what was lost is counted."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_train_ray import TINY, alive, all_gone

from relive.dqn import TrainConfig
from relive.train import Progress, Result, train
from relive.train.actor_log import read_actors
from relive.train.schedules import updates_owed

pytest.importorskip("ray")

SOON = 240.0  # seconds; a bound for what hangs, no measure of speed
LONG = replace(TINY, steps=1_000_000, replay_ratio=0.05, eval_every=1_000_000, eval_episodes=1, capacity=40_000)
Strike = Callable[[], None]


@pytest.fixture(autouse=True)
def told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relive.train.loop.REPORT_SECONDS", 0.0)


def of_class(name: str) -> list[dict[str, Any]]:
    """Ray actors of a class that live, with Pid and Address."""
    return [one for one in alive() if one["ActorClassName"].endswith(name) and one["State"] == "ALIVE"]


def run_until(config: TrainConfig, run: Path, strike: Strike, after: int, done: Callable[[list[str]], bool]) -> Any:
    """Train; strike once, after so many steps; stop 500 steps after all is told that is waited for.

    Returns:
        The result, what was told, and the steps made between the strike and the end.
    """
    began, struck, ends = time.monotonic(), 0, 0
    notes: list[str] = []

    def report(now: Progress) -> None:
        nonlocal struck, ends
        notes.extend(now.notes)
        assert time.monotonic() - began < SOON, notes
        if now.step >= after and not struck:
            struck = now.step
            strike()
        if struck and not ends and done(notes):
            ends = now.step + 500
        if ends and now.step >= ends:
            signal.raise_signal(signal.SIGTERM)

    result = train(config, run, report=report)
    assert all_gone()
    return result, notes, result.steps - struck


def went_on(result: Result, config: TrainConfig, steps: int) -> None:
    """Whether the learner did all it owed, up to a round that the stop may have cut short."""
    assert result.status == "interrupted" and steps >= 500
    assert updates_owed(config, result.steps - 64) <= result.updates <= updates_owed(config, result.steps)


def test_a_killed_actor_is_replaced_and_a_killed_shard_begins_with_the_checkpoint(cluster: Any, tmp_path: Path) -> None:
    """Bug: a learner that waits for the dead; a shard that begins empty though there is a checkpoint; wrong counts."""
    killed: list[int] = []

    def strike() -> None:
        for name in ("Player", "Shard"):
            killed.append(of_class(name)[0]["Pid"])
            os.kill(killed[-1], signal.SIGKILL)

    def told(notes: list[str]) -> bool:
        return any("died" in note for note in notes) and any("began anew" in note for note in notes)

    config = replace(LONG, checkpoint_every=300)
    result, notes, steps = run_until(config, tmp_path / "run", strike, 800, told)
    went_on(result, config, steps)
    assert result.restarts == 1
    (died,) = [note for note in notes if "died" in note]
    assert "(its process is gone on " in died and died.endswith("was replaced; restarts: 1")
    (anew,) = [note for note in notes if "began anew" in note]
    assert int(anew.split("anew with ")[1].split()[0]) >= 100  # of at least 600 in the checkpoint, in two shards
    assert result.shards is not None and result.shards.restarts == 1
    assert result.shards.lost > 0 and min(result.shards.transitions) > 0
    actors = read_actors(tmp_path / "run")
    assert sorted(actors["restarts"][-2:].tolist()) == [0, 1]
    words = (tmp_path / "run" / "summary.md").read_text()
    assert "1 died and were replaced" in words
    assert f"transitions; {result.shards.lost:,} lost; 1 restarted |" in words


@pytest.mark.slow
def test_the_only_shard_dies_without_a_checkpoint(cluster: Any, tmp_path: Path) -> None:
    """Bug: a learner that fails, or waits for ever, where there is nothing to draw for a while."""

    def strike() -> None:
        os.kill(of_class("Shard")[0]["Pid"], signal.SIGKILL)

    config = replace(LONG, shards=1, checkpoint_every=None, sampler="prioritized")
    result, notes, steps = run_until(
        config, tmp_path / "run", strike, 600, lambda notes: any("began anew" in note for note in notes)
    )
    went_on(result, config, steps)
    assert result.shards is not None and result.shards.restarts == 1 and result.shards.lost >= 500
    assert result.restarts == 0
    assert any("began anew" in note for note in notes)


@pytest.mark.slow
def test_a_lost_node(cluster: Any, tmp_path: Path) -> None:
    """Bug: actors or shards of a host that is gone are waited for; what was on it is not started elsewhere."""
    import ray

    lost: dict[str, int] = {}

    def strike() -> None:
        head = cluster.head_node.node_id
        where = [one["Address"]["NodeID"] for name in ("Player", "Shard") for one in of_class(name)]
        (node,) = [one for one in cluster.worker_nodes if one.node_id == max(set(where) - {head}, key=where.count)]
        for name in ("Player", "Shard"):
            lost[name] = sum(one["Address"]["NodeID"] == node.node_id for one in of_class(name))
        cluster.remove_node(node, allow_graceful=False)

    def told(notes: list[str]) -> bool:
        died = sum("died" in note for note in notes)
        anew = sum("began anew" in note for note in notes)
        return died >= lost["Player"] and anew >= lost["Shard"]

    config = replace(LONG, checkpoint_every=300)
    try:
        result, notes, steps = run_until(config, tmp_path / "run", strike, 800, told)
    finally:
        cluster.add_node(num_cpus=2, object_store_memory=100 << 20, include_dashboard=False, resources={"shards": 2})
    assert sum(lost.values()) > 0
    went_on(result, config, steps)
    assert result.restarts == lost["Player"], notes
    assert result.shards is not None and result.shards.restarts == lost["Shard"]
    assert all(count > 0 for count in result.shards.transitions)
    assert ray.is_initialized()


@pytest.mark.slow
def test_a_killed_learner_leaves_no_actor_on_the_cluster(cluster: Any, tmp_path: Path) -> None:
    """Bug: actors and shards that hold memory of a cluster for nobody."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "relive", "train", "CartPole-v1", "--ray", cluster.address, "--actors", "1"]
    command += ["--steps", "1000000", "--learning-starts", "200", "--threshold", "None", "--stop-return", "None"]
    pipe = subprocess.PIPE
    process = subprocess.Popen([*command, "--out", str(run)], stdout=pipe, stderr=pipe, text=True)
    try:
        until = time.monotonic() + SOON
        while not ((run / "actors.csv").exists() and (read_actors(run)["steps"] > 0).any()):
            assert time.monotonic() < until and process.poll() is None, process.communicate(timeout=10)
            time.sleep(0.1)
        pids = [one["Pid"] for one in alive()]
        assert len(pids) == 2
        process.kill()
        process.wait(60)
        assert all_gone()
        until = time.monotonic() + SOON
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            assert time.monotonic() < until
            time.sleep(0.1)
    finally:
        process.kill()
        process.communicate(timeout=60)


@pytest.mark.slow
def test_an_actor_that_hangs_is_replaced(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a run that waits for ever for an answer that will never come, its rate limiter for transitions under way."""
    monkeypatch.setattr("relive.train.ray_players.SILENCE", 20.0)
    stopped: list[int] = []

    def strike() -> None:
        stopped.append(of_class("Player")[0]["Pid"])
        os.kill(stopped[0], signal.SIGSTOP)

    config = replace(LONG, shards=1, actors=2, checkpoint_every=None)
    try:
        result, notes, steps = run_until(config, tmp_path / "run", strike, 600, lambda notes: bool(notes))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(stopped[0], signal.SIGKILL)
    went_on(result, config, steps)
    assert result.restarts == 1
    assert notes[0].split(" ", 2)[2] == "died (no answer for 20 s) and was replaced; restarts: 1"
