"""The examples do what they say. A random policy earns about 22 on CartPole, an untrained greedy one about 10."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name: str) -> ModuleType:
    """An example as a module; running it is left to its functions."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_five_fields_learns(capsys: pytest.CaptureFixture[str]) -> None:
    returns = load("five_fields").main(4_000)
    assert np.mean(returns[:20]) < 35
    assert np.mean(returns[-5:]) > 70
    assert "mean return of the last 20" in capsys.readouterr().out


def test_the_single_file_learns_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    example = load("dqn_single_file")
    settings = example.parse(["--steps", "4000", "--double", "--eval-episodes", "5"])
    assert example.main(settings).mean() > 80
    out = capsys.readouterr().out
    assert "mean return of the last 50" in out
    assert "episodes of CartPole-v1" in out


def test_the_single_file_bootstraps_by_the_discount() -> None:
    """Its loss against a hand-made batch: a terminated transition, and a window of three steps cut by a truncation."""
    import relive

    example = load("dqn_single_file")
    buffer = relive.ReplayBuffer(8, view=relive.Transitions(n=3, gamma=0.5), seed=0)
    obs, step = np.zeros((3, 2), np.float32), np.arange(3, dtype=np.float32)
    obs += step[:, None]
    ended = buffer.push(obs[0], 1, 2.0, True, obs[1])
    first = buffer.push(obs[0], 0, 1.0, False, obs[1])
    buffer.push(obs[1], 0, 1.0, False, obs[2], truncated=True)
    batch = buffer.get([ended, first], output="torch")
    # Q'(s) = (10, 20) everywhere: the targets are 2, and 1 + 0.5 + 0.25 * 20 = 6.5; Q(s) = (1, 0).
    target, online = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    for network, bias in ((target, [10.0, 20.0]), (online, [1.0, 0.0])):
        torch.nn.init.zeros_(network.weight)
        network.bias.data = torch.tensor(bias)
    plain = example.td_loss(online, target, batch, double=False).item()
    assert plain == pytest.approx(((0 - 2) ** 2 / 2 + (1 - 6.5) ** 2 / 2) / 2)
    double = example.td_loss(online, target, batch, double=True).item()  # the online network prefers action 0
    assert double == pytest.approx(((0 - 2) ** 2 / 2 + (1 - 4.0) ** 2 / 2) / 2)


@pytest.mark.parametrize("name", ["dqn_single_file"])
def test_the_single_file_stays_readable(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= 200
