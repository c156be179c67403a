"""`relive collect`, `convert` and `info`, as they are typed."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

import relive
from relive import interop
from relive.cli import main


def run(capsys, *words):
    """Exit code, stdout, stderr."""
    code = main([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out, said.err


def table(text):
    """The rows of `relive info`."""
    rows = [line.strip().split("  ", 1) for line in text.splitlines()[1:]]
    return {row[0]: row[1].strip() for row in rows}


@pytest.mark.parametrize("name", ["a.parquet", "a.npz", "a.h5", "a", "a.snapshot"])
def test_collect_then_info(name, tmp_path, capsys):
    path = tmp_path / name
    code, out, err = run(capsys, "collect", "CartPole-v1", "--steps", 120, "--out", path, "--num-envs", 2)
    assert (code, err) == (0, "")
    assert "120 transitions of random in CartPole-v1" in out
    code, out, _ = run(capsys, "info", path)
    rows = table(out)
    assert code == 0
    assert rows["transitions"] == "120 in 2 lanes"
    assert rows["obs"] == "float32 (4,)"
    assert rows["action"] == "int64 in [0, 1]"
    assert rows["rewards"] == "mean 1, from 1 to 1"


def test_info_counts_episodes(tmp_path, capsys):
    steps = np.arange(10)
    obs = steps.astype(np.float32)
    obs[6:] += 5  # a discontinuity after step 5
    ends = np.isin(steps, [2])
    following = obs + 1
    np.savez(
        tmp_path / "x.npz",
        **{"obs": obs, "next_obs": following, "act": steps, "rew": steps, "done": ends, "timeout": steps == 4},
    )
    code, out, _ = run(capsys, "info", tmp_path / "x.npz")
    rows = table(out)
    assert code == 0
    assert (
        rows["episodes"]
        == "3 that end (1 of them without a flag, where something else follows), 1 that go on where the data end"
    )
    assert rows["flags"] == "1 terminated, 1 truncated, 0 both"
    assert rows["returns"] == "mean 5, from 3 to 7"  # 0 + 1 + 2; 3 + 4; 5
    assert rows["lengths"] == "mean 2, from 1 to 3"
    assert rows["note"].startswith("done and timeout")


def test_convert_says_what_is_lost(tmp_path, capsys):
    run(capsys, "collect", "CartPole-v1", "--steps", 60, "--num-envs", 3, "--out", tmp_path / "a.npz")
    code, out, err = run(capsys, "convert", tmp_path / "a.npz", tmp_path / "b")
    assert (code, err) == (0, "")
    assert "(npz) -> " in out
    assert "(minari): 60 transitions in 3 lanes." in out
    assert "minari: Minari has no lanes" in out
    assert run(capsys, "convert", tmp_path / "b", tmp_path / "c.x", "--to", "d4rl", "--from", "minari")[0] == 0
    assert interop.open(tmp_path / "c.x").format == "d4rl"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["convert", "{a}", "{a}"], "expected a name that is free"),
        (["convert", "{none}", "x.npz"], "expected a dataset, got nothing there"),
        (["convert", "{a}", "{none}.csv"], "expected a name that ends in one of"),
        (["convert", "{a}", "{none}.parquet", "--from", "d4rl"], "a.npz: file: expected HDF5"),
        (["info", "{none}"], "expected a dataset, got nothing there"),
        (["collect", "CartPole-v1"], "--out: expected the file or directory to write"),
        (["collect", "CartPole-v1", "--out", "{a}"], "expected a name that is free"),
        (["collect", "CartPole-v1", "--out", "{none}.npz", "--epsilon", "1"], "--epsilon: expected 0 where all"),
        (["collect", "CartPole-v1", "--out", "{none}.npz", "--policy", "{none}"], "expected a run directory"),
    ],
)
def test_refusals_are_one_line(words, message, tmp_path, capsys):
    np.savez(tmp_path / "a.npz", obs=np.zeros(2), act=np.zeros(2), rew=np.zeros(2), done=np.zeros(2, np.bool_))
    places = {"{a}": tmp_path / "a.npz", "{none}": tmp_path / "none"}
    for mark, place in places.items():
        words = [word.replace(mark, str(place)) for word in words]
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_a_run_gives_its_policy(tmp_path, capsys):
    made = tmp_path / "run"
    run(capsys, "train", "CartPole-v1", "--steps", 300, "--eval-episodes", 2, "--out", made)
    code, out, err = run(
        capsys, "collect", "CartPole-v1", "--policy", made, "--epsilon", 0.2, "--steps", 80, "--out", tmp_path / "x.npz"
    )
    assert (code, err) == (0, "")
    assert interop.open(tmp_path / "x.npz").num_transitions == 80
    code, out, _ = run(capsys, "info", made)
    assert code == 0
    assert table(out)["a run"] == "CartPole-v1, seed 0, 300 steps"
    code, _, err = run(capsys, "collect", "Acrobot-v1", "--policy", made, "--out", tmp_path / "y.npz")
    assert code == 2
    assert "expected a run in Acrobot-v1, got one in CartPole-v1" in err


def run_without(missing, *words):
    """`relive ...` in a process of its own in which these modules cannot be imported."""
    code = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, *_):\n"
        f"        if name.partition('.')[0] in {missing!r}:\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from relive.cli import main\n"
        "raise SystemExit(main(sys.argv[1:]))"
    )
    words = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300)


def test_datasets_need_the_extra_interop_only(tmp_path):
    """`info` and `check` once asked for the extra of training, which brings PyTorch."""
    path = tmp_path / "a.npz"
    np.savez(path, obs=np.zeros(2), act=np.zeros(2), rew=np.zeros(2), done=np.zeros(2, np.bool_))
    training = ["torch", "gymnasium", "matplotlib", "tensorboard", "PIL"]
    for words in (["info", path], ["check", path], ["convert", path, tmp_path / "b.npz"]):
        done = run_without(training, *words)
        assert done.returncode == 0, done.stderr
    done = run_without(["tyro"], "info", path)
    assert done.returncode == 2
    assert done.stderr.endswith("Install it: pip install 'relive[interop]'\n")
    assert run_without(["tyro"], "plot", path).stderr.endswith("Install it: pip install 'relive[train]'\n")


def filled(**options):
    """A buffer of five transitions."""
    buffer = relive.ReplayBuffer(20, seed=5, **options)
    for step in range(5):
        buffer.push(np.zeros(2, np.float32), 1, float(step), step == 4, np.zeros(2, np.float32))
    return buffer


def test_info_tells_a_snapshot_from_a_file(tmp_path, capsys):
    """It once said that the priorities were lost, which a snapshot holds."""
    filled(sampler=relive.Prioritized(alpha=0.7)).save(tmp_path / "snap", note={"step": 3})
    code, out, _ = run(capsys, "info", tmp_path / "snap")
    rows = table(out)
    assert code == 0
    assert (rows["capacity"], rows["seed"], rows["saved with"]) == ("20", "5", 'note={"step": 3}')
    assert rows["sampler"].startswith("Prioritized(alpha=0.7, ")
    assert rows["view"] == "Transitions(n=1, gamma=0.99, stack=1, padding='repeat')"
    assert "priorities" in rows
    assert "no part of a dataset" not in out
    filled().save(tmp_path / "plain")
    rows = table(run(capsys, "info", tmp_path / "plain")[1])
    assert "saved with" not in rows
    assert "priorities" not in rows


def test_directories_that_are_no_dataset_say_what_to_use(tmp_path, capsys):
    with_checkpoint, without = tmp_path / "run", tmp_path / "other"
    for made in (with_checkpoint, without):
        made.mkdir()
        (made / "config.json").write_text("{}")
    filled().save(with_checkpoint / "checkpoint" / "replay")
    filled(storage=relive.Mmap(tmp_path / "mapped"))
    replay = with_checkpoint / "checkpoint" / "replay"
    for path, words in (
        (with_checkpoint, f"a run. The transitions in it are a snapshot: use {replay}"),
        (with_checkpoint / "checkpoint", f"a run's checkpoint. The transitions in it are a snapshot: use {replay}"),
        (without, "a run that keeps no transitions. Train with --checkpoint-every"),
        (tmp_path / "mapped", "relive.attach(path)"),
    ):
        code, _, err = run(capsys, "convert", path, tmp_path / "x.npz")
        assert code == 2
        assert words in err
    assert run(capsys, "convert", replay, tmp_path / "x.npz")[0] == 0


def test_hdf5_is_a_format(tmp_path, capsys):
    interop.write(interop.of_buffer(filled()), tmp_path / "a.npz")
    assert run(capsys, "convert", tmp_path / "a.npz", tmp_path / "b", "--to", "hdf5")[0] == 0
    for command in ("info", "check"):
        assert run(capsys, command, tmp_path / "b", "--format", "hdf5")[0] == 0
    assert interop.open(tmp_path / "b").format == "d4rl"


def test_choices_are_named_in_one_order(capsys):
    """Their order was that of a set, another in each process."""
    _, _, err = run(capsys, "info", "x", "--format", "foo")
    assert "Expected one of d4rl, hdf5, minari, None, npz, parquet, sb3, snapshot." in err
