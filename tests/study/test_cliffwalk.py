"""The Blind Cliffwalk, small: its task by hand, and that every sampler learns it."""

import csv
from pathlib import Path

import numpy as np
import pytest

import relive
from relive.study.cliffwalk import SAMPLERS, TOLERANCE, CliffwalkConfig, Greedy, Run, Table, fill, learn, plot, run
from relive.study.cliffwalk import true_values as truth

pytest.importorskip("matplotlib")


def test_true_values_by_hand() -> None:
    """The right action is 0 in even states, 1 in odd ones; gamma is 1/2 for two states, 2/3 for three."""
    assert truth(2).tolist() == [[0.5, 0.0], [0.0, 1.0]]
    assert truth(3) == pytest.approx(np.array([[4 / 9, 0.0], [0.0, 2 / 3], [1.0, 0.0]]))


@pytest.mark.parametrize("num_states", [2, 3, 5])
def test_memory_holds_every_sequence_once(num_states: int) -> None:
    buffer = fill(num_states, np.random.default_rng(0), 0)
    batch = buffer.get(buffer.ids)
    assert len(buffer) == 2 ** (num_states + 1) - 2
    # State s is reached by the 2^(n - s) sequences that begin with s right actions; half of them go on.
    for state in range(num_states):
        here = batch.obs == state
        right = here & (batch.action == state % 2)
        assert here.sum() == 2 ** (num_states - state)
        assert right.sum() == here.sum() // 2
        assert batch.terminated[here & ~right].all()
        assert (batch.next_obs[right] == state + 1).all()
    rewarded = batch.reward != 0
    assert batch.obs[rewarded].tolist() == [num_states - 1]
    assert batch.terminated[rewarded].all()


def test_the_table_learns_the_truth() -> None:
    """The running error is the error, and it ends below the tolerance."""
    buffer = fill(3, np.random.default_rng(0), 0)
    table = Table(3, np.random.default_rng(0))
    learn("uniform", buffer, table, 100_000, 0)
    actual = np.mean((np.array(table.values[:-1]) - truth(3)) ** 2)
    assert table.error == pytest.approx(actual, rel=1e-9)
    assert actual < TOLERANCE


def test_greedy_takes_the_largest_last_error_and_of_equals_the_oldest() -> None:
    buffer = relive.ReplayBuffer(4, sampler=Greedy(), seed=0)
    for step in range(4):
        buffer.push(step, 0, 0.0, True, 0)
    drawn = []
    for error in (0.5, 2.0, 0.1, 0.7, 0.6, 0.05):
        batch = buffer.sample(1)
        drawn.append(int(batch.ids[0]))
        buffer.update_priorities(batch.ids, [error])
    assert drawn == [0, 1, 1, 2, 3, 2]


def test_every_sampler_converges_the_oracle_first_and_uniform_last() -> None:
    buffer = fill(4, np.random.default_rng(1), 0)
    updates = {}
    for name in SAMPLERS:
        updates[name], converged = learn(name, buffer, Table(4, np.random.default_rng(2)), 100_000, 0)
        assert converged
    assert updates["oracle"] <= min(updates.values())
    assert updates["uniform"] == max(updates.values())


def test_a_capped_run_says_so() -> None:
    buffer = fill(3, np.random.default_rng(0), 0)
    for name in SAMPLERS:
        assert learn(name, buffer, Table(3, np.random.default_rng(0)), 7, 0) == (7, False)


def test_the_study_writes_every_run_and_repeats_itself(tmp_path: Path) -> None:
    config = CliffwalkConfig(sizes=(2, 3, 4), seeds=2, out=tmp_path / "a")
    lines: list[str] = []
    table, figure = run(config, lines.append)
    again = run(CliffwalkConfig(sizes=(2, 3, 4), seeds=2, out=tmp_path / "b"), lines.append)
    assert table.read_bytes() == again[0].read_bytes()
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 2 * len(SAMPLERS)
    assert all(row["converged"] == "True" for row in rows)
    assert {row["transitions"] for row in rows} == {"6", "14", "30"}
    assert figure.read_bytes()[:4] == b"\x89PNG"
    assert len(lines) == 6
    assert "14 transitions" in lines[1]


def test_runs_that_were_cut_are_drawn(tmp_path: Path) -> None:
    runs = [Run(name, 2, 6, seed, 10, seed == 0) for name in SAMPLERS for seed in range(2)]
    plot(runs, tmp_path / "cut.png")
    assert (tmp_path / "cut.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": (1,)}, "sizes: expected numbers of states"),
        ({"sizes": (3, 3)}, "sizes: expected each"),
        ({"seeds": 0}, "seeds: expected"),
        ({"max_updates": 0}, "max_updates: expected"),
    ],
)
def test_refusals(change: dict[str, object], message: str) -> None:
    with pytest.raises(relive.ConfigError, match=message):
        CliffwalkConfig(**change)  # type: ignore[arg-type]
