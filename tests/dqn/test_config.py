"""Configs: what they refuse, and that they survive JSON."""

import json
from dataclasses import replace
from typing import Any

import pytest

from relive import ConfigError
from relive.dqn import PRESETS, AgentConfig, TrainConfig, preset


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": ()}, r"hidden: expected at least one width, or None, got \(\)"),
        ({"hidden": (64, 0)}, r"hidden: expected an integer >= 1, got 0"),
        ({"network": "cnn"}, r"network: expected one of auto, mlp, nature, minatar, got 'cnn'"),
        ({"n_step": 0}, r"n_step: expected an integer >= 1, got 0"),
        ({"gamma": 1.01}, r"gamma: expected a number in \[0, 1\], got 1.01"),
        ({"batch_size": 0}, r"batch_size: expected an integer >= 1"),
        ({"learning_rate": 0.0}, r"learning_rate: expected a finite number > 0, got 0.0"),
        ({"learning_rate": float("nan")}, r"learning_rate: expected a finite number > 0, got nan"),
        ({"adam_eps": -1.0}, r"adam_eps: expected a finite number > 0"),
        ({"loss": "l1"}, r"loss: expected squared or huber, got 'l1'"),
        ({"max_grad_norm": 0.0}, r"max_grad_norm: expected a finite number > 0, got 0.0"),
        ({"target": "hard"}, r"target: expected periodic or soft, got 'hard'"),
        ({"target_every": 0}, r"target_every: expected an integer >= 1"),
        ({"tau": 0.0}, r"tau: expected a number in \(0, 1\], got 0.0"),
        ({"cql_alpha": -0.1}, r"cql_alpha: expected a finite number >= 0, got -0.1"),
        ({"cql_alpha": float("inf")}, r"cql_alpha: expected a finite number >= 0, got inf"),
    ],
)
def test_agents_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AgentConfig(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"env": ""}, r"env: expected the id of an environment, got ''"),
        ({"steps": 0}, r"steps: expected an integer >= 1, got 0"),
        ({"steps": 10.5}, r"steps: expected an integer >= 1, got 10.5"),
        ({"num_envs": 3, "capacity": 1000}, r"capacity: expected a multiple of num_envs=3, got 1000"),
        ({"learning_starts": -1}, r"learning_starts: expected an integer >= 0, got -1"),
        ({"replay_ratio": 0.0}, r"replay_ratio: expected a finite number > 0, got 0.0"),
        ({"update_every": 0}, r"update_every: expected an integer >= 1"),
        ({"epsilon_start": 1.5}, r"epsilon_start: expected a number in \[0, 1\], got 1.5"),
        ({"epsilon_fraction": -0.1}, r"epsilon_fraction: expected a number in \[0, 1\]"),
        ({"eval_episodes": 0}, r"eval_episodes: expected an integer >= 1"),
        ({"keep": "first"}, r"keep: expected best or last, got 'first'"),
        ({"seed": -1}, r"seed: expected an integer >= 0, got -1"),
        ({"threads": 0}, r"threads: expected an integer >= 1"),
        ({"stack": True}, r"stack: expected an integer >= 1, got True"),
        ({"sampler": "rank"}, r"sampler: expected one of uniform, prioritized, rank-based, got 'rank'"),
        ({"priority_alpha": -0.1}, r"priority_alpha: expected a number in \[0, 100\], got -0.1"),
        ({"priority_alpha": float("nan")}, r"priority_alpha: expected a number in \[0, 100\], got nan"),
        ({"priority_beta": 1.1}, r"priority_beta: expected a number in \[0, 1\], got 1.1"),
        ({"priority_eps": 0.0}, r"priority_eps: expected a finite number > 0, got 0.0"),
        ({"newest": -1}, r"newest: expected an integer >= 0, got -1"),
        ({"newest": 65}, r"newest: expected at most batch_size=64, got 65"),
        ({"priority_alpha": 0.7}, r"priority_alpha: expected 0.6, its default, while sampler=uniform, got 0.7"),
        ({"priority_beta": 0.5}, r"priority_beta: expected 0.4, its default, while sampler=uniform, got 0.5"),
        ({"priority_eps": 0.1}, r"priority_eps: expected 1e-06, its default, while sampler=uniform, got 0.1"),
        (
            {"priority_eps": 0.1, "sampler": "rank-based"},
            r"priority_eps: expected 1e-06, its default, while sampler=rank-based, got 0.1",
        ),
        (
            {"offline_updates": 30},
            r"offline_updates: expected 20000, its default, without a dataset .*, got 30",
        ),
        ({"offline_share": 0.2}, r"offline_share: expected 0.5, its default, where no steps follow .*, got 0.2"),
        ({"offline": "d", "offline_share": 0.2}, r"offline_share: expected 0.5, its default, where no steps follow"),
        ({"online": True}, r"offline: expected a dataset, as online is set, got None"),
        ({"offline": ""}, r"offline: expected the path of a dataset, got ''"),
        ({"offline": "", "online": True}, r"offline: expected the path of a dataset, got ''"),
        ({"offline": "d", "offline_updates": 0}, r"offline_updates: expected an integer >= 1, got 0"),
        ({"offline": "d", "online": True, "offline_updates": -1}, r"offline_updates: expected an integer >= 0, got -1"),
        (
            {"offline": "d", "online": True, "offline_share": 1.0},
            r"offline_share: expected a number in \[0, 1\), got 1.0",
        ),
        ({"offline": "d", "sampler": "prioritized"}, r"sampler: expected uniform where nothing but the dataset is"),
        ({"offline": "d", "newest": 1}, r"newest: expected 0 where nothing but the dataset is learned from"),
        (
            {"offline": "d", "online": True, "offline_updates": 0, "offline_share": 0.0},
            r"offline_share: expected a number above 0, or offline_updates: .*, got 0.0",
        ),
    ],
)
def test_runs_that_make_no_sense_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**{"env": "CartPole-v1", **change})


def test_the_length_of_a_run_counts_updates_from_data_before_steps() -> None:
    """Bug: a run from data alone that waits for steps it never makes, or ends before those that follow."""
    plain = TrainConfig(env="X-v0", steps=100)
    assert (plain.updates_before, plain.length) == (0, 100)
    alone = replace(plain, offline="d", offline_updates=30)
    assert (alone.updates_before, alone.length) == (30, 30)
    assert (replace(alone, online=True).updates_before, replace(alone, online=True).length) == (30, 130)


PRIORITIZED = TrainConfig(
    env="X-v1", sampler="prioritized", priority_alpha=0.7, priority_beta=0.5, priority_eps=0.01, newest=2
)


@pytest.mark.parametrize(
    "config", [TrainConfig(env="X-v0"), PRIORITIZED, *PRESETS.values()], ids=lambda config: config.env
)
def test_a_config_survives_json(config: TrainConfig) -> None:
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_config_written_before_there_were_samplers_is_a_uniform_run() -> None:
    """Bug: the runs of an older version can be neither evaluated nor plotted."""
    data = TrainConfig(env="X-v0").to_dict()
    for name in ("sampler", "priority_alpha", "priority_beta", "priority_eps", "newest"):
        del data[name]
    assert TrainConfig.from_dict(data) == TrainConfig(env="X-v0", sampler="uniform", newest=0)


@pytest.mark.parametrize("data", [{"env": "X-v0", "speed": 1}, {"env": "X-v0", "agent": {"speed": 1}}, {}])
def test_a_dict_of_something_else_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="config: expected the fields of TrainConfig"):
        TrainConfig.from_dict(data)


def test_a_preset_is_known_by_its_environment_and_others_get_the_defaults() -> None:
    assert set(PRESETS) == {"CartPole-v1", "Acrobot-v1", "MountainCar-v0", "LunarLander-v3"}
    assert all(preset(name).env == name and preset(name).threshold is not None for name in PRESETS)
    assert preset("CartPole-v1").threshold == 475.0
    assert preset("Taxi-v3") == TrainConfig(env="Taxi-v3")
