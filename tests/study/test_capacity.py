"""Studies over capacities: numbers from a few runs, the runs behind them, and what is left when one is stopped."""

import csv
import math
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from relive.dqn import preset
from relive.errors import ConfigError
from relive.study import capacity, workers
from relive.study.aggregate import interval, iqm
from relive.study.capacity import CapacityConfig
from relive.study.curves import Cell
from relive.train import load_config
from relive.train.log import COLUMNS, Row, RunLog

ROW = Row(*[0] * len(COLUMNS))
SHORT = CapacityConfig("CartPole-v1", capacities=(100, 1000), samplers=("uniform", "prioritized"), seeds=1, steps=400)


def test_iqm_is_the_mean_of_the_middle_half() -> None:
    """Bug: runs not sorted, quarters rounded, or points of a curve mixed."""
    assert iqm(np.array([9.0, 1.0, 5.0, 3.0])) == 4.0  # one run off each end
    assert iqm(np.array([7.0])) == 7.0
    assert iqm(np.array([1.0, 9.0])) == 5.0
    assert iqm(np.array([0.0, 6.0, 100.0])) == pytest.approx((0.25 * 0 + 6 + 0.25 * 100) / 1.5)
    assert iqm(np.array([5.0, 0.0, 1.0, 2.0, 1000.0])) == pytest.approx((0.75 * 1 + 2 + 0.75 * 5) / 2.5)
    curves = np.array([[9.0, 10.0], [1.0, 90.0], [5.0, 30.0], [3.0, 50.0]])
    assert iqm(curves).tolist() == [4.0, 40.0]
    scores = np.random.default_rng(0).normal(size=(16, 3))
    assert iqm(scores) == pytest.approx(stats.trim_mean(scores, 0.25))  # equal where quarters are whole runs


def test_an_interval_is_a_function_of_its_seed_and_holds_the_truth_as_often_as_it_says() -> None:
    """Bug: a global generator; runs resampled without replacement; the quantiles of the wrong level."""
    random = np.random.default_rng(0)
    scores = random.normal(size=(400, 20))  # 400 studies of 20 runs
    holds = narrow = 0
    for study in scores:
        low, high = interval(study, resamples=200)
        holds += bool(low <= 0.0 <= high)
        low, high = interval(study, resamples=200, level=0.5)
        narrow += bool(low <= 0.0 <= high)
    assert 0.85 < holds / len(scores) < 0.98  # percentile intervals of 20 runs fall a little short of 95 %
    assert 0.38 < narrow / len(scores) < 0.60
    curve = random.normal(size=(5, 7))
    low, high = interval(curve, seed=3)
    again = interval(curve, seed=3)
    other = interval(curve, seed=4)
    assert np.array_equal([low, high], again)
    assert not np.array_equal([low, high], other)
    assert low.shape == (7,)
    assert (low <= iqm(curve)).all() and (iqm(curve) <= high).all()
    assert interval(np.array([4.0])) == (4.0, 4.0)


def test_final_is_the_mean_of_the_last_quarter() -> None:
    """Bug: the evaluation at three quarters counted too, or seeds averaged."""
    returns = np.arange(16.0).reshape(2, 8)
    cell = Cell("uniform", 100, np.arange(1, 9) * 50.0, returns)
    assert cell.final.tolist() == [6.5, 14.5]


def test_evaluations_are_those_of_the_step_they_were_due_at(tmp_path: Path) -> None:
    """Bug: seeds whose environments step past the multiples by different amounts cannot be put side by side."""
    config = replace(SHORT, capacities=(100,), samplers=("uniform",), seeds=2, steps=41_001, out=tmp_path)
    jobs = list(capacity.plan(config).values())
    for number, job in enumerate(jobs):
        job.run_dir.mkdir(parents=True)
        with RunLog(job.run_dir) as log:
            due = [2050 * (k + 1) for k in range(20)] + [41_001] * number  # the last two, due in one stride, or in two
            for k, step in enumerate(due):
                log.write(replace(ROW, step=step - 1, eval_mean=math.nan))
                log.write(replace(ROW, step=step + (k + number) % 4, eval_mean=100.0 * number + k))
    cell = capacity.read_cell("uniform", 100, jobs)
    assert cell.returns.tolist() == [[100.0 * number + k for k in range(20)] for number in (0, 1)]
    assert cell.final.tolist() == [17.0, 117.0]


def test_runs_differ_in_what_is_compared_and_in_nothing_else() -> None:
    """Bug: a run that stops early, keeps its best weights, or differs from the preset in a setting not named."""
    config = CapacityConfig("CartPole-v1", samplers=("uniform", "newest", "prioritized", "rank-based"), seeds=2)
    jobs = capacity.plan(config)
    assert len(jobs) == 4 * 4 * 2
    assert len({job.run_dir for job in jobs.values()}) == len(jobs)
    base = preset("CartPole-v1")
    base = replace(base, keep="last", stop_return=None, eval_every=2_500, final_eval_episodes=base.eval_episodes)
    for (sampler, size, seed), job in jobs.items():
        settings = job.config
        assert (settings.capacity, settings.seed) == (size, seed)
        assert (settings.sampler, settings.newest) == {
            "uniform": ("uniform", 0),
            "newest": ("uniform", 1),
            "prioritized": ("prioritized", 0),
            "rank-based": ("rank-based", 0),
        }[sampler]
        if sampler == "rank-based":
            settings = replace(settings, priority_alpha=base.priority_alpha, priority_beta=base.priority_beta)
        assert replace(settings, capacity=base.capacity, seed=0, sampler="uniform", newest=0) == base
    assert [seed for *_, seed in jobs] == [0] * 16 + [1] * 16  # stopped half way, it has whole seeds


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> CapacityConfig:
    """A study of four short runs, made."""
    config = replace(SHORT, out=tmp_path_factory.mktemp("study") / "out")
    told: list[workers.Progress] = []
    paths = capacity.run(config, told.append)
    assert paths == [config.directory / f"capacity.{kind}" for kind in ("md", "csv", "png")]
    ended = [now.ended.name for now in told if now.ended is not None]
    assert sorted(ended) == ["prioritized-100-0", "prioritized-1000-0", "uniform-100-0", "uniform-1000-0"]
    assert (told[-1].finished, told[-1].total, told[-1].share) == (4, 4, 1.0)
    return config


def test_a_study_leaves_a_table_and_a_figure_of_its_runs(study: CapacityConfig) -> None:
    """Bug: cells swapped, numbers of other runs, an empty picture."""
    page = (study.directory / "capacity.md").read_text()
    with (study.directory / "capacity.csv").open(newline="") as file:
        table = {(row["sampler"], int(row["capacity"])): row for row in csv.DictReader(file)}
    assert set(table) == {(sampler, size) for sampler in study.samplers for size in study.capacities}
    for (sampler, size), row in table.items():
        run = study.directory / "runs" / f"{sampler}-{size}-0"
        with (run / "metrics.csv").open(newline="") as file:
            evaluated = [line for line in csv.DictReader(file) if line["eval_mean"]]
        assert len(evaluated) == capacity.EVALUATIONS
        late = np.mean([float(line["eval_mean"]) for line in evaluated if float(line["step"]) > 300])
        assert float(row["iqm"]) == float(row["low"]) == float(row["seed0"]) == pytest.approx(late, abs=1e-3)
    entries = [f"{float(table[name, 1000]['iqm']):.1f} [" for name in study.samplers]
    assert re.search(rf"\| 1,000 \| {re.escape(entries[0])}.*\| {re.escape(entries[1])}", page)
    with Image.open(study.directory / "capacity.png") as picture:
        assert picture.width > 800
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 20


def test_runs_that_are_there_are_not_repeated_and_half_runs_are(study: CapacityConfig) -> None:
    """Bug: hours spent again, or the curve of a run that was stopped half way taken for a whole one."""
    runs = {path.name: path for path in (study.directory / "runs").iterdir()}
    result = runs["uniform-100-0"] / "result.json"
    result.write_text(result.read_text().replace('"finished"', '"interrupted"'))
    before = {name: (path / "result.json").stat().st_mtime_ns for name, path in runs.items()}
    told: list[workers.Progress] = []
    capacity.run(study, told.append)
    after = {name: (path / "result.json").stat().st_mtime_ns for name, path in runs.items()}
    assert {name for name in runs if before[name] != after[name]} == {"uniform-100-0"}
    assert [now.ended.name for now in told if now.ended is not None] == ["uniform-100-0"]
    assert '"finished"' in result.read_text()
    told.clear()
    assert isinstance(capacity.run(study, told.append), list)  # all are there: straight to the figure
    assert told == []


def test_runs_with_other_settings_are_not_taken_for_these(study: CapacityConfig) -> None:
    """Bug: a figure that mixes runs of 400 and of 500 steps; a finished run removed."""
    with pytest.raises(ConfigError, match=r"expected a run with the settings asked for, got one with others"):
        capacity.run(replace(study, steps=500))
    assert load_config(study.directory / "runs" / "uniform-100-0").steps == 400


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"capacities": ()}, r"capacities: expected at least one, each once, got ''"),
        ({"capacities": (100, 100)}, r"capacities: expected at least one, each once, got '100 100'"),
        ({"samplers": ()}, r"samplers: expected at least one"),
        ({"seeds": 0}, r"seeds: expected an integer >= 1, got 0"),
        ({"jobs": 0}, r"jobs: expected an integer >= 1, got 0"),
    ],
)
def test_studies_that_make_no_sense_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(SHORT, **change)  # type: ignore[arg-type]


def test_a_run_that_fails_ends_the_study_and_is_named(tmp_path: Path) -> None:
    """Bug: a study that waits for ever, or draws the figure without the run."""
    job = capacity.plan(replace(SHORT, capacities=(100,), samplers=("uniform",), out=tmp_path))["uniform", 100, 0]
    job.run_dir.mkdir(parents=True)
    (job.run_dir / "precious").write_text("x")
    with pytest.raises(
        OSError, match=r"uniform-100-0: expected the run to finish, it ended before: run directory: .*new"
    ):
        workers.run_jobs([job], 1, lambda now: None)
    assert (job.run_dir / "precious").read_text() == "x"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_study_and_the_same_call_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    """Bug: workers that live on, a traceback, finished runs lost, or a half run that is never made again."""
    sizes = ("--capacities", "100", "1000", "--samplers", "uniform", "--seeds", "1")
    args = ["study", "capacity", "CartPole-v1", *sizes, "--out", "out", "--steps"]
    with subprocess.Popen(
        [sys.executable, "-m", "relive", *args, "1000000"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # as in a terminal: the signal goes to every process of the study
    ) as process:
        run = tmp_path / "out" / "runs" / "uniform-100-0"
        while process.poll() is None and not (run / "metrics.csv").exists():
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.1)
        os.killpg(process.pid, number)
        output, complaints = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert complaints == ""
    assert f"Ended by {number.name}; finished runs are kept. Call again to go on." in output
    assert '"interrupted"' in (run / "result.json").read_text()
    assert not (tmp_path / "out" / "capacity.md").exists()
    assert not (tmp_path / "out" / "runs" / "uniform-1000-0").exists()
