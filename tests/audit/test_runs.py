"""`relive check RUN`: the checkpoint of a run, and whether it resumes exactly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import relive.train.prove
from relive.cli import main
from relive.dqn import AgentConfig, TrainConfig
from relive.train import train
from relive.train.prove import Proof

TINY = TrainConfig(
    env="CartPole-v1",
    steps=600,
    checkpoint_every=300,
    num_envs=2,
    capacity=400,
    learning_starts=50,
    sampler="prioritized",
    final_eval_episodes=1,
    agent=AgentConfig(hidden=(16,), batch_size=8),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checkpoint."""
    path = tmp_path_factory.mktemp("runs") / "run"
    train(TINY, path)
    return path


def test_a_run_is_sound(run, capsys):
    """What `relive train` stores passes the checks made of what others store."""
    assert main(["check", str(run)]) == 0
    said = capsys.readouterr().out
    assert "400 transitions in 2 lanes" in said
    assert "ok       checkpoint" in said
    assert "ok       priorities" in said
    assert said.strip().splitlines()[-1] == "Sound: nothing found."


@pytest.mark.parametrize("what", ["agent", "records", "manifest"])
def test_damage_to_a_checkpoint_is_an_error(run, tmp_path, capsys, what):
    copy = shutil.copytree(run, tmp_path / "run")
    (file, *_) = (path for path in (copy / "checkpoint").rglob("*") if what in path.name)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    assert main(["check", str(copy)]) == 1
    assert file.name in capsys.readouterr().out


def test_a_run_without_a_checkpoint_is_refused(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint"))
    assert main(["check", str(copy)]) == 2
    assert "--checkpoint-every" in capsys.readouterr().err


@pytest.mark.parametrize("differences", [(), ("agent.step: 3 and 4", "best.pt.weight: 2 of 9 values differ")])
def test_the_proof_is_told(run, capsys, monkeypatch, differences):
    """Exit code 1 and every difference where the two trainings end differently."""

    def prove(run_dir, *, steps, report):
        assert (run_dir, steps) == (run, 50)
        report("Training.")
        return Proof(config=TINY, resumed_at=25, killed_after=0.5, updates=len(differences), differences=differences)

    monkeypatch.setattr(relive.train.prove, "prove_resume", prove)
    assert main(["check", str(run), "--resume", "--steps", "50"]) == bool(differences)
    said = capsys.readouterr().out
    assert all(difference in said for difference in ("Training.", *differences))
    assert ("Resumed exactly" in said) == (not differences)
    assert "\nCompared, bit for bit: agent, " in said
    assert "\nTrained with the settings of the run.\n" in said  # which the one that is given out is as long as
    assert ("\nNo update was made" in said) == (not differences)
    assert main(["check", str(run), "--resume", "--steps", "50", "--json"]) == bool(differences)
    assert json.loads(capsys.readouterr().out) == {"passed": not differences, "differences": list(differences)}


@pytest.mark.slow
def test_a_run_resumes_exactly(run, capsys):
    """The proof itself, by the command."""
    assert main(["check", str(run), "--resume", "--steps", "1200"]) == 0
    assert "Resumed exactly" in capsys.readouterr().out


def test_what_is_no_run_cannot_be_resumed(tmp_path):
    assert main(["check", str(tmp_path), "--resume"]) == 2
