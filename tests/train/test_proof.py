"""The proof of a resume, as a parent of processes: what they write, and what is left when it is ended."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from relive.dqn import AgentConfig, TrainConfig
from relive.train import prove, train
from relive.train.stop import unwinding

pytestmark = pytest.mark.usefixtures("blank_curves")

CONFIG = TrainConfig(
    env="CartPole-v1",
    steps=40,
    checkpoint_every=20,
    capacity=40,
    learning_starts=10,
    eval_episodes=1,
    final_eval_episodes=1,
    agent=AgentConfig(hidden=(4,), batch_size=4),
)
QUICK = "import os, signal, sys, time\nsys.argv.pop(1)\n"
"""In place of what a training imports first."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checkpoint."""
    path = tmp_path_factory.mktemp("proof") / "run"
    train(CONFIG, path)
    return path


def test_a_training_may_complain_as_much_as_it_likes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: an environment that fills a pipe which nobody reads, and a proof that never ends."""
    noisy = "sys.stderr.write('x\\n' * 500_000)\nos.rename('ready', sys.argv[2])\ntime.sleep(600)\n"
    monkeypatch.setattr(prove, "_WITH_US", QUICK)
    monkeypatch.setattr(prove, "_BEGIN", noisy)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, tmp_path / "ready")
    step, _ = prove._train_and_kill(replace(CONFIG, steps=80), tmp_path / "killed", 0.01)
    assert step == prove.checkpoint_step(tmp_path / "killed") == 40


def test_the_last_words_of_a_training_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: the first of a thousand lines, or none."""
    monkeypatch.setattr(prove, "_WITH_US", QUICK)
    code = "sys.stderr.write('x' * 100_000 + '\\nError: the simulator broke.\\n')\nsys.exit(3)\n"
    with (
        prove._Training(tmp_path / "err", code) as training,
        pytest.raises(OSError, match=r"^training: expected it to succeed, got: Error: the simulator broke\.$"),
    ):
        training.finish()
    with (
        prove._Training(tmp_path / "err", "sys.exit(3)") as training,
        pytest.raises(OSError, match=r"got: exit code 3$"),
    ):
        training.finish()


@pytest.fixture
def as_a_shell_begins_it() -> Iterator[None]:
    """Nobody handles signals; in the process of tests Ray does, once it was used."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("as_a_shell_begins_it")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_training_and_takes_its_directory_away(
    number: signal.Signals, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bug: a training that goes on without anybody, and a directory in /tmp for each proof that was ended."""
    deadly = f"os.kill(os.getppid(), {int(number)})\ntime.sleep(600)\n"
    monkeypatch.setattr(prove, "_WITH_US", QUICK)
    monkeypatch.setattr(prove, "_BEGIN", deadly)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    begun: list[prove._Training] = []
    begin = prove._begin
    monkeypatch.setattr(prove, "_begin", lambda *args: begun.append(begin(*args)) or begun[-1])
    with pytest.raises(SystemExit) as end:
        prove.prove_resume(run, steps=40)
    assert end.value.code == 128 + number
    assert [one.process.returncode for one in begun] == [-signal.SIGKILL]
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_signal_that_the_caller_ignores_stays_ignored() -> None:
    """Bug: `nohup relive check RUN --resume` ended with its terminal."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with unwinding():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
