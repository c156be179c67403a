"""The agent: equal to autograd under every option, each option's meaning, acting, and its state."""

import io
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from autograd_dqn import FakeBatch, ReferenceDQN, WeightedBatch, actions, random_batch, vector_space
from gymnasium.spaces import Box
from scipy import stats

import relive
from relive import ConfigError
from relive.dqn import DQN, AgentConfig
from relive.dqn.losses import conservative

SMALL = AgentConfig(hidden=(16, 16), learning_rate=1e-2)


def make(config: AgentConfig, *, seed: int = 0, num_actions: int = 3, start: int = 0) -> DQN:
    return DQN(vector_space(), actions(num_actions, start), config, seed=seed)


def batches(count: int, *, weighted: bool = False, seed: int = 0) -> list[FakeBatch]:
    generator = torch.Generator().manual_seed(seed)
    return [random_batch(generator, 32, 5, 3, weighted) for _ in range(count)]


OPTIONS = {
    "double": [False, True],
    "dueling": [False, True],
    "loss": ["squared", "huber"],
    "max_grad_norm": [None, 0.5],
    "target": ["periodic", "soft"],
    "cql_alpha": [0.0, 0.7],
}


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("chosen", list(itertools.product(*OPTIONS.values())), ids=str)
def test_equals_autograd_and_torch_optim(chosen: tuple[object, ...], weighted: bool) -> None:
    config = replace(SMALL, target_every=3, tau=0.1, **dict(zip(OPTIONS, chosen, strict=True)))  # type: ignore[arg-type]
    agent = make(config)
    reference = ReferenceDQN(agent.weights(), config)
    for batch in batches(8, weighted=weighted):
        loss, delta = reference.update(batch)
        update = agent.update(batch)
        torch.testing.assert_close(update.delta, delta, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(update.abs_td, delta.abs(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(update.loss, torch.tensor(loss), rtol=1e-4, atol=1e-4)
    for name, value in agent.state_dict()["online"].items():
        torch.testing.assert_close(value, reference.online[name].detach(), rtol=1e-3, atol=2e-4)
    for name, value in agent.state_dict()["target"].items():
        torch.testing.assert_close(value, reference.target[name], rtol=1e-3, atol=2e-4)


def test_data_actions_outgrow_all_others_under_a_large_cql_alpha() -> None:
    """Bug: the conservative term with the wrong sign, or on another action. Without it, its twin, they must not."""
    (batch,) = batches(1)
    share = {}
    for alpha in (0.0, 100.0):
        agent = make(replace(SMALL, cql_alpha=alpha, max_grad_norm=None))
        for _ in range(300):
            agent.update(batch)
        share[alpha] = np.mean(agent.q_values(batch.obs.numpy()).argmax(1) == batch.action.numpy())
    assert share[100.0] == 1.0
    assert share[0.0] < 0.8


def test_the_conservative_gradient_is_exact_in_double_precision() -> None:
    """Bug: a softmax over the batch, or a derivative that is off where one value is far above the others."""
    generator = torch.Generator().manual_seed(0)
    q = (30 * torch.randn(64, 4, generator=generator, dtype=torch.float64)).requires_grad_()
    action = torch.randint(4, (64, 1), generator=generator)
    expected = 2.5 * (torch.logsumexp(q, 1) - q.gather(1, action)[:, 0])
    (derivative,) = torch.autograd.grad(expected.sum(), q)
    penalty, grad = conservative(q.detach(), action, 2.5)
    torch.testing.assert_close(penalty, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(grad, derivative, rtol=1e-12, atol=1e-12)
    assert (penalty >= 0).all()
    huge, _ = conservative(torch.tensor([[1e4, -1e4]]), torch.tensor([[0]]), 1.0)  # exp would overflow
    assert huge.tolist() == [0.0]


def test_the_penalty_is_told_and_is_no_td_error() -> None:
    """Bug: priorities made of the conservative term, or a loss logged without it."""
    (batch,) = batches(1)
    plain, careful = make(SMALL).update(batch), make(replace(SMALL, cql_alpha=2.0)).update(batch)
    assert plain.penalty is None
    assert careful.penalty is not None
    assert torch.equal(plain.abs_td, careful.abs_td)
    torch.testing.assert_close(careful.loss, plain.loss + careful.penalty.mean())


def test_the_target_is_a_copy_every_so_many_updates() -> None:
    agent = make(replace(SMALL, target_every=3))
    first = agent.weights()["q.weight"]
    for number, batch in enumerate(batches(7), start=1):
        agent.update(batch)
        target = agent.state_dict()["target"]["q.weight"]
        if number % 3 == 0:
            first = agent.weights()["q.weight"]
        assert torch.equal(target, first), number
        assert number % 3 == 0 or not torch.equal(target, agent.weights()["q.weight"])


def test_a_soft_target_moves_by_tau_after_the_step() -> None:
    agent = make(replace(SMALL, target="soft", tau=0.25))
    before = agent.state_dict()["target"]["q.weight"]
    agent.update(batches(1)[0])
    after = agent.state_dict()
    torch.testing.assert_close(after["target"]["q.weight"], 0.75 * before + 0.25 * after["online"]["q.weight"])


def test_the_clipped_gradient_has_the_norm_asked_for() -> None:
    (batch,) = batches(1)
    free, clipped, loose = (make(replace(SMALL, max_grad_norm=norm)) for norm in (None, 0.01, 1e6))
    for agent in (free, clipped, loose):
        agent.update(batch)
    gradient = free._online.gradient
    assert gradient.norm() > 0.1
    torch.testing.assert_close(clipped._online.gradient, gradient * (0.01 / gradient.norm()))
    assert torch.equal(loose._online.gradient, gradient)


def test_a_gradient_of_zero_stays_zero_when_clipped() -> None:
    agent = make(SMALL)
    (batch,) = batches(1)
    taken = torch.from_numpy(agent.q_values(batch.obs.numpy())).gather(1, batch.action[:, None])[:, 0]
    before = agent.weights()
    agent.update(replace(batch, reward=taken, discount=torch.zeros(32)))
    assert all(torch.equal(before[name], value) for name, value in agent.weights().items())


def test_weights_scale_the_loss_and_the_gradient_of_their_transition() -> None:
    (batch,) = batches(1)
    config = replace(SMALL, max_grad_norm=None)
    agent, alone = make(config), make(config)
    fields = vars(batch)
    update = agent.update(WeightedBatch(**fields, weight=torch.eye(32)[0]))  # transition 0 counts, no other
    torch.testing.assert_close(update.loss, update.delta[0] ** 2 / 2 / 32)
    alone.update(FakeBatch(**{name: value[:1] for name, value in fields.items()}))
    torch.testing.assert_close(agent._online.gradient, alone._online.gradient / 32)


def test_a_truncated_transition_bootstraps_and_a_terminated_one_does_not() -> None:
    """Through the real buffer: 'done' of either kind must not mean the same."""
    agent = make(SMALL)
    buffer = relive.ReplayBuffer(8, view=relive.Transitions(gamma=0.5), seed=0)
    obs, next_obs = np.ones(5, np.float32), np.full(5, 2, np.float32)
    truncated = buffer.push(obs, 1, 3.0, False, next_obs, truncated=True)
    terminated = buffer.push(obs, 1, 3.0, True, next_obs)
    q, next_q = agent.q_values(np.stack([obs, next_obs]))
    update = agent.update(buffer.get(np.array([truncated, terminated]), output="torch"))
    expected = torch.tensor([q[1] - (3.0 + 0.5 * next_q.max()), q[1] - 3.0])
    torch.testing.assert_close(update.delta, expected)
    torch.testing.assert_close(update.q_mean, torch.tensor(q[1]))


def test_actions_are_numbered_as_the_environment_numbers_them() -> None:
    plain, shifted = make(SMALL), make(SMALL, start=7)
    obs = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
    assert np.array_equal(plain.act(obs, 0.3) + 7, shifted.act(obs, 0.3))
    (batch,) = batches(1)
    plain.update(batch)
    shifted.update(replace(batch, action=batch.action + 7))
    assert all(torch.equal(plain.weights()[name], value) for name, value in shifted.weights().items())


def test_greedy_actions_are_the_best_and_epsilon_one_is_uniform() -> None:
    agent = make(SMALL)
    obs = np.random.default_rng(0).normal(size=(3000, 5)).astype(np.float32)
    greedy = agent.act(obs, 0.0)
    assert greedy.dtype == np.int64
    assert np.array_equal(greedy, agent.q_values(obs).argmax(1))
    assert len(set(greedy.tolist())) > 1

    def p_value(chosen: np.ndarray) -> float:
        return float(stats.chisquare(np.bincount(chosen, minlength=3)).pvalue)

    assert p_value(agent.act(obs, 1.0)) > 1e-6
    assert p_value(greedy) < 1e-6  # the broken twin: exploration that is greedy
    agrees = np.mean(agent.act(obs, 0.3) == greedy)
    assert abs(agrees - (0.7 + 0.3 / 3)) < 0.04  # five standard deviations of 3000 draws


def test_one_observation_is_a_batch_of_one_and_read_only_input_is_fine() -> None:
    agent = make(SMALL)
    obs = np.ones((1, 5), np.float32)
    obs.flags.writeable = False
    assert agent.act(obs, 0.0).shape == (1,)
    assert np.array_equal(agent.q_values(obs), agent.q_values(np.ones((1, 5))))  # float64 reads the same


def test_the_seed_decides_everything_and_nothing_global_is_touched() -> None:
    obs = np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state(legacy=False)  # noqa: NPY002 (the state that must not change)
    agents = [make(SMALL, seed=seed) for seed in (3, 3, 4)]
    for agent in agents:
        agent.update(batches(1)[0])
    first, second, other = (agent.act(obs, 0.5) for agent in agents)
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)
    assert not torch.equal(agents[0].weights()["q.weight"], agents[2].weights()["q.weight"])
    assert torch.equal(torch.get_rng_state(), torch_state)
    now = np.random.get_state(legacy=False)  # noqa: NPY002 (the state that must not change)
    assert np.array_equal(now["state"]["key"], numpy_state["state"]["key"])
    assert now["state"]["pos"] == numpy_state["state"]["pos"]


@pytest.mark.parametrize("target", ["periodic", "soft"])
def test_a_restored_agent_continues_bit_for_bit(target: str) -> None:
    config = replace(SMALL, double=True, dueling=True, target=target, target_every=4)  # type: ignore[arg-type]
    obs = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    agent = make(config)
    agent.act(obs, 0.5)
    for batch in batches(6):
        agent.update(batch)
    file = io.BytesIO()
    torch.save(agent.state_dict(), file)
    file.seek(0)
    restored = make(config, seed=99)
    restored.load_state_dict(torch.load(file, weights_only=True))
    for batch in batches(6, seed=1):  # crosses a copy of the periodic target at update 8
        assert torch.equal(agent.update(batch).delta, restored.update(batch).delta)
    assert np.array_equal(agent.act(obs, 0.5), restored.act(obs, 0.5))
    assert _flat(agent.state_dict()) == _flat(restored.state_dict())


def _flat(state: dict[str, object]) -> dict[str, object]:
    """A state as values that compare by `==`."""
    flat: dict[str, object] = {}
    for name, value in state.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": inner for key, inner in _flat(value).items()}
        else:
            flat[name] = value.tolist() if isinstance(value, torch.Tensor) else value
    return flat


def test_a_state_is_a_copy() -> None:
    agent = make(SMALL)
    state = agent.state_dict()
    before = _flat(state)
    agent.update(batches(1)[0])
    assert _flat(state) == before


def test_weights_load_into_both_networks() -> None:
    source, other = make(SMALL), make(SMALL, seed=1)
    file = io.BytesIO()
    torch.save(source.weights(), file)
    file.seek(0)
    other.load_weights(torch.load(file, weights_only=True))
    obs = np.ones((2, 5), np.float32)
    assert np.array_equal(source.q_values(obs), other.q_values(obs))
    assert torch.equal(other.state_dict()["target"]["q.weight"], source.weights()["q.weight"])


def test_weights_of_another_network_are_refused_and_change_nothing() -> None:
    agent, wider = make(SMALL), make(replace(SMALL, hidden=(16, 17)))
    before = _flat(agent.state_dict())
    with pytest.raises(ConfigError, match=r"weights: expected .*'hidden1.weight': \(16, 16\).* got .*\(16, 17\)"):
        agent.load_weights(wider.weights())
    with pytest.raises(ConfigError, match="weights: expected"):
        agent.load_state_dict({**agent.state_dict(), "target": wider.weights()})
    assert _flat(agent.state_dict()) == before


def test_frames_learn_through_the_convolutions() -> None:
    """A bandit of two pictures: the network must tell them apart by their pixels."""
    agent = DQN(
        Box(0, 255, (36, 36), np.uint8), actions(2), AgentConfig(learning_rate=1e-3, hidden=(32,)), seed=0, stack=2
    )
    obs = torch.zeros(2, 2, 36, 36, dtype=torch.uint8)
    obs[0, :, :18], obs[1, :, 18:] = 255, 255
    batch = FakeBatch(
        obs=obs.repeat(2, 1, 1, 1),
        action=torch.tensor([0, 0, 1, 1]),
        reward=torch.tensor([1.0, 0.0, 0.0, 1.0]),
        next_obs=obs.repeat(2, 1, 1, 1),
        discount=torch.zeros(4),
    )
    before = agent.weights()
    for _ in range(60):
        agent.update(batch)
    assert agent.act(obs.numpy(), 0.0).tolist() == [0, 1]
    assert not torch.equal(agent.weights()["conv0.weight"], before["conv0.weight"])


def test_dead_units_do_not_slow_the_optimiser_down() -> None:
    """A moment that only decays would end as a denormal number, and arithmetic on those takes far longer."""
    agent = make(SMALL)
    (batch,) = batches(1)
    agent.update(batch)
    idle = replace(batch, obs=torch.zeros_like(batch.obs))
    for _ in range(3000):
        agent.update(idle)
    tiny = torch.finfo(torch.float32).tiny
    for moment in (agent.state_dict()["moment1"], agent.state_dict()["moment2"]):
        assert not ((moment != 0) & (moment.abs() < tiny)).any()
