"""The examples do what they say. A random policy earns about 22 on CartPole, an untrained greedy one about 10."""

import dataclasses
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


def test_the_recurrent_learner_runs_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    example = load("recurrent_q")
    settings = example.parse(["--steps", "800"])
    example.main(dataclasses.replace(settings, eval_every=400, eval_episodes=2, hidden=8, batch_size=8))
    out = capsys.readouterr().out
    assert "step     800" in out
    assert "greedy return before" in out


@pytest.mark.slow
def test_the_recurrent_learner_needs_its_memory() -> None:
    """Without memory about 45; with it 285 and more, of three seeds."""
    example = load("recurrent_q")
    _, without = example.main(example.parse(["--forget", "--steps", "6000"]))
    _, with_memory = example.main(example.parse([]))
    assert without.mean() < 70
    assert with_memory.mean() > 120


def test_the_recurrent_unroll_is_what_acting_computes() -> None:
    """TD errors of a padded sequence against a network stepped one observation at a time."""
    import relive

    example = load("recurrent_q")
    torch.manual_seed(0)
    online, target = example.Network(4, False), example.Network(4, False)
    schema = relive.Schema(
        relive.Field("float32", (2,)), relive.Field("int64"), {"hidden": relive.Field("float32", (4,))}
    )
    view = relive.Sequences(5, gamma=0.9, state=("hidden",))
    buffer = relive.ReplayBuffer(8, schema, view=view, seed=0)
    obs = np.random.default_rng(0).normal(0, 0.1, (4, 2)).astype(np.float32)
    hidden = torch.full((1, 4), 0.3)
    for step in range(3):
        buffer.push(obs[step], step % 2, 1.0, step == 2, obs[step + 1], hidden=hidden[0].numpy())
    batch = buffer.get([0], output="torch")
    delta = example.td_errors(online, target, batch)
    assert batch.loss_mask.tolist() == [[True, True, True, False, False]]
    q, next_q, state, slow_state = [], [], hidden, hidden
    with torch.no_grad():
        for step in range(4):
            one = torch.as_tensor(obs[step]).view(1, 1, 2)
            (values, state), (slow, slow_state) = online(one, state), target(one, slow_state)
            q.append(values[0, 0])
            next_q.append(slow[0, 0])
    for step in range(3):
        bootstrap = 0.0 if step == 2 else 0.9 * next_q[step + 1][q[step + 1].argmax()].item()
        assert delta[0, step].item() == pytest.approx(1.0 + bootstrap - q[step][step % 2].item(), abs=1e-5)


def test_hindsight_learns_what_dqn_alone_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    rates = load("hindsight_bitflip").main(["--bits", "12", "--steps", "14400"])
    assert rates[12, True][0, -1] > 0.5
    assert rates[12, False][0, -1] < 0.2
    assert "| 12 | future, k = 4 |" in capsys.readouterr().out


def test_bitflip_ends_where_the_goal_is_reached_or_after_n_steps() -> None:
    envs = load("hindsight_bitflip").BitFlip(3, 2)
    obs, _ = envs.reset(seed=15)
    wrong = [np.flatnonzero(bits != goal) for bits, goal in zip(obs["observation"], obs["desired_goal"], strict=True)]
    assert {len(flips) for flips in wrong} == {1, 3}  # a seed with an early end and a late one
    for step in range(3):
        action = np.array([flips[min(step, len(flips) - 1)] for flips in wrong])
        obs, reward, terminated, truncated, _ = envs.step(action)
        same = (obs["achieved_goal"] == obs["desired_goal"]).all(1)
        assert terminated.tolist() == same.tolist() == (reward == 0).tolist()
        assert truncated.tolist() == [step == 2] * 2


def test_the_offline_mixture_runs_both_ways(capsys: pytest.CaptureFixture[str]) -> None:
    example = load("offline_mixture")
    results = example.main(["--steps", "1400", "--offline-steps", "2000", "--seeds", "1"])
    assert {name: returns.shape for name, returns in results.items()} == {
        "online alone": (1, 5),
        "half offline": (1, 5),
    }
    assert "2,000 steps of a controller whose mean return is -1" in capsys.readouterr().out  # -200 if it never arrived


@pytest.mark.parametrize("name", ["dqn_single_file", "recurrent_q", "hindsight_bitflip", "offline_mixture"])
def test_single_files_stay_readable(name: str) -> None:
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= 200
