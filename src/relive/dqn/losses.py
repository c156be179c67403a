"""Targets and losses of the DQN family, each a line that names its paper.

A loss is a function of the TD error delta = Q(s, a) - target alone and comes with its derivative, which is all that the
networks' `backward` needs. No function here knows `gamma` or an end of episode: `discount` carries both.
"""

import torch
from torch import Tensor


def greedy_value(next_q: Tensor) -> Tensor:
    """max over a of Q'(s', a): [B, A] -> [B] (Mnih et al. 2015)."""
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
    """reward + discount * next_value, [B] each; 0 discount is a termination, gamma^m a window of m steps."""
    return torch.addcmul(reward, discount, next_value)


def squared(delta: Tensor) -> tuple[Tensor, Tensor]:
    """delta^2 / 2, and its derivative delta. [B] -> [B], [B]."""
    return delta.square() * 0.5, delta


def huber(delta: Tensor) -> tuple[Tensor, Tensor]:
    """delta^2 / 2 where |delta| <= 1, else |delta| - 1/2, and its derivative. [B] -> [B], [B].

    With c = clip(delta, -1, 1) both pieces are c (delta - c / 2), and the derivative is c: "error clipping" of Mnih et al. 2015.
    """
    clipped = delta.clamp(-1.0, 1.0)
    return clipped * (delta - 0.5 * clipped), clipped


LOSSES = {"squared": squared, "huber": huber}
