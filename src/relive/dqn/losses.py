"""Targets and losses of the DQN family, each a line that names its paper.

A `Loss` is a function of the TD error delta = Q(s, a) - target alone and comes with its derivative, which is all that a
network's `backward` needs. No function here knows `gamma` or an end of episode: `discount` carries both.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def greedy_value(next_q: Tensor) -> Tensor:
    """The largest over a of Q'(s', a): [B, A] -> [B] (Mnih et al. 2015)."""
    return next_q.amax(1)


def double_value(next_q: Tensor, chooser_q: Tensor) -> Tensor:
    """Q'(s', argmax over a of Q(s', a)): the online network chooses, the target network values.

    Args:
        next_q: [B, A], the target network's values of the next observations.
        chooser_q: [B, A], the online network's.

    Returns:
        [B].

    Paper: van Hasselt et al. 2016 (arXiv:1509.06461), equation 4.
    """
    return next_q.gather(1, chooser_q.argmax(1, keepdim=True)).squeeze(1)


def td_target(reward: Tensor, discount: Tensor, next_value: Tensor) -> Tensor:
    """The target, reward + discount * next_value, [B] each; discount is 0 at a termination, else gamma^steps."""
    return torch.addcmul(reward, discount, next_value)


@dataclass(frozen=True)
class Loss:
    """A loss per transition and its derivative, both functions of delta, [B] -> [B]."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


SQUARED = Loss(value=lambda delta: 0.5 * delta.square(), slope=lambda delta: delta)
"""delta^2 / 2 (Mnih et al. 2015, equation of the loss)."""


def _huber(delta: Tensor) -> Tensor:
    clipped = delta.clamp(-1.0, 1.0)
    return clipped * (delta - 0.5 * clipped)


HUBER = Loss(value=_huber, slope=lambda delta: delta.clamp(-1.0, 1.0))
"""delta^2 / 2 where |delta| <= 1, else |delta| - 1/2: the "error clipping" of Mnih et al. 2015 (Huber 1964)."""

LOSSES = {"squared": SQUARED, "huber": HUBER}


def conservative(q: Tensor, action: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """What conservative Q-learning adds to the loss of a transition, alpha * (log sum_b exp Q(s, b) - Q(s, a)).

    It pushes down the values of all actions, most those that are large, and up that of the action in the data.

    Args:
        q: f[B, A], Q(s, .).
        action: i64[B, 1], index of the action in the data.
        alpha: its share, > 0.

    Returns:
        The penalty f[B], at least 0, and its derivative by q, alpha * (softmax over b of Q(s, b) - [b = a]), f[B, A].

    Paper: Kumar et al. 2020 (arXiv:2006.04779), equation 4, CQL(H), its sum over the actions exact.
    """
    log_sum = q.logsumexp(1, keepdim=True)  # f[B, 1]
    penalty = alpha * (log_sum - q.gather(1, action)).squeeze(1)
    grad = alpha * (q - log_sum).exp()  # alpha * softmax
    return penalty, grad.scatter_add_(1, action, torch.full_like(log_sum, -alpha))
