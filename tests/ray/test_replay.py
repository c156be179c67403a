"""RayReplay on a local Ray: the verbs of a buffer, rows as the model has them, what is refused."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from unions import SCHEMA, fields_of, rename

import relive
from model.chance import ALPHA, p_drawn
from model.compare import assert_rows
from model.driving import block, longer, remember
from model.kinds import GOAL, KINDS
from model.options import real_view
from model.reference import Model, View
from model.sequences import SequenceView, anchors, sequence_rows
from relive.errors import ConfigError, NotEnoughDataError, SchemaError, ShardError, SnapshotError

pytest.importorskip("ray")
from relive.share.ray import RayReplay
from relive.share.ray_remote import Remote
from relive.share.ray_union import FORMAT, MANIFEST
from relive.snapshot import frame, unframe
from relive.specs import sampler_to_dict

pytestmark = pytest.mark.usefixtures("local_ray")


def made(capacity: int = 40, schema: relive.Schema = SCHEMA, **options: Any) -> RayReplay:
    return RayReplay(capacity, schema, **{"shards": 2, "lanes": 4, "seed": 0, "in_flight": 0, **options})


def fill(replay: Any, lane: int, count: int, **options: Any) -> None:
    """A block, its rewards counting."""
    zeros = np.zeros((count, 1), np.float32)
    replay.extend(zeros, np.zeros(count, int), np.arange(count), np.zeros(count, bool), zeros, lane=lane, **options)


# Rows.

VIEWS = {
    "plain": ("dict", View()),
    "n-step": ("vector", View(n=3)),
    "frames": ("frames", View(stack=4)),
    "zeros before": ("column", View(stack=3, padding="zeros")),
    "n-step frames": ("column", View(n=3, stack=4)),
    "stacked": ("stacked", View()),
    "stacked n-step": ("stacked_column", View(n=2)),
    "windows": ("vector", SequenceView(4, 1, 2, state=("carry",))),
    "windows of frames": ("frames", SequenceView(3, stack=3)),
    "episodes": ("discrete", SequenceView("episode")),
}
SLOW = {"n-step", "n-step frames", "stacked n-step", "windows of frames"}  # of which the others have the parts


@pytest.mark.parametrize(
    ("kind", "view", "lanes"),
    [
        pytest.param(*case, 2 + number % 2, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
        for number, (name, case) in enumerate(VIEWS.items())
    ],
)
def test_rows_are_those_of_the_model(kind, view, lanes):
    """Blocks, single pushes and steps of every lane; rings that wrap; every row that was drawn."""
    kind = KINDS[kind]
    model, rng = Model(30 * lanes, lanes), np.random.default_rng(lanes)
    schema = replace(kind.schema(), lanes=1)
    with made(30 * lanes, schema, lanes=lanes, view=real_view(view, None), batch=7) as replay:
        for turn in range(12):
            lane = int(rng.integers(lanes))
            rows = block(kind, model, longer(rng, int(rng.integers(1, 25))), lane)
            for row in rows:
                remember(kind, model, row, lane)
            values, extras = fields_of(kind, rows)
            if turn % 3:
                replay.extend(**values, **extras, lane=lane)
            else:
                for row in rows:
                    own = {name: row[name] for name in kind.extras}
                    replay.push(**{name: row[name] for name in values}, **own, lane=lane)
            if turn % 4 == 3:
                model.end_episodes([True, *[False] * (lanes - 1)])
                replay.end_episodes(np.arange(lanes) == 0)
            check(replay, model, view, 25)
        assert replay.flush().stored == sum(model.pushed)
        assert len(replay) == len(model)


def check(replay: RayReplay, model: Model, view: Any, size: int) -> None:
    if not anchors(model, view):
        with pytest.raises(NotEnoughDataError, match="valid ids"):
            replay.sample(size)
        return
    batch = replay.sample(size, beta=0.5)
    ids = rename(batch.ids, replay.shards, replay.lanes).tolist()
    assert set(ids) <= set(anchors(model, view))
    rows = sequence_rows(model, ids, view) if isinstance(view, SequenceView) else [model.row(i, view) for i in ids]
    assert (batch.weight == 1).all()
    union = vars(batch) | {"ids": np.array(ids)}
    assert_rows(relive.Batch(union), rows)
    for name in ("obs", "action", "reward", "next_obs"):
        leaf = np.asarray(next(iter(_leaves(getattr(batch, name)))))
        assert leaf.flags.writeable


def _leaves(tree: Any) -> list[Any]:
    from model.reference import leaves

    return leaves(tree)


def test_a_step_of_every_lane_and_masks_and_tensors():
    with made() as replay:
        for step in range(3):
            obs = np.full((4, 1), step, np.float32)
            replay.push(
                obs, np.arange(4), np.arange(4.0), np.zeros(4, bool), obs + 1, mask=[True, step > 0, True, step > 1]
            )
        batch = replay.sample(200)
        assert set(rename(batch.ids, 2, 4).tolist()) == {0, 4, 8, 1, 5, 2, 6, 10, 3}
        assert (batch.action == rename(batch.ids, 2, 4) % 4).all()
        torch = pytest.importorskip("torch")
        batch = replay.sample(8, beta=0.5, output="torch", device="cpu")
        assert isinstance(batch.obs, torch.Tensor) and batch.weight.dtype == torch.float32
        with pytest.raises(ConfigError, match="output"):
            replay.sample(8, output="jax")


def test_hindsight():
    goals, desired = np.arange(12, dtype=np.float32).reshape(6, 2), np.full((5, 2), 50, np.float32)
    view = relive.Hindsight("final", 3, lambda achieved, desired: -np.abs(achieved - desired).sum(axis=1))
    with made(40, GOAL.schema(), view=view) as replay:
        for lane in range(4):
            obs, following = (
                {"achieved_goal": part, "desired_goal": desired, "observation": np.zeros((5, 3), np.uint8)}
                for part in (goals[:-1] + lane, goals[1:] + lane)
            )
            replay.extend(obs, np.zeros(5, int), np.ones(5), np.arange(5) == 4, following, lane=lane, tag=np.arange(5))
        batch = replay.sample(300)
        changed = batch.goal_ids >= 0
        assert 0.6 < changed.mean() < 0.9
        assert (batch.goal_ids[changed] >> 56 == batch.ids[changed] >> 56).all()
        assert (batch.goal_ids[~changed] == -1).all()
        last = goals[-1] + (rename(batch.ids, 2, 4) % 4)[:, None]
        np.testing.assert_array_equal(batch.obs["desired_goal"], np.where(changed[:, None], last, 50))


# Draws through Ray.


@pytest.mark.parametrize(("in_flight", "shards"), [(0, 3), (16, 3), pytest.param(16, 1, marks=pytest.mark.slow)])
def test_draws_are_in_proportion_over_the_union(in_flight, shards):
    sampler = relive.Prioritized(1.0, 0.0)
    raw = np.random.default_rng(3).choice([0.5, 1.0, 4.0], size=30)
    with made(80, shards=shards, sampler=sampler, in_flight=in_flight) as replay:
        for lane, length in enumerate((3, 20, 1, 6)):
            fill(replay, lane, length, priority=raw[:length])
        replay.flush()
        batches = [replay.sample(64, beta=1.0) for _ in range(150)]
        lengths = np.array([3, 20, 1, 6])
        p = {t * 4 + lane: raw[t] for lane in range(4) for t in range(lengths[lane])}
        total = sum(p.values())
        assert (
            p_drawn([rename(batch.ids, shards, 4) for batch in batches], {i: v / total for i, v in p.items()}) > ALPHA
        )
        for batch in batches:
            own = np.array([p[identity] for identity in rename(batch.ids, shards, 4).tolist()])
            np.testing.assert_allclose(batch.weight, own.min() / own, rtol=1e-6)
        assert replay.stats().redrawn == 0


def test_draws_ahead_catch_up_with_what_was_pushed():
    """Masses of shards become known by draws: a shard that was empty is drawn from once batches ahead are used up."""
    with made(4_000, in_flight=6) as replay:
        fill(replay, 0, 10)
        replay.flush()
        assert (replay.sample(32).ids >> 56 == 1).all()
        fill(replay, 1, 1_000)
        replay.flush()
        shares = [(replay.sample(32).ids >> 56 == 2).mean() for _ in range(24)]
        assert min(shares[-6:]) > 0.8


# Priorities.


def test_priorities_reach_their_transitions():
    sampler = relive.Prioritized(1.0, 0.0)
    with made(sampler=sampler) as replay:
        for lane in range(4):
            fill(replay, lane, 5)
        batch = replay.sample(100)
        values = np.where(batch.reward == 3, 1.0, 0.0)
        assert replay.update_priorities(batch.ids, values) == 100
        batch = replay.sample(50)
        assert (batch.reward == 3).all() and set(rename(batch.ids, 2, 4) % 4) == {0, 1, 2, 3}
        # New transitions get the largest priority so far, whichever shard has it.
        assert replay.update_priorities(batch.ids[:1], [4.0]) == 1
        fill(replay, 0, 1)
        fill(replay, 1, 1)
        masses = [shard.mass for shard in replay.stats().shards]
        assert sum(masses) == 3 + 4 + 4 + 4
        fill(replay, 0, 200)  # overwrites all that was there
        assert replay.update_priorities(batch.ids, np.ones(50)) == (rename(batch.ids, 2, 4) % 4 != 0).sum()


def test_priorities_are_sent_without_waiting():
    with made(sampler=relive.Prioritized(1.0, 0.0), in_flight=4) as replay:
        fill(replay, 0, 10)
        replay.flush()
        for _ in range(100):
            batch = replay.sample(8, beta=0.4)
            assert replay.update_priorities(batch.ids, batch.reward.astype(np.float64)) == 8
        for _ in range(100):
            stats = replay.stats()
            if stats.updated == 800:
                break
        assert (stats.updated, stats.skipped, stats.sampled) == (800, 0, 800)


def test_priorities_bring_back_what_no_draw_could_take():
    """They go with the next draw; where all masses are 0 there is none."""
    with made(sampler=relive.Prioritized(1.0, 0.0), in_flight=2) as replay:
        fill(replay, 0, 3)
        replay.flush()
        ids = replay.sample(1).ids
        ids = ids - (rename(ids, 2, 4) // 4 * 2) + np.arange(0, 6, 2)  # of all three
        assert replay.update_priorities(ids, np.zeros(3)) == 3
        with pytest.raises(NotEnoughDataError, match="0 valid ids"):
            for _ in range(20):
                replay.sample(4)
        assert replay.update_priorities(ids, np.ones(3)) == 3
        assert set(replay.sample(4).ids.tolist()) <= set(ids.tolist())


def test_ids_of_an_earlier_life_are_skipped():
    with made(sampler=relive.Prioritized()) as replay:
        fill(replay, 0, 5)
        ids = replay.sample(4).ids
        for wrong in (ids + (1 << 48), ids & ((1 << 48) - 1), ids + (7 << 56)):
            assert replay.update_priorities(wrong, np.ones(4)) == 0
        assert replay.update_priorities(ids, np.ones(4)) == 4
        assert replay.stats().skipped == 12


def test_bad_priorities_are_refused_at_once():
    with made(sampler=relive.Prioritized(), in_flight=2) as replay:
        fill(replay, 0, 5)
        for wrong in ([np.nan], [-1.0], [np.inf], [1.0, 2.0]):
            with pytest.raises(SchemaError, match="abs_td"):
                replay.update_priorities(replay.sample(1).ids, wrong)
        assert replay.stats().updated == replay.stats().skipped == 0


# Writers elsewhere.


def test_clients_push_from_other_processes(local_ray):
    def job(client: Any, lane: int) -> Any:
        zeros = np.zeros((300, 1), np.float32)
        for _ in range(10):
            client.extend(zeros, np.full(300, lane), np.zeros(300), np.zeros(300, bool), zeros, lane=lane)
        return client.close()

    with made(40_000) as replay:
        client = replay.client()
        task = local_ray.remote(num_cpus=0)(job)
        results = local_ray.get([task.remote(client, lane) for lane in range(4)], timeout=60)
        assert [(stats.pushed, stats.stored, stats.lost) for stats in results] == [(3_000, 3_000, 0)] * 4
        stats = replay.stats()
        assert (stats.live, stats.pushed, stats.lost) == (12_000, 12_000, 0)
        batch = replay.sample(200)
        assert (batch.action == rename(batch.ids, 2, 4) % 4).all()


def test_large_columns_and_a_small_batch_of_them():
    """Blocks beyond what Ray sends inline; memory that the caller writes to afterwards."""
    schema = relive.Schema(relive.Field("uint8", (84, 84)), relive.Field("int64"))
    with made(400, schema, view=relive.Transitions(stack=4), batch=50) as replay:
        frames = np.zeros((51, 84, 84), np.uint8)
        for turn in range(8):
            frames[:] = np.arange(51)[:, None, None] + turn
            replay.extend(frames[:-1], np.full(50, turn), np.ones(50), np.arange(50) == 49, frames[1:], lane=turn % 4)
            frames[:] = 255
        batch = replay.sample(64)
        t = rename(batch.ids, 2, 4) // 4
        newest = t % 50 + batch.action
        assert (batch.obs[:, -1] == newest[:, None, None]).all()
        assert (batch.next_obs[:, -1] == newest[:, None, None] + 1).all()


def test_a_client_is_pickled_and_the_replay_is_not_and_closing_ends_it():
    with made(shards=1) as replay:
        client = replay.client()
        copy = pickle.loads(pickle.dumps(client))
        assert copy._writer != client._writer
        with pytest.raises(ConfigError, match="client"):
            pickle.dumps(replay)
        replay.close()
        replay.close()
        for call in (lambda: replay.sample(1), lambda: len(replay), replay.stats, replay.client):
            with pytest.raises(ConfigError, match="closed"):
                call()


def test_episodes_are_ended_by_a_mask_as_of_one_buffer():
    with made() as replay:
        for lane in range(4):
            fill(replay, lane, 2)
        for wrong in ([0, 3], np.ones(3, bool), [False, True]):
            with pytest.raises(SchemaError, match=r"mask: expected bool \(4,\)"):
                replay.end_episodes(wrong)
        assert not replay.sample(100).truncated.any()
        replay.end_episodes(np.array([True, False, False, True]))
        batch = replay.sample(200)
        assert set(rename(batch.ids[batch.truncated], 2, 4).tolist()) == {4, 7}
        replay.client().end_episodes()
        batch = replay.sample(200)
        assert set(rename(batch.ids[batch.truncated], 2, 4).tolist()) == {4, 5, 6, 7}


def test_a_refused_push_keeps_nothing():
    with made() as replay:
        with pytest.raises(SchemaError, match="obs"):
            replay.push(np.zeros(2), 0, 0.0, False, np.zeros(2), lane=0)
        with pytest.raises(SchemaError, match="lane"):
            fill(replay, 4, 1)
        with pytest.raises(ConfigError, match="priority"):
            fill(replay, 0, 1, priority=1.0)
        with pytest.raises(ConfigError, match="keeps priorities"):
            replay.update_priorities([1], [1.0])
        with pytest.raises(NotEnoughDataError, match="0 transitions"):
            replay.sample(1)
        assert replay.flush().pushed == 0


def test_batches_that_are_held_stay_as_they_are():
    with made(4_000, in_flight=4) as replay:
        for lane in range(4):
            fill(replay, lane, 500)
        held = [replay.sample(64) for _ in range(30)]
        copies = [(batch.ids.copy(), batch.reward.copy()) for batch in held]
        for _ in range(30):
            replay.sample(64)
        for batch, (ids, reward) in zip(held, copies, strict=True):
            np.testing.assert_array_equal(batch.ids, ids)
            np.testing.assert_array_equal(batch.reward, reward)
            np.testing.assert_array_equal(rename(ids, 2, 4) // 4, reward)


# Saving.


def test_save_and_load(tmp_path):
    with made(sampler=relive.Prioritized(1.0, 0.0)) as replay:
        for lane in range(4):
            fill(replay, lane, 13, priority=np.arange(13.0))
        replay.flush()
        masses = [shard.mass for shard in replay.stats().shards]
        assert replay.save(tmp_path / "kept", note={"step": 3}) > 0
        assert RayReplay.note(tmp_path / "kept") == {"step": 3}
        first = replay.save(tmp_path / "other")
        fill(replay, 0, 1)
        assert replay.save(tmp_path / "other") < first  # only what is new
        with pytest.raises(ConfigError, match="note"):
            replay.save(tmp_path / "kept", note=object())
    with RayReplay.load(tmp_path / "kept", in_flight=0) as loaded:
        assert (len(loaded), loaded.num_pushed, loaded.shards, loaded.lanes) == (40, 52, 2, 4)
        assert [shard.mass for shard in loaded.stats().shards] == masses
        assert set(loaded.sample(200).reward.tolist()) == set(np.arange(3.0, 13.0))
        fill(loaded, 0, 1)
        assert loaded.save(tmp_path / "kept") > 0
        with pytest.raises(ConfigError, match=r"(?i)snapshot"):
            loaded.save(tmp_path / "other")
    assert len(relive.load(tmp_path / "kept" / "shard-000")) == 20  # an ordinary snapshot


def test_snapshots_in_the_background_and_no_mixing_of_replays(tmp_path):
    with made(snapshots=tmp_path / "run", snapshot_every=0.1, lanes=2, capacity=20) as replay:
        fill(replay, 0, 7)
        fill(replay, 1, 5)
        replay.flush()
        for _ in range(600):
            if all(shard.snapshots for shard in replay.stats().shards):
                break
    assert [len(relive.load(tmp_path / "run" / f"shard-00{k}")) for k in (0, 1)] == [7, 5]
    with pytest.raises(ConfigError, match="other replay"):
        made(snapshots=tmp_path / "run")
    options = {"snapshots": tmp_path / "run", "in_flight": 0}
    with RayReplay.load(tmp_path / "run", **options) as loaded:
        assert len(loaded) == 12


def test_what_is_no_snapshot_is_refused(tmp_path):
    with pytest.raises(SnapshotError, match="found no"):
        RayReplay.load(tmp_path)
    with made() as replay:
        fill(replay, 0, 3)
        replay.save(tmp_path / "kept")
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match="save: expected a directory"):
            replay.save(tmp_path / "file")
    with pytest.raises(ConfigError, match="options"):
        RayReplay.load(tmp_path / "kept", capacity=3)
    manifest = tmp_path / "kept" / MANIFEST
    whole, card = manifest.read_bytes(), unframe(manifest, FORMAT)
    for wrong, words in (
        ({"shards": 1}, "expected shard 0"),
        ({"shards": 5}, "shards"),
        ({"lanes": 3}, "multiple"),
        ({"seed": -1}, "seed"),
        ({"sampler": sampler_to_dict(relive.Shuffled())}, "epochs"),
    ):
        manifest.write_bytes(frame(FORMAT, {**card, **wrong}))
        with pytest.raises(SnapshotError, match=words):
            RayReplay.load(tmp_path / "kept")
    manifest.write_bytes(whole)
    (tmp_path / "kept" / "shard-001").rename(tmp_path / "kept" / "gone")
    with pytest.raises(SnapshotError, match="shard 1 to begin"):
        RayReplay.load(tmp_path / "kept")
    data = (tmp_path / "kept" / "shards.json").read_text()
    (tmp_path / "kept" / "shards.json").write_text(data.replace("40", "48"))
    with pytest.raises(SnapshotError, match="damaged"):
        RayReplay.load(tmp_path / "kept")
    assert json.loads(data.partition('content":')[2][:-2])["capacity"] == 40


def test_a_file_is_no_place_for_snapshots(tmp_path):
    (tmp_path / "file").touch()
    for place in ("file", "file/below"):
        with pytest.raises(ConfigError, match="snapshots: expected a directory"):
            made(snapshots=tmp_path / place)


# What makes no sense.


@pytest.mark.parametrize(
    ("options", "words"),
    {
        "ranks": ({"sampler": relive.samplers.RankBased()}, "rank"),
        "epochs": ({"sampler": relive.Shuffled()}, "epochs"),
        "recent": ({"sampler": relive.samplers.Recent()}, "newest of all"),
        "newest": ({"sampler": relive.Uniform(newest=1)}, "newest"),
        "uses": ({"sampler": relive.Prioritized(max_uses=2)}, "max_uses"),
        "own": ({"sampler": type("Own", (), {"draw": lambda self, ids, n, rng: ids[:n]})()}, "anchors"),
        "more shards than lanes": ({"shards": 5}, "shards"),
        "no shard": ({"shards": 0}, "shards"),
        "lanes": ({"lanes": 3}, "multiple"),
        "schema": ({"schema": None}, "schema"),
        "in_flight": ({"in_flight": -1}, "in_flight"),
        "options": ({"options": {"cpus": 1}}, "options"),
        "restarts": ({"options": {"max_restarts": 0}}, "max_restarts"),
        "view": ({"view": 3}, "view"),
    }.values(),
)
def test_refusals_say_why(options, words):
    with pytest.raises(ConfigError, match=words):
        made(**options)


def test_no_room_on_the_cluster_is_said(monkeypatch):
    monkeypatch.setattr("relive.share.ray_running._STARTING", 0.5)
    with pytest.raises(ShardError, match="room"):
        made(timeout=1.0, options={"num_cpus": 1_000})


def test_late_answers_of_an_earlier_life_change_nothing(local_ray):
    """Answers are taken in any order: which life is the newer is told by the order of the calls."""
    with made() as replay:
        remote = Remote(replay._remotes[0].handle, 0)
        state = replay._remotes[0].state
        first, second, third = (remote.call("hello") for _ in range(3))
        assert remote.heard(second, state._replace(life=2, pushed=10))
        assert not remote.heard(first, state._replace(life=1))
        assert (remote.lives, remote.state.life) == (0, 2)
        assert remote.heard(third, state._replace(life=3, restored=4))
        assert (remote.lives, remote.lost) == (1, 6)
        remote.failed(second, OSError())
        assert remote.up


# The last test: it ends the Ray that all of these had.


def test_after_ray_was_shut_down_nothing_starts_another(local_ray):
    zeros = np.zeros((5, 1), np.float32)
    with RayReplay(40, SCHEMA, shards=2, lanes=4, in_flight=4) as replay:
        client = replay.client()
        for lane in range(4):
            client.extend(zeros, np.zeros(5, int), np.zeros(5), np.zeros(5, bool), zeros, lane=lane)
        client.flush(wait=True)
        assert len(replay.sample(3).ids) == 3
        client.extend(zeros, np.zeros(5, int), np.zeros(5), np.zeros(5, bool), zeros, lane=0)
        local_ray.shutdown()
        for call in (
            *(lambda: replay.sample(3), lambda: len(replay), replay.stats, replay.flush, replay.client),
            *(lambda: replay.save("nowhere"), replay.end_episodes, client.flush, client.end_episodes),
        ):
            with pytest.raises(ShardError, match=r"connection to Ray .* is gone"):
                call()
        assert client.stats().waiting == 5
        stats = client.close()
        assert (stats.stored, stats.lost, stats.waiting) == (20, 5, 0)
    assert not local_ray.is_initialized()
