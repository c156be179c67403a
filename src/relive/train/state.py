"""What the loop remembers."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from relive.dqn import Update


class LossMeter:
    """Means over updates since the last row, kept on the device so that no update waits for a number."""

    def __init__(self, device: str) -> None:
        self._sums = torch.zeros(2, device=device)  # f32[2]: loss, q
        self._count = 0
        self._last = (math.nan, math.nan)

    @property
    def empty(self) -> bool:
        """Whether nothing was added since the last `take`."""
        return self._count == 0

    def add(self, update: Update) -> None:
        """Take one update in."""
        self._sums[0] += update.loss
        self._sums[1] += update.q_mean
        self._count += 1

    def peek(self) -> tuple[float, float]:
        """Mean loss and mean Q since the last `take`, those before it while there was no update."""
        if self._count:
            loss, q_mean = (self._sums / self._count).tolist()
            self._last = (loss, q_mean)
        return self._last

    def take(self) -> tuple[float, float]:
        """The means, NaN if there was no update; then begin anew."""
        means = self.peek() if self._count else (math.nan, math.nan)
        self._sums.zero_()
        self._count = 0
        return means

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs, as tensors and plain values."""
        return {"sums": self._sums.cpu().clone(), "count": self._count, "last": self._last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`, bit for bit."""
        self._sums.copy_(state["sums"])
        self._count, self._last = state["count"], state["last"]


@dataclass
class LoopState:
    """All that the loop remembers from one step to the next.

    The agent and the buffer keep their own state, the environments theirs (with the observation in hand). All else is
    here.
    """

    running: NDArray[np.float64]
    """Return so far of each lane's episode, f64 [lanes]."""
    meter: LossMeter
    """Losses since the last row."""
    step: int = 0
    """Environment steps made, all lanes together; a reset is none."""
    updates: int = 0
    episodes: int = 0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=100))
    """Returns of the newest episodes."""
    fresh: list[float] = field(default_factory=list)
    """Returns of the episodes ended since the last row."""
    best_return: float = -math.inf
    best_step: int | None = None
    """Place in the run of the best evaluation; None before the first."""
    best_weights: dict[str, torch.Tensor] | None = None
    """The weights it was made with, those of best.pt; None before the first."""
    seconds: float = 0.0
    """Wall time of the run."""
    cpu_seconds: float = 0.0
    """Processor time of the same span: unlike wall time it says something on a machine that others use too."""
    eval_seconds: float = 0.0
    """Wall time of its evaluations."""
    row_step: int = 0
    """Place in the run of the last row: its step, after the updates from a dataset alone."""
    row_seconds: float = 0.0
    """Wall time up to the last row, evaluations left out."""

    def ended(self, returns: Sequence[float]) -> None:
        """Take in the returns of episodes that ended."""
        self.episodes += len(returns)
        self.recent.extend(returns)
        self.fresh.extend(returns)

    def state_dict(self) -> dict[str, Any]:
        """Every field, as tensors and plain values; loads with `weights_only=True`."""
        state = {one.name: getattr(self, one.name) for one in fields(self)}
        # Copies: the loop goes on changing these in place.
        state |= {"running": self.running.tolist(), "recent": list(self.recent), "fresh": list(self.fresh)}
        return state | {"meter": self.meter.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`, bit for bit.

        Raises:
            KeyError: a field is missing.
        """
        for one in fields(self):
            match one.name:
                case "running":
                    self.running[:] = state["running"]
                case "meter":
                    self.meter.load_state_dict(state["meter"])
                case "recent":
                    self.recent.clear()
                    self.recent.extend(state["recent"])
                case name:
                    setattr(self, name, state[name])


class FrameStack:
    """The last k observations of every lane as one: the acting side of what the buffer assembles when sampled."""

    def __init__(self, k: int, obs: NDArray[np.generic]) -> None:
        self.obs = np.repeat(obs[:, None], k, axis=1)  # [lanes, k, *frame]

    def push(self, obs: NDArray[np.generic], begins: NDArray[np.bool_]) -> None:
        """Append one observation a lane; where an episode begins its first one repeats."""
        self.obs = np.concatenate([self.obs[:, 1:], obs[:, None]], axis=1)
        self.obs[begins] = obs[begins, None]
