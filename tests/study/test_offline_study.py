"""The study on learning from data: what it compares, and what it makes of its runs."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from relive import interop
from relive.dqn import preset
from relive.errors import ConfigError
from relive.interop.summary import summarise
from relive.study import offline
from relive.study.offline import Cell, OfflineConfig, play
from relive.study.workers import Progress
from relive.train.log import read_metrics

SHORT = OfflineConfig(
    "CartPole-v1", datasets=("random", "medium"), transitions=400, medium_steps=400, updates=200, steps=200, seeds=1
)


def test_learners_differ_in_the_conservative_term_and_in_nothing_else() -> None:
    """Bug: a comparison that is won by a learning rate, a best evaluation picked, or other data."""
    jobs = offline.plan(replace(SHORT, seeds=2))
    assert len(jobs) == 2 * (2 * 2 + 1)
    assert len({job.run_dir for job in jobs.values()}) == len(jobs)
    for (dataset, learner, seed), job in jobs.items():
        settings = job.config
        assert (settings.seed, settings.keep, settings.stop_return, settings.agent.cql_alpha) == (
            seed,
            "last",
            None,
            1.0 if learner == "CQL" else 0.0,
        )
        assert settings.offline == (str(SHORT.dataset(dataset)) if dataset else None)
        alone = jobs["", offline.ALONE, seed].config
        plain = replace(settings.agent, cql_alpha=0.0)
        assert alone == replace(
            settings, offline=None, online=False, offline_updates=alone.offline_updates, agent=plain
        )


def test_only_behaviours_that_record_are_trained() -> None:
    """Bug: an expert of minutes for data that need none."""
    assert set(offline.plan_behaviours(SHORT)) == {"medium"}
    assert set(offline.plan_behaviours(replace(SHORT, datasets=("random",)))) == set()
    both = offline.plan_behaviours(replace(SHORT, datasets=("mixed",)))
    assert set(both) == {"medium", "expert"}
    assert both["expert"].config == replace(preset("CartPole-v1"), stop_return=None)
    assert (both["medium"].config.steps, both["medium"].config.keep) == (400, "last")


def test_play_takes_each_policy_for_its_share_and_joins_no_episodes() -> None:
    """Bug: shares of the whole taken for ends, epsilon dropped, an episode that two policies share."""

    def push(action: int, calls: list[int]) -> offline.Act:
        def act(obs: np.ndarray) -> np.ndarray:
            calls.append(len(obs))
            return np.full(len(obs), action)

        return act

    left: list[int] = []
    right: list[int] = []
    buffer = play("CartPole-v1", [(push(0, left), 0.0, 0.25), (push(1, right), 0.5, 0.75)], 1_000)
    whole = buffer.get(buffer.ids)
    assert (whole.action[:250] == 0).all()
    assert (len(left), len(right)) == (250, 750)
    assert 0.68 < (whole.action[250:] == 1).mean() < 0.82  # half of them at random, so three in four
    assert (whole.truncated | whole.terminated)[[249, 999]].all()
    ends = int((whole.truncated | whole.terminated).sum())
    summary = summarise(interop.of_buffer(buffer))
    assert (summary.episodes, summary.breaks, summary.open, summary.returns.total) == (ends, 0, 0, 1_000.0)
    again = play("CartPole-v1", [(None, 1.0, 1.0)], 300), play("CartPole-v1", [(None, 1.0, 1.0)], 300)
    assert np.array_equal(*(buffer.get(buffer.ids).obs for buffer in again))


def test_a_phase_is_judged_by_its_own_last_quarter() -> None:
    """Bug: evaluations before the first step taken for those after, or the other way round."""
    places = np.array([10, 20, 30, 40, 60, 80, 100, 120], np.float64)
    cell = Cell("random", "DQN", places, np.array([[1.0, 2, 3, 4, 5, 6, 7, 8]]), begin=40)
    assert cell.late(online=False).tolist() == [4.0]
    assert cell.late(online=True).tolist() == [8.0]
    alone = Cell("", "online alone", places[:4], np.array([[1.0, 2, 3, 4]]), begin=0)
    assert alone.late(online=True).tolist() == [4.0]


def test_the_study_leaves_a_table_and_a_figure_and_repeats_nothing(tmp_path: Path) -> None:
    """Bug: cells swapped, the wrong phase in a column, data recorded anew and other runs' on top."""
    config = replace(SHORT, out=tmp_path / "out")
    told: list[Progress] = []
    paths = offline.run(config, told.append)
    assert paths == [config.directory / f"offline.{kind}" for kind in ("md", "csv", "png")]
    page = paths[0].read_text()
    with paths[1].open(newline="") as file:
        table = {(row["data"], row["learner"], row["phase"]): row for row in csv.DictReader(file)}
    assert len(table) == 2 * 2 * 2 + 1
    metrics = read_metrics(config.directory / "runs" / "medium-CQL-0")
    there = ~np.isnan(metrics["eval_mean"])
    before = metrics["step"][there] == 0
    returns = metrics["eval_mean"][there]
    late = returns[before][-3:]  # after 160, 180 and 200 of 200 updates
    assert float(table["medium", "CQL", "offline"]["seed0"]) == pytest.approx(late.mean(), abs=1e-3)
    late = returns[~before][metrics["step"][there][~before] > 0.75 * 200]
    assert float(table["medium", "CQL", "online"]["seed0"]) == pytest.approx(late.mean(), abs=1e-3)
    behaviour = summarise(interop.open(config.dataset("medium"))).returns.mean
    assert float(table["medium", "CQL", "online"]["behaviour"]) == pytest.approx(behaviour, abs=1e-3)
    entry = f"{float(table['medium', 'CQL', 'offline']['iqm']):.1f}"
    assert re.search(rf"\| medium \| {behaviour:.1f}, .* \| {re.escape(entry)} \[", page)
    with Image.open(paths[2]) as picture:
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 20
    stamps = {path: path.stat().st_mtime_ns for path in config.directory.rglob("*.npz")}
    told.clear()
    assert offline.run(config, told.append) == paths
    assert told == []
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"datasets": ()}, r"datasets: expected some of random, medium, mixed, expert, each once, got ''"),
        ({"datasets": ("good",)}, r"datasets: expected some of .*, got 'good'"),
        ({"datasets": ("random", "random")}, r"datasets: .*each once, got 'random random'"),
        ({"cql_alpha": 0.0}, r"cql_alpha: expected a number > 0, got 0.0\. At 0 it is DQN"),
        ({"updates": 0}, r"updates: expected an integer >= 1, got 0"),
    ],
)
def test_studies_that_make_no_sense_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(SHORT, **change)  # type: ignore[arg-type]
