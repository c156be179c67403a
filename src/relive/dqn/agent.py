"""The agent of the DQN family: acts, and learns from batches of a replay buffer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium import Space
from gymnasium.spaces import Discrete
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import hardshrink

from relive.dqn.config import AgentConfig
from relive.dqn.losses import LOSSES, conservative, double_value, greedy_value, td_target
from relive.dqn.networks import QNetwork, network_spec
from relive.errors import ConfigError

_FLUSH_EVERY = 64
"""Updates between two rounds of setting negligible moments to zero.

The moments of a dead unit's weights decay for ever, into the denormal numbers and no further (rounding holds them
there). A CPU takes up to a hundred times longer over those: updates would slow down as training goes on.
"""

_NEGLIGIBLE = 1e-30
"""A moment of at most this size moves no parameter: Adam's epsilon and the parameters' precision are far above."""


class TorchBatch(Protocol):
    """What `update` reads: a batch of `buffer.sample(n, output="torch")`; also its `weight` [B], where it has one."""

    @property
    def obs(self) -> Tensor:
        """[B, *shape]."""

    @property
    def action(self) -> Tensor:
        """[B], as the environment numbers them."""

    @property
    def reward(self) -> Tensor:
        """f32[B], the n-step sum."""

    @property
    def next_obs(self) -> Tensor:
        """[B, *shape]."""

    @property
    def discount(self) -> Tensor:
        """f32[B], gamma^m * (1 - terminated)."""


@dataclass(frozen=True, slots=True)
class Update:
    """What one update tells, on the agent's device. Figures are computed when asked for: few updates are logged."""

    q: Tensor
    """f32[B], Q(s, a) before the step."""
    delta: Tensor
    """f32[B], Q(s, a) - target."""
    losses: Callable[[Tensor], Tensor]
    """The loss per transition as a function of delta."""
    weight: Tensor | None
    """f32[B], what multiplied the losses; None for all ones."""
    penalty: Tensor | None = None
    """f32[B], cql_alpha * (logsumexp over a of Q(s, a) - Q(s, a taken)); None where cql_alpha is 0."""

    @property
    def loss(self) -> Tensor:
        """f32[], the mean loss, the conservative term with it."""
        losses = self.losses(self.delta)
        if self.penalty is not None:
            losses = losses + self.penalty
        return (losses if self.weight is None else losses * self.weight).mean()

    @property
    def abs_td(self) -> Tensor:
        """f32[B], |delta| of each transition."""
        return self.delta.abs()

    @property
    def q_mean(self) -> Tensor:
        """f32[], the mean of Q(s, a)."""
        return self.q.mean()


class DQN:
    """Deep Q-learning and its options: double, dueling, n-step, squared or Huber loss, periodic or soft target.

        minimise  mean of  weight * loss(delta),   delta = Q(s, a) - (reward + discount * Q'(s', a'))

    With `cql_alpha` above 0 the loss of a transition is  loss(delta) + cql_alpha * (log sum_b exp Q(s, b) - Q(s, a)):
    conservative Q-learning, for data that the agent has not gathered itself.

    n-step returns live in the buffer's view (`Transitions(n, gamma)`), not here: `discount` carries them. Exploration
    draws from a generator of the agent's own; no global state of NumPy or PyTorch is read or touched.

    Papers: Mnih et al. 2015; van Hasselt et al. 2016; Wang et al. 2016; Hessel et al. 2018; Kingma & Ba 2015 (Adam);
    Kumar et al. 2020 (conservative).
    """

    def __init__(
        self,
        observation_space: Space[Any],
        action_space: Space[Any],
        config: AgentConfig,
        *,
        seed: int,
        device: str = "cpu",
        stack: int = 1,
    ) -> None:
        """Build the networks for these spaces.

        Args:
            observation_space: of one environment, without a stack axis.
            action_space: of one environment; Discrete.
            config: the options.
            seed: of the initial parameters and of exploration.
            device: where the networks are.
            stack: observations stacked by the buffer's view (`Transitions(stack=...)`).

        Raises:
            ConfigError: spaces that no network serves.
        """
        self.config = config
        self.device = torch.device(device)
        self.num_updates = 0
        spec = network_spec(observation_space, action_space, config, stack)
        assert isinstance(action_space, Discrete)  # network_spec refused all others
        self._num_actions = int(action_space.n)
        self._first_action = int(action_space.start)
        init_seed, explore_seed = np.random.SeedSequence(seed).spawn(2)
        generator = torch.Generator().manual_seed(int(init_seed.generate_state(1)[0]))
        self._rng = np.random.default_rng(explore_seed)
        self._online = QNetwork(spec, generator, self.device)
        self._target = QNetwork(spec, generator, self.device)
        self._target.params.copy_(self._online.params)
        self._moment1 = torch.zeros_like(self._online.params)
        self._moment2 = torch.zeros_like(self._online.params)
        self._adam_step = torch.zeros((), device=self.device)

    def act(self, obs: NDArray[Any], epsilon: float) -> NDArray[np.int64]:
        """Choose an action for each observation: greedy, or uniformly random with probability epsilon.

        Args:
            obs: [B, (stack,) *frame].
            epsilon: in [0, 1].

        Returns:
            int64 [B], as the environment numbers them.
        """
        draws = self._rng.random(
            (2, len(obs))
        )  # one call for both decisions: half the cost of acting on a small network
        explore = draws[0] < epsilon  # bool[B]
        actions = (draws[1] * self._num_actions).astype(np.int64)  # i64[B]
        if not explore.all():
            greedy = self._online(self._tensor(obs)).argmax(1).cpu().numpy()
            actions = np.where(explore, actions, greedy)
        chosen: NDArray[np.int64] = actions + self._first_action
        return chosen

    def q_values(self, obs: NDArray[Any]) -> NDArray[np.float32]:
        """Q f32[B, A] of the online network for observations [B, (stack,) *frame]."""
        values: NDArray[np.float32] = self._online(self._tensor(obs)).cpu().numpy()
        return values

    @torch.inference_mode()  # a tenth of the update: autograd's bookkeeping on tensors that it has no part in
    def update(self, batch: TorchBatch) -> Update:
        """Take one gradient step on a batch, and move the target network when it is due.

        Cost: on a CPU at 4-256-256-2 and 64 transitions about 0.6 ms; waits for no device.
        """
        online, config = self._online, self.config
        next_value = self._next_value(batch)  # f32[B]
        q, tape = online.forward(batch.obs)  # f32[B, A]
        action = self._column(batch.action)  # i64[B, 1]
        taken = q.gather(1, action).squeeze(1)  # f32[B]
        delta = taken - td_target(batch.reward, batch.discount, next_value)  # f32[B]
        loss = LOSSES[config.loss]
        slope = loss.slope(delta) / len(delta)
        weight: Tensor | None = vars(batch).get("weight")
        if weight is not None:
            slope = slope * weight
        grad_q = torch.zeros_like(q).scatter_(1, action, slope.unsqueeze(1))  # f32[B, A]
        penalty: Tensor | None = None
        if config.cql_alpha:
            penalty, grad_penalty = conservative(q, action, config.cql_alpha)
            grad_penalty /= len(delta)
            grad_q += grad_penalty if weight is None else grad_penalty * weight.unsqueeze(1)
        online.backward(tape, grad_q)
        self._step()
        return Update(taken, delta, loss.value, weight, penalty)

    @torch.inference_mode()
    def abs_td(self, batch: TorchBatch) -> Tensor:
        """|delta| f32[B] of a batch by the networks as they are, as `update` would find it; learns nothing."""
        next_value = self._next_value(batch)
        taken = self._online(batch.obs).gather(1, self._column(batch.action)).squeeze(1)
        return (taken - td_target(batch.reward, batch.discount, next_value)).abs()

    def _next_value(self, batch: TorchBatch) -> Tensor:
        """What the target bootstraps from, f32[B]."""
        next_q = self._target(batch.next_obs)  # f32[B, A]
        return double_value(next_q, self._online(batch.next_obs)) if self.config.double else greedy_value(next_q)

    def _column(self, action: Tensor) -> Tensor:
        """Actions [B] as columns of Q, i64[B, 1]."""
        column = action.long().unsqueeze(1)
        return column - self._first_action if self._first_action else column

    def _step(self) -> None:
        """Clip the gradient, step Adam, move the target."""
        config, params, gradient = self.config, self._online.params, self._online.gradient
        if config.max_grad_norm is not None:
            inverse_norm = torch.dot(gradient, gradient).rsqrt_()  # infinite for a zero gradient, which stays zero
            gradient.mul_(inverse_norm.mul_(config.max_grad_norm).clamp_max_(1.0))
        self._adam_step += 1
        # What torch.optim.Adam(fused=True) calls: the class around it takes longer than the arithmetic.
        torch._fused_adam_(
            [params],
            [gradient],
            [self._moment1],
            [self._moment2],
            [],
            [self._adam_step],
            lr=config.learning_rate,
            beta1=0.9,
            beta2=0.999,
            weight_decay=0.0,
            eps=config.adam_eps,
            amsgrad=False,
            maximize=False,
        )
        self.num_updates += 1
        if self.num_updates % _FLUSH_EVERY == 0:
            for moment in (self._moment1, self._moment2):
                moment.copy_(hardshrink(moment, _NEGLIGIBLE))
        if config.target == "soft":
            self._target.params.lerp_(params, config.tau)
        elif self.num_updates % config.target_every == 0:
            self._target.params.copy_(params)

    def weights(self) -> dict[str, Tensor]:
        """The online network's parameters by name, copied to the CPU; they load with `weights_only=True`."""
        return _copies(self._online)

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take these parameters, for the online and the target network.

        Raises:
            ConfigError: names or shapes of another network. Nothing was changed.
        """
        self._check(weights)
        _load(self._online, weights)
        _load(self._target, weights)

    @property
    def num_weights(self) -> int:
        """Parameters of the online network."""
        return len(self._online.params)

    def vector(self) -> NDArray[np.float32]:
        """The online network's parameters as one vector, f32 [num_weights]; on the CPU no copy. Only to be read."""
        flat: NDArray[np.float32] = self._online.params.cpu().numpy()
        return flat

    def load_vector(self, vector: NDArray[np.float32]) -> None:
        """Take the parameters of an agent with the same spaces and config, for both networks; copied."""
        for network in (self._online, self._target):
            network.params.copy_(torch.from_numpy(vector))

    def state_dict(self) -> dict[str, Any]:
        """Everything an exact continuation needs, as tensors and plain values; loads with `weights_only=True`."""
        return {
            "online": _copies(self._online),
            "target": _copies(self._target),
            "moment1": self._moment1.cpu().clone(),
            "moment2": self._moment2.cpu().clone(),
            "adam_step": self._adam_step.cpu().clone(),
            "num_updates": self.num_updates,
            "rng": self._rng.bit_generator.state,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`, bit for bit.

        Raises:
            ConfigError: the state of another network. Nothing was changed.
        """
        self._check(state["online"])
        self._check(state["target"])
        _load(self._online, state["online"])
        _load(self._target, state["target"])
        self._moment1.copy_(state["moment1"])
        self._moment2.copy_(state["moment2"])
        self._adam_step.copy_(state["adam_step"])
        self.num_updates = state["num_updates"]
        self._rng.bit_generator.state = state["rng"]

    def _check(self, weights: Mapping[str, Tensor]) -> None:
        """Refuse parameters of another network."""
        expected = {name: tuple(tensor.shape) for name, tensor in self._online.named.items()}
        got = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        if got != expected:
            raise ConfigError(f"weights: expected {expected}, got {got}. Build the agent with the config of its run.")

    def _tensor(self, obs: NDArray[Any]) -> Tensor:
        """`obs` on the device; copied first only where PyTorch could not share it."""
        return torch.from_numpy(np.require(obs, requirements=["C", "W"])).to(self.device)


def _copies(network: QNetwork) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in network.named.items()}


def _load(network: QNetwork, weights: Mapping[str, Tensor]) -> None:
    for name, tensor in network.named.items():
        tensor.copy_(weights[name])
