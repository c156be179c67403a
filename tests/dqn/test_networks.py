"""Networks: which one a space gets, what it computes, and that its written-out derivative is the derivative."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from autograd_dqn import actions, q_values, vector_space
from gymnasium import Space
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

from relive import ConfigError
from relive.dqn import AgentConfig
from relive.dqn.networks import QNetwork, network_spec

FRAME = Box(0, 255, (40, 36), np.uint8)
FRAME_HWC = Box(0, 255, (36, 40, 3), np.uint8)
FRAME_CHW = Box(0, 255, (4, 36, 40), np.uint8)
GRID = Box(0, 1, (10, 10, 4), np.uint8)


def make(space: Space[Any], config: AgentConfig, stack: int = 1, dtype: torch.dtype = torch.float64) -> QNetwork:
    spec = network_spec(space, actions(3), config, stack)
    return QNetwork(spec, torch.Generator().manual_seed(0), dtype=dtype)


def sample(space: Space[Any], size: int, stack: int) -> torch.Tensor:
    """Observations [size, (stack,) *shape]."""
    space.seed(0)
    obs = np.stack([space.sample() for _ in range(size * stack)])
    return torch.from_numpy(obs.reshape(size, *((stack,) if stack > 1 else ()), *obs.shape[1:]))


def prepared(space: Space[Any], obs: torch.Tensor, network: str) -> torch.Tensor:
    """What a reader of the docs would feed the network: [B, features] or [B, stack * channels, H, W]."""
    if isinstance(space, Discrete):
        return torch.eye(int(space.n), dtype=torch.float64)[obs - int(space.start)].flatten(1)
    x = obs.double() / (255 if network == "nature" else 1)
    if network == "mlp":
        return x.flatten(1)
    if space.shape is not None and len(space.shape) == 3 and space.shape[2] < space.shape[0]:
        x = torch.einsum("...hwc->...chw", x)
    height, width = x.shape[-2:]
    return x.reshape(len(x), -1, height, width)


CASES = [
    (vector_space(5), 1, "mlp"),
    (vector_space(5), 4, "mlp"),
    (MultiBinary(6), 1, "mlp"),
    (Discrete(7, start=2), 1, "mlp"),
    (Discrete(7, start=2), 3, "mlp"),
    (FRAME, 1, "nature"),
    (FRAME, 4, "nature"),
    (FRAME_HWC, 2, "nature"),
    (FRAME_CHW, 1, "nature"),
    (GRID, 1, "minatar"),
    (GRID, 2, "minatar"),
]


@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize(("space", "stack", "network"), CASES, ids=str)
def test_values_and_gradients_equal_autograd(space: Space[Any], stack: int, network: str, dueling: bool) -> None:
    net = make(space, AgentConfig(dueling=dueling), stack)
    obs = sample(space, 6, stack)
    leaves = {name: value.clone().requires_grad_() for name, value in net.named.items()}
    expected = q_values(leaves, prepared(space, obs, network), network)
    grad_q = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    grads = torch.autograd.grad(expected, list(leaves.values()), grad_q)

    q, tape = net.forward(obs)
    net.gradient.fill_(torch.nan)  # backward must write every entry, and add to none
    net.backward(tape, grad_q)
    torch.testing.assert_close(q, expected.detach())
    torch.testing.assert_close(net(obs), expected.detach())
    torch.testing.assert_close(net.gradient, torch.cat([grad.flatten() for grad in grads]))
    assert not q.requires_grad


@pytest.mark.parametrize(("hidden", "dueling"), list(itertools.product([(4,), (5, 3), (4, 3, 6)], [False, True])))
def test_the_gradient_is_the_slope_of_the_values(hidden: tuple[int, ...], dueling: bool) -> None:
    """Central differences of every parameter: no autograd on either side."""
    net = make(vector_space(3), AgentConfig(hidden=hidden, dueling=dueling))
    obs = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    weights = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    _, tape = net.forward(obs)
    net.backward(tape, weights)
    slopes = torch.empty_like(net.params)
    step = 1e-6
    for i in range(len(net.params)):
        net.params[i] += step
        above = (net(obs) * weights).sum()
        net.params[i] -= 2 * step
        slopes[i] = (above - (net(obs) * weights).sum()) / (2 * step)
        net.params[i] += step
    torch.testing.assert_close(net.gradient, slopes, rtol=1e-6, atol=1e-7)


def test_dueling_advantages_cancel_out() -> None:
    net = make(vector_space(), AgentConfig(dueling=True, hidden=(8,)))
    obs = torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    before = net(obs)
    net.named["advantage.bias"] += 7.0  # the same for every action: identifiability, Wang et al. 2016, section 3
    torch.testing.assert_close(net(obs), before)
    net.named["value.bias"] += 7.0
    torch.testing.assert_close(net(obs), before + 7.0)


@pytest.mark.parametrize(("space", "stack", "network"), CASES, ids=str)
def test_auto_chooses_by_the_space(space: Space[Any], stack: int, network: str) -> None:
    convs = {"mlp": [], "nature": [32, 64, 64], "minatar": [16]}[network]
    hidden = {"mlp": (256, 256), "nature": (512,), "minatar": (128,)}[network]
    spec = network_spec(space, actions(), AgentConfig(), stack)
    assert [conv.channels for conv in spec.convs] == convs
    assert spec.hidden == hidden
    assert spec == network_spec(space, actions(), AgentConfig(network=network), stack)  # type: ignore[arg-type]


def test_the_nature_network_has_the_published_size() -> None:
    net = make(Box(0, 255, (84, 84), np.uint8), AgentConfig(), stack=4, dtype=torch.float32)
    assert len(net.params) == 1_684_128 + 512 * 3 + 3  # Mnih et al. 2015, with three actions


def test_uint8_is_divided_by_its_bound_and_others_only_if_asked_to() -> None:
    assert network_spec(Box(0, 255, (128,), np.uint8), actions(), AgentConfig()).scale == (255.0,)
    assert network_spec(Box(0, 1, (10, 10, 4), np.uint8), actions(), AgentConfig()).scale == (1.0,)
    assert network_spec(Box(0, 255, (2,), np.float32), actions(), AgentConfig()).scale == ()


@pytest.mark.parametrize("stack", [1, 3])
def test_inputs_are_scaled_by_their_own_bound_where_there_is_one(stack: int) -> None:
    low, high = np.array([-1.5, -0.0625, -np.inf, 0]), np.array([0.5, 0.0625, np.inf, 0])
    space = Box(low.astype(np.float32), high.astype(np.float32))
    net, plain = make(space, AgentConfig(scale_inputs=True), stack), make(space, AgentConfig(), stack)
    obs = torch.randn(5, *([stack] if stack > 1 else []), 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(net(obs), plain(obs / torch.tensor([1.5, 0.0625, 1.0, 1.0])))


def test_parameters_are_drawn_within_pytorchs_bounds_and_fill_them() -> None:
    net = make(vector_space(4), AgentConfig(dueling=True), dtype=torch.float32)
    for name, fan_in in {"hidden0": 4, "hidden1": 256, "value": 256, "advantage": 256}.items():
        weight = net.named[f"{name}.weight"]
        assert weight.abs().max() <= fan_in**-0.5
        assert weight.abs().max() > 0.9 * fan_in**-0.5
    assert net.named["hidden1.bias"].abs().max() <= 1 / 16


@pytest.mark.parametrize(
    ("space", "config", "message"),
    [
        (
            Dict({"a": vector_space()}),
            AgentConfig(),
            r"observation_space: expected Box, MultiBinary or Discrete, got Dict.*FlattenObservation",
        ),
        (Tuple([vector_space()]), AgentConfig(), r"observation_space: expected Box, .* got Tuple"),
        (MultiDiscrete([2, 3]), AgentConfig(), r"observation_space: expected Box, .* got MultiDiscrete"),
        (
            Box(0, 1, (2, 3, 4, 5)),
            AgentConfig(),
            r"observation_space: expected at most 3 axes, got shape \(2, 3, 4, 5\)",
        ),
        (
            vector_space(),
            AgentConfig(network="nature"),
            r"network: expected images of at least 36 x 36 for nature, got .*\(5,\)",
        ),
        (GRID, AgentConfig(network="nature"), r"network: expected images of at least 36 x 36"),
        (Box(0, 1, (2, 2, 3)), AgentConfig(), r"network: expected images of at least 3 x 3 for minatar"),
    ],
)
def test_spaces_no_network_reads_are_refused(space: Space[Any], config: AgentConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        network_spec(space, actions(), config)


def test_only_discrete_actions() -> None:
    with pytest.raises(ConfigError, match=r"action_space: expected Discrete, got Box"):
        network_spec(vector_space(), vector_space(), AgentConfig())
