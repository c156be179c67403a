"""The real command, as a process of its own: what it says and how it ends."""

import math
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from relive.cli import main, train
from relive.dqn import AgentConfig, TrainConfig, preset
from relive.train import load_config
from relive.train.log import RunLog, has_diverged, read_metrics
from relive.train.loop import Trainer

pytestmark = pytest.mark.usefixtures("blank_curves")

TINY = ("--steps", "400", "--learning-starts", "200", "--final-eval-episodes", "5", "--eval-episodes", "3")
WITHOUT = "import sys; sys.modules['{}'] = None; from relive.cli import main; sys.exit(main())"
"""A Python in which one package cannot be imported."""


def relive(
    *args: str, cwd: Path, without: str | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command, its output not a terminal."""
    start = ["-c", WITHOUT.format(without)] if without else ["-m", "relive"]
    command = [sys.executable, *start, *args]
    environment = {**os.environ, **(env or {})}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False, env=environment)


def assert_refused(code: int, complaints: str, says: str) -> None:
    """One clear line on stderr, exit code 2."""
    assert code == 2, complaints
    assert len(complaints.strip().splitlines()) == 1, complaints
    assert re.search(says, complaints), complaints


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one small run of CartPole in it, made by the command, and two that cannot be used."""
    place = tmp_path_factory.mktemp("cli")
    done = relive("train", "CartPole-v1", *TINY, "--threshold", "None", "--out", "run", cwd=place)
    assert done.returncode == 0, done.stderr
    (place / "output").write_text(done.stdout)
    (place / "file").write_text("no directory")
    return place


def test_train_says_what_was_reached_and_where_it_lies(place: Path) -> None:
    """Bug: a progress bar's control characters in a log file, no result, or files named that are not there."""
    output = (place / "output").read_text()
    assert "\x1b" not in output
    assert re.search(r"400/400  return \S+  loss \S+  [\d,]+ steps/s  0:00:00 left  greedy return", output)
    assert re.search(r"\nGreedy return [\d.]+ ± [\d.]+ over 5 episodes\.\n", output)
    listed = re.search(r"The run lies in run:\n(.*)Watch it: relive evaluate run ", output, re.DOTALL)
    assert listed
    files = [line.split()[0] for line in listed[1].strip().splitlines()]
    assert len(files) == 8
    assert all(list((place / "run").glob(name)) for name in files)


def test_options_override_the_preset_wherever_they_stand(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bug: the preset wins over an option, or is not found behind one; a missed threshold ends with exit code 0."""
    monkeypatch.chdir(place)
    assert main(["train", "--seed", "7", *TINY, "CartPole-v1", "--gamma", "0.5", "--keep", "last"]) == 1
    assert "threshold 475 missed" in capsys.readouterr().out
    config = load_config(place / "runs" / "CartPole-v1-7-001")
    expected = preset("CartPole-v1")
    expected = replace(
        expected, seed=7, steps=400, learning_starts=200, final_eval_episodes=5, eval_episodes=3, keep="last"
    )
    assert config == replace(expected, agent=replace(expected.agent, gamma=0.5))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("train", "CartPol-v1"), r"got 'CartPol-v1'\. Did you mean CartPole-v1"),
        (("train", "CartPole-v1", "--out", "file/run"), r"file/run: Not a directory"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_is_one_line_and_no_traceback(place: Path, args: tuple[str, ...], says: str) -> None:
    """Bug: a traceback, a page of usage, or exit code 0."""
    done = relive(*args, cwd=place)
    assert_refused(done.returncode, done.stderr, says)
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (
            "trian CartPole-v1",
            r"command: expected one of train, evaluate, plot, .*study, got 'trian'\. Did you mean train\?",
        ),
        ("train", r"ENV.*See relive train --help"),
        ("train CartPole-v1 --learning-rat 1", r"got --learning-rat\. Did you mean --learning-rate\?"),
        ("train CartPole-v1 --out run", r"a new or empty one, got run with \d+ entries\. Give another"),
        ("train CartPole-v1 Acrobot-v1", r"expected no further argument, got 'Acrobot-v1'"),
        ("train CartPole-v1 --agent.gamma 0.5", r"expected an option of relive train, got --agent.gamma"),
        ("train CartPole-v1 --seed x", r"--seed: invalid literal for int\(\) with base 10: 'x'"),
        ("train CartPole-v1 --loss cubic", r"'cubic'.*--loss.*squared"),
        ("train CartPole-v1 --capacity 7 --num-envs 4", r"capacity: expected a multiple of num_envs=4"),
        ("train CartPole-v1 --capacity 4000000000", r"plan: expected at most .* memory, got .*A capacity of .* fits"),
        ("train Blackjack-v1", r"observation_space: expected .*, got Tuple"),
        ("train CartPole-v1 --sampler rank", r"'rank'.*--sampler.*rank-based"),
        ("train CartPole-v1 --tau 0.1", r"--tau: expected --target soft with it, got --target periodic"),
        ("train MountainCar-v0 --target periodic --tau=0.01", r"--tau: expected --target soft with it"),
        (
            "train MountainCar-v0 --target-every 9",
            r"--target-every: expected --target periodic with it, got --target s",
        ),
        (
            "train CartPole-v1 --priority-alpha 0.7",
            r"priority_alpha: expected 0\.6, its default, while",
        ),
        ("train CartPole-v1 --offline-updates 9", r"offline_updates: expected 20000, its default, without a dataset"),
        ("train CartPole-v1 --newest 65", r"newest: expected at most batch_size=64, got 65"),
        (
            "train CartPole-v1 --checkpoint-every abc",
            r": --checkpoint-every: expected None or INT, got 'abc'\. See rel",
        ),
        ("train CartPole-v1 --checkpoint-every 0", r"checkpoint_every: expected an integer >= 1, got 0"),
        ("train --resume", r"--resume: expected a run directory and nothing else, got '--resume'"),
        ("train --resume nowhere", r"nowhere: expected a run directory with config\.json in it, found none"),
        (
            "train --resume run",
            r"run: expected a run that was interrupted or killed, got one that is finished\. See it.* evaluate run;",
        ),
        ("train --resume run --steps 5", r"--resume: expected .* nothing else, got '--resume run --steps 5'.*settings"),
        ("train CartPole-v1 --resume=run", r"--resume: expected .* nothing else, got 'CartPole-v1 --resume=run'"),
        ("train CartPole-v1 --offline nowhere.npz", r"nowhere\.npz: expected a dataset, got nothing there"),
        ("train CartPole-v1 --online", r"offline: expected a dataset, as online is set, got None"),
        (
            "study offline CartPole-v1 --datasets good",
            r"datasets: expected some of random, medium, .*'good'",
        ),
        (
            "study capacty",
            r"study: expected one of capacity, cliffwalk, offline, got 'capacty'\. Did you mean cap",
        ),
        ("study capacity", r"ENV.*See relive study capacity --help"),
        ("study capacity CartPol-v1", r"got 'CartPol-v1'\. Did you mean CartPole-v1"),
        ("study capacity CartPole-v1 --capacities 7", r"capacity: expected a multiple of num_envs=4, got 7"),
        ("study capacity CartPole-v1 --sampler uniform", r"got --sampler\. Did you mean --samplers\?"),
        ("study capacity CartPole-v1 --seeds 0", r"seeds: expected an integer >= 1, got 0"),
        ("study cliffwalk --sizes 1", r"sizes: expected numbers of states"),
        ("evaluate nowhere", r"nowhere: expected a run directory with config\.json in it, found none"),
        ("evaluate run --video nowhere/x.gif", r"--video: expected a directory that exists, got nowhere"),
        ("evaluate run --video x.mp4", r"--video: expected a file that ends in \.gif, got x\.mp4"),
        ("evaluate run --episodes 0", r"--episodes: expected an integer >= 1, got 0"),
        ("plot", r"expected at least one run directory, got none"),
        ("plot run nowhere", r"nowhere: expected a run directory"),
        ("plot run --out nowhere/x.png", r"nowhere/x\.png: No such file or directory"),
    ],
)
def test_every_other_mistake_is_one_line_too(
    place: Path, args: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bug: an exception that `main` does not know, or a message without a remedy. (In this process: faster.)"""
    monkeypatch.chdir(place)
    before = set(place.rglob("*"))
    code = main(args.split())
    assert_refused(code, capsys.readouterr().err, says)
    assert set(place.rglob("*")) - {place / "runs"} <= before  # a refused run leaves nothing behind


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"[]"),
        ("config.json", b'{"env": "CartPole-v1", "agent": 5}'),
        ("config.json", b'{"env": "CartPole-v1", "agent": {"hidden": 5}}'),
        ("best.pt", b""),
        ("best.pt", b"no weights"),
        ("best.pt", b"PK"),
    ],
)
def test_a_damaged_run_is_named(
    place: Path, name: str, content: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bug: a traceback from deep inside, or one that runs what a stranger put into the file."""
    monkeypatch.chdir(place)
    copied = shutil.copytree(place / "run", place / f"damaged-{name}-{len(content)}")
    (copied / name).write_bytes(content)
    code = main(["evaluate", str(copied), "--episodes", "1"])
    assert_refused(code, capsys.readouterr().err, rf"{name}: expected .*, got")


def test_a_terminal_that_cannot_print_everything_does_not_end_a_run(place: Path) -> None:
    """Bug: an encoding without the sign for plus-minus ended a run at its first evaluation."""
    done = relive("evaluate", "run", "--episodes", "1", cwd=place, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", ["torch", "gymnasium", "tyro"])
def test_a_missing_extra_is_named_with_its_remedy(place: Path, package: str) -> None:
    """Bug: ModuleNotFoundError for whoever installed `relive` alone."""
    done = relive("train", "CartPole-v1", cwd=place, without=package)
    remedy = rf"got no module '{package}'\. Install it: pip install 'relive\[train\]'"
    assert_refused(done.returncode, done.stderr, remedy)


def test_an_environment_whose_own_requirement_is_missing_is_named(place: Path) -> None:
    """Bug: Gymnasium's traceback for whoever has no Box2D."""
    done = relive("train", "LunarLander-v3", cwd=place, without="Box2D")
    remedy = r"LunarLander-v3: .*Box2D is not installed.*pip install 'relive\[train\]'"
    assert_refused(done.returncode, done.stderr, remedy)


def test_a_word_that_is_no_environment_chooses_no_preset(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: FrozenLake trained with the settings of CartPole, because a directory is called so."""
    monkeypatch.chdir(place)
    assert main(["train", "FrozenLake-v1", *TINY, "--out", "CartPole-v1"]) == 0
    assert load_config(place / "CartPole-v1").agent == AgentConfig()


def test_version_and_help_need_numpy_only(place: Path) -> None:
    """Bug: torch imported, and waited for, or missed, to print a line."""
    done = relive("--version", cwd=place, without="torch")
    assert re.fullmatch(r"relive \d+\.\d+\.\d+\n", done.stdout)
    done = relive("--help", cwd=place, without="gymnasium")
    assert done.returncode == 0
    assert "relive train CartPole-v1" in done.stdout


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("train CartPole-v1", (r"--steps INT", r"\(default: 50000\)", "Discount per step", "Directory of the run")),
        ("evaluate", (r"--video", "GIF")),
        ("plot", (r"--out PATH", "one or more")),
        ("study capacity", (r"--capacities .*INT", "Transitions that the buffer holds", "Runs at a time")),
        ("study cliffwalk", (r"--sizes .*INT", "Numbers of states")),
    ],
)
def test_help_shows_every_option_with_its_default(
    args: str, says: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Bug: options without a word of explanation, or the general default where the preset has another."""
    with pytest.raises(SystemExit) as end:
        main([*args.split(), "--help"])
    assert not end.value.code
    shown = capsys.readouterr().out
    for phrase in says:
        assert re.search(phrase, shown)


def test_every_setting_of_a_run_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    """Bug: a setting that config.json has and the command line cannot change."""
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    shown = capsys.readouterr().out
    for field in (*fields(TrainConfig), *fields(AgentConfig)):
        if field.name not in ("env", "agent"):
            assert f"--{field.name.replace('_', '-')} " in shown or f"--{field.name.replace('_', '-')}, " in shown


def test_evaluate_repeats_the_final_evaluation_and_films_an_episode(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bug: other weights or other seeds than `relive train` reported; a GIF that runs at another speed."""
    monkeypatch.chdir(place)
    assert main(["evaluate", "run", "--episodes", "5", "--video", "film.gif"]) == 0
    shown = capsys.readouterr().out
    reached = re.search(r"greedy return (.+? over 5 episodes)", shown)
    assert reached
    assert f"Greedy return {reached[1]}" in (place / "output").read_text()
    steps = re.search(r"film\.gif: an episode of (\d+) steps", shown)
    assert steps
    with Image.open(place / "film.gif") as film:
        shown_for = sum(frame.info["duration"] for frame in ImageSequence.Iterator(film))
    assert shown_for == pytest.approx(1000 * int(steps[1]) / 50, abs=41)  # CartPole has 50 pictures a second


def test_plot_draws_several_runs(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bug: only the first run drawn, or a picture that is none."""
    monkeypatch.chdir(place)
    assert main(["plot", "run", "run", "--out", "two.png"]) == 0
    assert "two.png: 2 runs." in capsys.readouterr().out
    with Image.open("two.png") as picture:
        picture.verify()


def test_the_study_of_capacities_shows_its_table_and_names_its_files(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bug: a table of another study, a progress bar's control characters in a log file, or files that are not there."""
    args = ("--capacities", "100", "200", "--samplers", "uniform", "--seeds", "1", "--steps", "100", "--out", "study")
    done = relive("study", "capacity", "CartPole-v1", *args, cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert "2 runs in CartPole-v1, 0 of them there already, 1 at a time.\nStudy: study\n" in done.stdout
    assert re.search(r"\nuniform-100-0 +1/2 runs  0:00:\d\d left\nuniform-200-0 +2/2 runs  0:00:00 left\n", done.stdout)
    assert re.search(r"\n\| capacity \| uniform \|\n.*\n\| 100 \| [\d.]+ \[.*\n\| 200 \| ", done.stdout)
    written = re.search(r"\nWritten: (.*)\n", done.stdout)
    assert written
    assert [(place / name).stat().st_size > 0 for name in written[1].split(", ")] == [True] * 3
    monkeypatch.chdir(place)
    assert main(["study", "capacity", "CartPole-v1", *args]) == 0
    again = capsys.readouterr().out
    assert "2 of them there already" in again
    assert "1/2 runs" not in again


def test_the_cliffwalk_names_its_files(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bug: a study that the command does not find, or options that do not reach it."""
    assert main(["study", "cliffwalk", "--sizes", "2", "3", "--seeds", "1", "--out", str(place / "cliff")]) == 0
    written = re.search(r"\nWritten: (.*)\n", capsys.readouterr().out)
    assert written
    assert [Path(name).parent for name in written[1].split(", ")] == [place / "cliff"] * 2
    assert all(Path(name).stat().st_size > 0 for name in written[1].split(", "))


def test_a_study_without_a_name_is_told_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    """Bug: exit code 0 for a call that did nothing; a study that the list leaves out."""
    assert main(["study"]) == 2
    assert main(["study", "--help"]) == 0
    assert capsys.readouterr().out.count("  cliffwalk  ") == 2


@pytest.mark.parametrize("package", ["numpy", "tyro"])
@pytest.mark.parametrize("start", [["-m", "relive"], ["relive"]])
def test_an_interrupt_while_packages_are_imported_is_quiet(start: list[str], package: str, tmp_path: Path) -> None:
    """Bug: a traceback of whichever import was going on."""
    (tmp_path / f"{package}.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n[].missing\n")
    (tmp_path / "relive").write_text("import sys\nfrom relive.cli import main\nsys.exit(main())\n")
    command = [sys.executable, *start, "train", "CartPole-v1"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_the_library_leaves_interrupts_alone(tmp_path: Path) -> None:
    """Bug: a Ctrl-C that ends the program of somebody who imports relive."""
    code = "import signal, relive; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    done = subprocess.run(
        [sys.executable, "-c", code, "relive"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("size", "every", "file", "more"),
    [
        (500, "None", "config.json", ""),
        (50_000, "None", "best.pt", r" The run stopped at step \d+, without a checkpoint: it cannot be resumed\."),
        (600_000, "200", r"checkpoint/agent-20\d\.pt", r" The run stopped at step 20\d, without"),
    ],
)
def test_what_a_full_disk_refuses_is_named(
    size: int, every: str, file: str, more: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bug: "No space left on device", and nothing that says on which. (A limit on files acts alike, anywhere.)"""
    run = tmp_path / "run"
    args = ["train", "CartPole-v1", *TINY, "--threshold", "None", "--checkpoint-every", every, "--out", str(run)]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        code = main(args)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    complaints = capsys.readouterr().err
    assert_refused(code, complaints, rf"relive train: {re.escape(str(run))}/{file}: File too large\.{more}")


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_ends_a_run_with_everything_written(tmp_path: Path, number: signal.Signals) -> None:
    """Bug: Ctrl-C loses the run, leaves a half-written file or a traceback, or does nothing."""
    args = [
        "train",
        "CartPole-v1",
        "--steps",
        "1000000",
        "--eval-every",
        "500",
        "--stop-return",
        "None",
        "--out",
        "run",
    ]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-m", "relive", *args], cwd=tmp_path, **pipes) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "greedy return" in line:
                break
        process.send_signal(number)
        output, complaints = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert complaints == ""
    ended = re.search(rf"Ended by {number.name} at step ([\d,]+); everything up to there is written\.", output)
    assert ended
    steps = int(ended[1].replace(",", ""))
    run = tmp_path / "run"
    assert read_metrics(run)["step"][-1] == steps
    assert f"interrupted by {number.name}" in (run / "summary.md").read_text()
    assert (
        torch.load(run / "last.pt", weights_only=True).keys() == torch.load(run / "best.pt", weights_only=True).keys()
    )
    with Image.open(run / "curve.png") as picture:
        picture.verify()


def test_a_run_interrupted_before_its_first_checkpoint_says_that_it_cannot_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bug: silence, and `--resume` tried in vain; a killed run of which `info` does not say how it goes on."""
    monkeypatch.chdir(tmp_path)
    advance = Trainer.advance

    def interrupted(trainer: Trainer, log: RunLog) -> None:
        advance(trainer, log)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "advance", interrupted)
    code = main(["train", "CartPole-v1", "--checkpoint-every", "3000", "--out", "run"])
    assert code == 128 + signal.SIGTERM
    said = "It cannot be resumed: there is no checkpoint yet, its first was due at step 3,000."
    assert said in capsys.readouterr().out
    for _ in ("ended by a signal", "killed"):
        assert main(["info", "run"]) == 0
        assert re.search(r"\n  to resume  +impossible: no checkpoint yet\n", capsys.readouterr().out)
        (tmp_path / "run" / "result.json").unlink(missing_ok=True)


def test_a_run_from_data_that_reached_its_return_says_why_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bug: 10 of 50 updates without a word, or as if something had gone wrong."""
    monkeypatch.chdir(tmp_path)
    assert main(["collect", "CartPole-v1", "--policy", "random", "--steps", "200", "--out", "d.npz"]) == 0
    args = ["--offline-updates", "50", "--eval-every", "10", "--stop-return", "1", "--threshold", "None"]
    args += ["--eval-episodes", "1", "--final-eval-episodes", "1", "--out", "run"]
    assert main(["train", "CartPole-v1", "--offline", "d.npz", *args]) == 0
    said = capsys.readouterr().out
    assert "\nFrom d.npz alone (an evaluation reached 1), 10 updates in " in said  # and of no episode: it played none
    assert re.search(r"\n10/50 .* updates/s  .* over 1 episode\n", said)
    assert main(["info", "run"]) == 0
    assert re.search(r"\n  status  +finished: an evaluation reached 1 \(stop_return\)\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("loss", "diverged"),
    [
        ([0.5, 0.2, 999.0], False),
        ([0.5, 0.2, 1001.0], True),
        ([5.0, 2.0, 1999.0], False),  # a thousand times is the least
        ([0.5, 5000.0, 3.0], False),  # it came back
        ([0.5, 0.2, math.inf], True),
        ([0.5, math.nan, math.nan], True),
        ([math.nan], True),
        ([], False),
    ],
)
def test_a_loss_without_bound_is_told_from_one_that_is_large(loss: list[float], diverged: bool) -> None:
    """Bug: a run that learned nothing but noise, with no word but its return; or an alarm at any large loss."""
    updates = np.arange(1.0, len(loss) + 1)
    assert has_diverged({"updates": updates, "loss": np.array(loss)}) is diverged
    rest = {"updates": np.append(updates, updates[-1:]), "loss": np.append(loss, loss[-1:] and [math.nan])}
    assert has_diverged(rest) is diverged  # a last row without an update has no loss


def test_a_run_from_data_whose_loss_has_no_bound_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bug: "threshold missed", and not a word on why."""
    monkeypatch.chdir(tmp_path)
    assert main(["collect", "CartPole-v1", "--policy", "random", "--steps", "200", "--out", "d.npz"]) == 0
    args = ["train", "CartPole-v1", "--offline", "d.npz", "--offline-updates", "60", "--threshold", "None"]
    args += ["--eval-episodes", "1", "--final-eval-episodes", "1", "--stop-return", "None"]
    for rate, told in (("1e-3", False), ("3.0", True)):
        assert main([*args, "--learning-rate", rate]) == 0
        said = capsys.readouterr().out
        assert ("\nThe loss has grown without bound" in said) is told
    assert re.search(
        r"smaller --learning-rate \(here 3\), a larger --target-every \(here \d+\), --cql-alpha 1\.\n", said
    )


@pytest.mark.parametrize(("every", "needs"), [(1999, 2000), (2000, None)])
def test_checkpoints_that_cut_every_long_episode_off_are_told(
    every: int, needs: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bug: steps of one environment compared with those of all (the preset has 4), or a note always there."""
    monkeypatch.chdir(tmp_path)
    args = ["--steps", "40", "--final-eval-episodes", "1", "--eval-episodes", "1", "--threshold", "None"]
    assert main(["train", "CartPole-v1", *args, "--checkpoint-every", str(every)]) == 0
    said = re.search(
        r"\nNote: .* cut off after 499 steps .* may last 500.*--checkpoint-every (\d+)", capsys.readouterr().out
    )
    assert (int(said[1]) if said else None) == needs


def test_who_plays_nothing_is_told_of_no_episode_that_is_cut_off() -> None:
    """Bug: advice about the length of episodes to who learns from a dataset alone."""
    config = TrainConfig(env="CartPole-v1", offline="d.npz", checkpoint_every=10)
    assert train._cut_short(config) is None
    assert "after 10 steps" in (train._cut_short(replace(config, online=True)) or "")


def test_an_interrupted_run_says_how_to_resume_it_and_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bug: a command printed that does not work; a resumed run that begins anew, or reports as if it had."""
    args = ["train", "CartPole-v1", "--steps", "2000", "--learning-starts", "100", "--eval-every", "1000"]
    args += ["--checkpoint-every", "500", "--stop-return", "None", "--threshold", "None", "--out", "a run"]
    args += ["--eval-episodes", "2", "--final-eval-episodes", "2"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-m", "relive", *args], cwd=tmp_path, **pipes) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "greedy return" in line:
                break
        process.send_signal(signal.SIGTERM)
        output, complaints = process.communicate(timeout=120)
    assert (process.returncode, complaints) == (128 + signal.SIGTERM, "")
    monkeypatch.chdir(tmp_path)
    assert main(["info", "a run"]) == 0
    told = capsys.readouterr().out
    said = re.search(r"\nResume: relive (train --resume 'a run') \(goes on from step ([\d,]+)\)\n", output)
    assert said
    assert re.search(r"\n  checkpoint  +what", output)
    assert re.search(rf"\n  to resume  +relive {said[1]} \(goes on from step {said[2]}\)\n", told)
    assert main(shlex.split(said[1])) == 0
    done = capsys.readouterr()
    assert done.err == ""
    assert f"Resuming CartPole-v1, seed 0, at step {said[2]}, its last checkpoint." in done.out
    assert re.search(r"\n2,00\d steps, ", done.out)
    metrics = read_metrics(tmp_path / "a run")
    assert (np.diff(metrics["step"]) > 0).all()
    assert metrics["step"][0] < 100
    assert metrics["step"][-1] >= 2000


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["train", "--help"]])
def test_nobody_reads_to_the_end(args: list[str]) -> None:
    """As under `| head`: no traceback, whoever has gone."""
    read, write = os.pipe()
    os.close(read)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "relive", *args], stdout=write, stderr=subprocess.PIPE, text=True, timeout=300
        )
    finally:
        os.close(write)
    assert ended.stderr == ""


@pytest.mark.parametrize("options", [["--actors", "3"], ["--num_envs=3"], ["--actors=3", "--num-envs", "7"]])
def test_the_default_capacity_is_one_that_the_environments_divide(options):
    config = train._read(["CartPole-v1", *options]).config
    assert config.capacity % config.lanes == 0
    assert 100_000 - config.lanes < config.capacity <= 100_000
