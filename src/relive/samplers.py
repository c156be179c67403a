"""Which ids.

The anchors of a view are the ids a batch can start with: every live transition under `Transitions`, the first steps of
sequences under `Sequences`. A sampler is a value that says how anchors are drawn; the buffer keeps what it needs.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from relive.checks import integer, number, one_of

Normalize = Literal["batch", "buffer"]


@runtime_checkable
class Sampler(Protocol):
    """A sampler of your own: any object with this method; `relive.testing.check_sampler` tests it.

    It may also have `update_priorities(ids, abs_td)`, which the buffer's method of that name then calls with those ids
    that are anchors (abs_td as it was given, [B] or [B, T]). Both are called under a lock of their reader, never by two
    threads at once; a draw whose ids were overwritten meanwhile is repeated. `newest`, `max_uses` and priorities given
    with a push are for built-in samplers.
    """

    def draw(self, ids: NDArray[np.int64], n: int, rng: np.random.Generator) -> Any:
        """Draws a batch.

        Args:
            ids: int64 [N], all anchors, ascending; N >= 1.
            n: batch size.
            rng: a generator that is a pure function of the buffer's seed and the batch's number; use no other.

        Returns:
            int64 [n], each one of `ids`; or (that, float64 [n] above 0: the probability each was drawn with), from
            which importance weights are made.

        Cost: the list of anchors alone is O(N) a batch, in a call that takes the buffer's lock.
        """


@dataclass(frozen=True)
class Uniform:
    """Every anchor alike, independently, with replacement (Lin 1992; Mnih et al. 2015, algorithm 1).

    Attributes:
        newest: this many of the newest anchors of all lanes (the highest ids) are in every batch, as its first rows;
            they may be drawn beside that (combined experience replay, Zhang & Sutton 2017, arXiv:1712.01275).
        max_uses: an anchor that was in this many rows of batches is drawn no more; None for no limit. When fewer draws
            are left than a batch needs, `sample` raises NotEnoughDataError and nothing changes.

    Raises:
        ConfigError: a value out of range.
    """

    _: KW_ONLY
    newest: int = 0
    max_uses: int | None = None

    def __post_init__(self) -> None:
        _check_limits(self)


@dataclass(frozen=True)
class Prioritized:
    """Proportional prioritized replay: P(i) = p_i / sum of p, p_i = (|delta_i| + eps)^alpha.

    |delta| is given by `update_priorities`, or with the push; it is transformed once. New anchors get the largest p so
    far, which starts at p = 1 and never falls. A batch of B has one draw from each B-th of the sum (stratified), in the
    order of memory. p = 0 is never drawn. Importance weights are (N P(i))^-beta / max, with beta given at the call of
    `sample`.

    Attributes:
        alpha: how much priorities matter; 0 is uniform.
        eps: added to |delta|, so that a transition without error is drawn too.
        normalize: the largest weight of the "batch", or of the whole "buffer", becomes 1.
        eta: the priority of a sequence is eta * max + (1 - eta) * mean of |delta| over its steps (Kapturowski et al.
            2019, section 2.3).
        newest: see `Uniform`. Their weights are those they would have if drawn.
        max_uses: see `Uniform`.

    Raises:
        ConfigError: a value out of range.

    Paper: Schaul et al. 2016 (arXiv:1511.05952), sections 3.3 and 3.4, appendix B.2.1.
    """

    alpha: float = 0.6
    eps: float = 1e-6
    normalize: Normalize = "batch"
    eta: float = 0.9
    _: KW_ONLY
    newest: int = 0
    max_uses: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", number("Prioritized", "alpha", self.alpha, 0, 100))
        object.__setattr__(self, "eps", number("Prioritized", "eps", self.eps, 0, 1e30))
        object.__setattr__(self, "eta", number("Prioritized", "eta", self.eta, 0, 1))
        one_of("Prioritized", "normalize", self.normalize, ("batch", "buffer"))
        _check_limits(self)


@dataclass(frozen=True)
class RankBased:
    """Rank-based prioritized replay: P(i) proportional to rank(i)^-alpha, rank 1 for the largest |delta|.

    As in the paper, ranks are places in a binary heap, which is sorted after as many changes as it has entries (at
    least 1,024): exact just after, close in between. Sorting takes 16 bytes an entry for the while, and its time. The
    probabilities in the weights are those drawn with, always. Places also depend on when the buffer was read between
    pushes: of all samplers this is the one whose batches are a function of the calls, not of the contents alone.
    New anchors get the largest |delta| so far, 1 at first. Unlike under `Prioritized`, |delta| = 0 is drawn: it has the
    last rank.

    Attributes:
        alpha: how much ranks matter; 0 is uniform.
        normalize: see `Prioritized`.
        eta: see `Prioritized`.
        newest: see `Uniform`.
        max_uses: see `Uniform`.

    Raises:
        ConfigError: a value out of range.

    Paper: Schaul et al. 2016 (arXiv:1511.05952), section 3.3, appendix B.2.1.
    """

    alpha: float = 0.7
    normalize: Normalize = "batch"
    eta: float = 0.9
    _: KW_ONLY
    newest: int = 0
    max_uses: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", number("RankBased", "alpha", self.alpha, 0, 30))  # no rank underflows
        object.__setattr__(self, "eta", number("RankBased", "eta", self.eta, 0, 1))
        one_of("RankBased", "normalize", self.normalize, ("batch", "buffer"))
        _check_limits(self)


@dataclass(frozen=True)
class Shuffled:
    """Epochs: every anchor that was there when the epoch began, and still is, exactly once, in random order.

    New anchors join the next epoch. A batch may span two epochs. One that became an anchor during the epoch, of a
    transition that was there when it began, comes once in this epoch or in the next. The order is a keyed permutation,
    computed as it is walked: an epoch costs no memory and no shuffling. It is walked over all transitions, and those
    that are no anchors are passed over: where few are (whole episodes, nearly all used up), a batch takes as long.

    Attributes:
        newest: see `Uniform`; they come beside the epoch's own.
        max_uses: see `Uniform`; 1 gives a single epoch.

    Raises:
        ConfigError: a value out of range.
    """

    _: KW_ONLY
    newest: int = 0
    max_uses: int | None = None

    def __post_init__(self) -> None:
        _check_limits(self)


@dataclass(frozen=True)
class Recent:
    """Emphasizing recent experience: batch k of a period is uniform over the newest c_k transitions.

    c_k = max(N * eta^(1000 k / period), min_size) for k = 1 .. period, then again from 1; N are the live transitions.
    Every lane gives the newest of its own, in proportion to its length (rounded up). A window without anchors is
    doubled until it has one. eta is constant; the paper may anneal it. Importance weights are 1.

    Attributes:
        eta: how fast the window shrinks within a period, in (0, 1]; 1 is uniform.
        period: batches from the widest window to the narrowest. The paper updates as often as the last episode had
            steps, and shrinks over those updates.
        min_size: smallest window, in transitions.
        newest: see `Uniform`.
        max_uses: see `Uniform`.

    Raises:
        ConfigError: a value out of range.

    Paper: Wang & Ross 2019 (arXiv:1906.04009), emphasizing recent experience.
    """

    eta: float = 0.996
    period: int = 1000
    min_size: int = 5000
    _: KW_ONLY
    newest: int = 0
    max_uses: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "eta", number("Recent", "eta", self.eta, 1e-9, 1))
        object.__setattr__(self, "period", integer("Recent", "period", self.period, 1, 2**40))
        object.__setattr__(self, "min_size", integer("Recent", "min_size", self.min_size, 1, 2**62))
        _check_limits(self)


BuiltIn = Uniform | Prioritized | RankBased | Shuffled | Recent


def _check_limits(sampler: BuiltIn) -> None:
    owner = type(sampler).__name__
    object.__setattr__(sampler, "newest", integer(owner, "newest", sampler.newest, 0, 2**31 - 1))
    if sampler.max_uses is not None:
        object.__setattr__(sampler, "max_uses", integer(owner, "max_uses", sampler.max_uses, 1, 2**31 - 1))
