"""What an id becomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from relive.checks import integer, number, one_of
from relive.errors import ConfigError

MAX_STEPS = 65_536

Padding = Literal["repeat", "zeros"]
Strategy = Literal["future", "final", "episode"]
RewardFn = Callable[[Any, Any], Any]
"""(achieved_goal [M, ...], desired_goal [M, ...]) -> reward [M], or (reward [M], terminated [M])."""


@dataclass(frozen=True)
class Hindsight:
    """Relabels sampled transitions with goals that their episode did achieve.

    For observations that are a dict with `achieved_goal` and `desired_goal`. Each row of a sampled batch is relabelled
    with probability k / (k + 1): its desired_goal becomes the goal achieved after a step of the same episode,
    and reward and termination are computed anew. The step is drawn uniformly from those after (and with) the
    transition ("future"), is the episode's newest ("final"), or any live one of the episode ("episode"). An
    unfinished episode uses what it has. `get` returns transitions as they were. truncated, actions and extras stay;
    the batch's `goal_ids` says which step gave the goal.

    With n-step windows every reward of the window is computed anew and summed up to the first termination; next_obs
    stays that of the recorded window, which no target looks at after a termination.

    Attributes:
        strategy: "future", "final" or "episode".
        k: relabelled rows for each one left as it was, on average.
        reward_fn: required; called once a batch with the goals achieved after M steps and the goals desired,
            [M, *shape] each; returns reward [M], or (reward [M], terminated [M]). Rewards alone leave terminations as
            they were recorded; terminations replace them, so return them only where goals alone end episodes.

    Raises:
        ConfigError: a value out of range.

    Paper: Andrychowicz et al. 2017 (arXiv:1707.01495), algorithm 1; the strategies are compared in section 4.5.
    """

    strategy: Strategy
    k: float = 4
    reward_fn: RewardFn | None = None

    def __post_init__(self) -> None:
        one_of("Hindsight", "strategy", self.strategy, ("future", "final", "episode"))
        number("Hindsight", "k", self.k, 0, 1e9)
        if not callable(self.reward_fn):
            raise ConfigError(
                f"Hindsight: expected reward_fn(achieved_goal, desired_goal) -> reward, got {self.reward_fn!r}."
            )


@dataclass(frozen=True)
class Transitions:
    """n-step transitions with frame stacks, computed when they are read.

    The window of a transition runs for n steps; it stops after a termination, a truncation, a discontinuity or the
    newest transition of its lane, and bootstraps there (except after a termination). With m the steps used,
    reward = sum over i < m of gamma^i r_{t+i}, next_obs follows step m, discount = gamma^m * (1 - terminated).

    Attributes:
        n: steps; 1 is the original transition.
        gamma: discount factor in [0, 1].
        stack: frames of an observation, for environments that give single frames; the newest is last.
        padding: what stands before the first frame of an episode: "repeat" of it, or "zeros".
        relabel: goals given in hindsight, or None.

    Raises:
        ConfigError: a value out of range.

    Paper: Sutton 1988, section 3 (n-step returns); Hessel et al. 2018 (arXiv:1710.02298), section 3, multi-step
        learning; Mnih et al. 2015 (doi:10.1038/nature14236), Methods, preprocessing (frame stacks).
    """

    n: int = 1
    gamma: float = 0.99
    stack: int = 1
    padding: Padding = "repeat"
    relabel: Hindsight | None = None

    def __post_init__(self) -> None:
        for name in ("n", "stack"):
            object.__setattr__(self, name, integer("Transitions", name, getattr(self, name), 1, MAX_STEPS))
        object.__setattr__(self, "gamma", number("Transitions", "gamma", self.gamma, 0, 1))
        one_of("Transitions", "padding", self.padding, ("repeat", "zeros"))
        if not isinstance(self.relabel, Hindsight | None):
            raise ConfigError(f"Transitions: expected relabel to be a Hindsight or None, got {self.relabel!r}.")


@dataclass(frozen=True)
class Sequences:
    """Stretches of an episode, in order of time, for recurrent learners.

    A sequence starts at an anchor: a step whose position in its episode is a multiple of `stride` and whose
    window of `length` steps lies in the episode. Once the episode has ended, the steps that no such window covers are
    covered by one more, which is cut by the end and padded; an episode shorter than `length` is one such
    window. So windows cover every step of an ended episode, and none crosses its end. Of an episode that still goes on,
    complete windows are drawn. Positions count from the episode's true start; windows whose first step was overwritten
    are drawn no more.

    Fields of a batch are [B, T, ...]; `mask` [B, T] is true on real steps, `loss_mask` on those to learn from: not the
    first `burn_in`, which only bring a recurrent state up to date. A window that starts with its episode has
    the initial state and needs no burn-in: all its steps count, otherwise nobody would learn from them. Padding is
    zeros. `all_obs` [B, T + 1, ...] holds obs and the last next_obs in one array, for one pass of a network; obs
    and next_obs are views of it.

    Attributes:
        length: T, burn-in included (R2D2's 40 of burn-in and 80 to learn from are length=120, burn_in=40); "episode"
            for whole episodes that have ended, padded to the longest of the batch.
        burn_in: steps at the start of a window that are left out of the loss.
        stride: from one anchor to the next, at most length - burn_in so that no step is skipped.
        stack: frames of an observation, see `Transitions`.
        gamma: discount factor in [0, 1]; discount = gamma * (1 - terminated) of each step. Returns over several steps
            are the learner's to sum.
        padding: what stands before the first frame of an episode: "repeat" of it, or "zeros".
        state: names of extra fields (recurrent states) that are returned for the first step of each sequence only.

    Raises:
        ConfigError: a value out of range.

    Paper: Hausknecht & Stone 2015 (arXiv:1507.06527), section 4; Kapturowski et al. 2019 (R2D2), sections 2.3 and 3.
    """

    length: int | Literal["episode"]
    burn_in: int = 0
    stride: int = 1
    stack: int = 1
    gamma: float = 0.99
    padding: Padding = "repeat"
    state: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.length != "episode":
            object.__setattr__(self, "length", integer("Sequences", "length", self.length, 1, MAX_STEPS))
            length = int(self.length)
            object.__setattr__(self, "burn_in", integer("Sequences", "burn_in", self.burn_in, 0, length - 1))
            # With a longer stride some steps would never be learned from.
            object.__setattr__(self, "stride", integer("Sequences", "stride", self.stride, 1, length - self.burn_in))
        elif self.burn_in != 0 or self.stride != 1:
            raise ConfigError(
                "Sequences: expected neither burn_in nor stride with length='episode', got "
                f"burn_in={self.burn_in!r}, stride={self.stride!r}. Whole episodes start from the initial state."
            )
        object.__setattr__(self, "stack", integer("Sequences", "stack", self.stack, 1, MAX_STEPS))
        object.__setattr__(self, "gamma", number("Sequences", "gamma", self.gamma, 0, 1))
        one_of("Sequences", "padding", self.padding, ("repeat", "zeros"))
        if not isinstance(self.state, tuple | list) or not all(isinstance(name, str) for name in self.state):
            raise ConfigError(f"Sequences: expected state to be a tuple of names of extra fields, got {self.state!r}.")
        object.__setattr__(self, "state", tuple(self.state))


View = Transitions | Sequences
