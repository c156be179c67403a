"""What an id becomes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from relive.errors import ConfigError

MAX_STEPS = 65_536


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

    Raises:
        ConfigError: a value out of range.

    Paper: Sutton 1988, section 3 (n-step returns); Hessel et al. 2018 (arXiv:1710.02298), section 3, multi-step
        learning; Mnih et al. 2015 (doi:10.1038/nature14236), Methods, preprocessing (frame stacks).
    """

    n: int = 1
    gamma: float = 0.99
    stack: int = 1
    padding: Literal["repeat", "zeros"] = "repeat"

    def __post_init__(self) -> None:
        for name, value in (("n", self.n), ("stack", self.stack)):
            if not isinstance(value, int | np.integer) or isinstance(value, bool) or not 1 <= value <= MAX_STEPS:
                raise ConfigError(f"Transitions: expected {name} to be an integer in [1, {MAX_STEPS}], got {value!r}.")
            object.__setattr__(self, name, int(value))
        if not isinstance(self.gamma, int | float | np.floating) or not 0 <= self.gamma <= 1:
            raise ConfigError(f"Transitions: expected gamma in [0, 1], got {self.gamma!r}.")
        object.__setattr__(self, "gamma", float(self.gamma))
        if self.padding not in ("repeat", "zeros"):
            raise ConfigError(f"Transitions: expected padding 'repeat' or 'zeros', got {self.padding!r}.")
