"""What samplers have to remember, naively: priorities, uses, epochs. Drawing itself is for tests of statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from model.reference import Model, View
from model.sequences import SequenceView, anchors, loss_mask


class Priorities:
    """p of every anchor, in a dict."""

    def __init__(self, alpha: float, eps: float, eta: float = 0.9) -> None:
        self.alpha, self.eps, self.eta = alpha, eps, eta
        self.largest = 1.0  # ever
        self.of: dict[int, float] = {}

    def keep(self, identities: Sequence[int]) -> None:
        """These are the anchors from now on: new ones get the largest p so far, what is gone is forgotten."""
        self.of = {identity: self.of.get(identity, self.largest) for identity in identities}

    def give(self, identity: int, raw: float) -> None:
        """Transform |delta| and write it down."""
        p = (float(raw) + self.eps) ** self.alpha if float(raw) + self.eps > 0 else 0.0
        self.of[identity] = p
        self.largest = max(self.largest, p)

    def of_sequence(self, errors: Sequence[float], learned: Sequence[bool]) -> float:
        """The raw priority of a sequence: max and mean of |delta| over the steps learned from."""
        counted = [float(error) for error, step in zip(errors, learned, strict=False) if step]
        if not counted:
            return 0.0
        return self.eta * max(counted) + (1 - self.eta) * sum(counted) / len(counted)


class Epochs:
    """Checks shuffled epochs: every anchor that was there when the epoch began, and still is, exactly once.

    A step that was live when the epoch began and became an anchor later may come in it or not. Where it came after all
    others, it is not known which of two epochs it belongs to, so whatever may be true is kept.
    """

    def __init__(self) -> None:
        # (must still come, may also come) in this epoch
        self.possible: set[tuple[frozenset[int], frozenset[int]]] = {(frozenset(), frozenset())}

    def draw(self, identity: int, can: Sequence[int], live: Sequence[int]) -> None:
        """One row. `can`: all that could be drawn at this moment; `live`: all transitions, anchors or not."""
        then: set[tuple[frozenset[int], frozenset[int]]] = set()
        for must, may in self.possible:
            must, may = must & set(can), may & set(live)
            if identity in must | may:
                then.add((must - {identity}, may - {identity}))
            if not must:  # the next epoch begins
                then.add((frozenset(can) - {identity}, frozenset(live) - frozenset(can)))
        assert then, f"{identity} came although the epoch was not over; still to come: {self.possible}"
        self.possible = then


@dataclass
class Reading:
    """What one reader remembers: who was used how often, and with what priority it is drawn.

    Args:
        model: the buffer that is read.
        view: how.
        newest: rows of each batch that are the newest anchors.
        max_uses: rows of batches after which an anchor retires.
        priorities: None for samplers that keep none.
        epochs: for samplers that have them.
    """

    model: Model
    view: View | SequenceView
    newest: int = 0
    max_uses: int | None = None
    priorities: Priorities | None = None
    epochs: Epochs | None = None
    uses: dict[int, int] = field(default_factory=dict)

    def changed(self) -> None:
        """To be called after every change of the buffer."""
        now = anchors(self.model, self.view)
        self.uses = {identity: self.uses.get(identity, 0) for identity in now}
        if self.priorities:
            self.priorities.keep(now)

    @property
    def anchors(self) -> list[int]:
        """What can be drawn now, ascending."""
        return [identity for identity in self.uses if self.left(identity) > 0]

    def left(self, identity: int) -> float:
        """In how many more rows an anchor can be."""
        if self.priorities and self.priorities.of[identity] == 0:
            return 0
        return np.inf if self.max_uses is None else self.max_uses - self.uses[identity]

    def enough(self, n: int) -> bool:
        """Whether a batch of n can be drawn."""
        return sum(self.left(identity) for identity in self.anchors) >= n

    def update(self, identities: Sequence[int], errors: Any) -> int:
        """update_priorities: how many were live anchors, retired ones too."""
        for identity, error in zip(identities, errors, strict=True):
            if self.priorities and identity in self.uses:
                if np.ndim(error):
                    error = self.priorities.of_sequence(error, loss_mask(self.model, identity, self.view))
                self.priorities.give(identity, error)
        return sum(identity in self.uses for identity in identities)

    def drawn(self, identities: Sequence[int]) -> None:
        """A batch of these rows was given out: check that it could be, and count the uses."""
        can = self.anchors
        assert set(identities) <= set(can), f"{set(identities) - set(can)} cannot be drawn"
        newest = can[::-1][: self.newest]  # all there are, where they are fewer
        first = identities[: len(newest)]
        assert first == newest, f"newest {self.newest} of {can}: got {first}"
        for place, identity in enumerate(identities):
            if self.epochs and place >= len(newest):
                self.epochs.draw(identity, self.anchors, self.model.ids)
            assert self.left(identity) > 0, f"{identity} in more than {self.max_uses} rows"
            self.uses[identity] += 1

    def weights(self, identities: Sequence[int], beta: float, normalize: str) -> list[float]:
        """(N P(i))^-beta / max, of the priorities before the batch was counted as used."""
        assert self.priorities
        p = self.priorities.of
        total = sum(p[identity] for identity in self.anchors)
        weight = {identity: (len(self.anchors) * p[identity] / total) ** -beta for identity in self.anchors}
        largest = max(weight[identity] for identity in (identities if normalize == "batch" else weight))
        return [weight[identity] / largest for identity in identities]
