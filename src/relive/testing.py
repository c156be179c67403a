"""Is a sampler right? One suite for anyone's, ours included. Needs NumPy alone."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from relive.buffer import ReplayBuffer
from relive.engine import check_axes, keeps_priorities
from relive.errors import ConfigError, NotEnoughDataError, SchemaError
from relive.samplers import BuiltIn, Sampler, Uniform
from relive.schema import Field, Schema
from relive.views import Sequences, Transitions, View

Ids = NDArray[np.int64]
Make = Callable[[], BuiltIn | Sampler]
OfIds = Callable[[Ids], Any]  # (ids int64 [N]) -> float [N]

_ROUNDS = 12  # of pushes, before a clear
_DRAWS = 20_000
_USE_RNG = "Draw with the rng that is given, and let make() make a sampler that shares nothing with others."


def check_sampler(
    make: Make, *, probability: OfIds | None = None, abs_td: OfIds | None = None, deterministic: bool = False
) -> None:
    """Tests a sampler where samplers go wrong: uneven lanes, evictions, tiny buffers, sequences, a clear.

    In every situation each batch must have n ids that are anchors at that moment; equal seeds must give equal batches,
    whatever the global generators are at and other readers do; other seeds must give others. Nothing that the sampler
    is given, and no global generator, may be written to. What is pushed after draws must be drawn sooner or later:
    each new anchor within 20,000 draws. Priorities are updated along the way where the sampler takes them, with |delta|
    [B] and, of sequences, [B, T] too.

    Args:
        make: makes a sampler, a new one at each call: the class itself, or `lambda: MySampler(...)`.
        probability: (ids int64 [N], all anchors) -> what each is drawn in proportion to, float [N]. Draws are compared
            with it, and importance weights at beta=1 too. None where it changes from batch to batch.
        abs_td: (ids int64 [N]) -> |delta| for `update_priorities` before draws are compared with `probability`.
        deterministic: the sampler uses no random numbers, and seeds make no difference.

    Raises:
        AssertionError: a rule is broken; the message says which, and where.
        ConfigError: `make` makes no sampler, or `probability` gives no probabilities.

    Cost: seconds. The global generators are left as they were.
    """
    if not callable(make):
        raise ConfigError(f"make: expected a function that makes a sampler, got {make!r}. Use lambda: ...")
    numpy_state, python_state = pickle.loads(_global_states())
    try:
        for situation in _SITUATIONS:
            _check_repeatable(make, situation, deterministic)
            _check_new_ones(make, situation, probability)
        if probability is not None:
            _check_probability(make, _UNEVEN, probability, abs_td)
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)


@dataclass(frozen=True)
class _Situation:
    name: str
    capacity: int  # of a lane
    pace: tuple[int, ...]  # steps that each lane gets in a round
    batch: int
    episode: int = 5  # steps
    view: View = Transitions()  # noqa: RUF009 - a value, frozen


_UNEVEN = _Situation("uneven lanes, some wrapped", capacity=24, pace=(1, 0, 3, 8), batch=7)
_SITUATIONS = (
    _Situation("one lane, not full", capacity=100, pace=(4,), batch=16),
    _Situation("one lane, wrapped between draws", capacity=24, pace=(7,), batch=16),
    _UNEVEN,
    _Situation("one transition", capacity=1, pace=(1,), batch=3),
    _Situation("a batch larger than the buffer", capacity=3, pace=(1, 2), batch=64),
    _Situation("Transitions(n=3), long episodes", 24, (5, 2), 16, episode=50, view=Transitions(n=3)),
    _Situation("Sequences(4, stride=2), short episodes", 24, (5, 2), 8, episode=3, view=Sequences(4, stride=2)),
    _Situation("Sequences(4), long episodes", 24, (5, 2), 8, episode=50, view=Sequences(4)),
)


def _global_states() -> bytes:
    """Of the generators that a sampler must not use."""
    return pickle.dumps((np.random.get_state(), random.getstate()))  # noqa: NPY002


def _expect(holds: bool, rule: str, found: str, where: str, remedy: str = "") -> None:
    if not holds:
        raise AssertionError(f"check_sampler: expected {rule}, got {found} ({where}). {remedy}".rstrip())


class _Watched:
    """A user's sampler, which must neither fail nor write to what it is given."""

    def __init__(self, sampler: Sampler, where: str) -> None:
        self._sampler, self._where = sampler, where
        if hasattr(sampler, "update_priorities"):
            self.update_priorities = lambda ids, abs_td: self._call("update_priorities", (ids, abs_td))

    def draw(self, ids: Ids, n: int, rng: np.random.Generator) -> Any:
        return self._call("draw", (ids,), n, rng)

    def _call(self, name: str, arrays: tuple[NDArray[Any], ...], *rest: Any) -> Any:
        """Calls a method with copies of the arrays, which must not change."""
        copies, where = [array.copy() for array in arrays], f"{name} with {len(arrays[0])} ids, {self._where}"
        try:
            answer = getattr(self._sampler, name)(*copies, *rest)
        except Exception as error:
            raise AssertionError(f"check_sampler: expected an answer, got {error!r} ({where}).") from error
        read = all(map(np.array_equal, copies, arrays))
        _expect(read, "arrays that are only read", "arrays that were written to", where, "Copy before you write.")
        return answer


class _Trial:
    """A buffer in a situation, and the sampler in it."""

    def __init__(self, make: Make, situation: _Situation, seed: int) -> None:
        self.situation, self.make = situation, make
        sampler = check_axes(None, make())[1]
        limits = sampler if isinstance(sampler, BuiltIn) else Uniform()
        self.newest, self.max_uses = limits.newest, limits.max_uses
        self.updates = keeps_priorities(sampler) or hasattr(sampler, "update_priorities")
        self._steps = [0] * len(situation.pace)  # of each lane
        schema = Schema(Field("float64"), Field("int64"), lanes=len(situation.pace))
        axes: Any = {"sampler": self._watched(sampler), "view": situation.view, "seed": seed}
        self.buffer = ReplayBuffer(situation.capacity * schema.lanes, schema, **axes)

    def _watched(self, sampler: BuiltIn | Sampler) -> BuiltIn | Sampler:
        return sampler if isinstance(sampler, BuiltIn) else _Watched(sampler, self.situation.name)

    def grow(self, rounds: int = 1) -> None:
        """Pushes; episodes are terminated and truncated by turns."""
        episode = self.situation.episode
        for lane, pace in enumerate(self.situation.pace):
            for step in range(self._steps[lane], self._steps[lane] + rounds * pace):
                ends, cut = (step + 1) % episode == 0, step // episode % 2 == 1
                flags = {"terminated": ends and not cut, "truncated": ends and cut}
                self.buffer.push(float(step), 0, 0.0, next_obs=step + 1.0, lane=lane, **flags)
            self._steps[lane] += rounds * pace

    def draw(self, n: int) -> Ids:
        """Ids of a batch, checked; none where none can be drawn."""
        anchors = self.buffer.anchors
        if not len(anchors):
            return anchors
        where = f"{n} of {len(anchors)} anchors, {self.situation.name}"
        try:
            ids: Ids = self.buffer.sample(n).ids
        except NotEnoughDataError as error:
            _expect(self.max_uses is not None, "a batch", repr(error), where)
            return anchors[:0] if n == 1 + self.newest else self.draw(1 + self.newest)  # few uses are left
        except SchemaError as error:  # an answer that is no batch
            raise AssertionError(f"check_sampler: {error} ({where}) Draw n of the ids that are given.") from error
        stale = ids[~np.isin(ids, anchors)].tolist()
        _expect(len(ids) == n and not stale, f"{n} anchors", f"{len(ids)} ids, not among them {stale[:5]}", where)
        return ids

    def story(self, *, disturbed: bool = False) -> list[Ids]:
        """Batches drawn while the buffer fills, wraps, is cleared and filled again; others may read beside."""
        batches = []
        for number in range(_ROUNDS + 6):
            if number == _ROUNDS:
                self.buffer.clear()
            self.grow()
            for _ in range(2):
                if disturbed:
                    self._read_beside()
                batches.append(self.draw(self.situation.batch + self.newest))
                if self.updates:
                    self.buffer.update_priorities(batches[-1], self._errors(batches[-1], len(batches)))
        return batches

    def _errors(self, ids: Ids, number: int) -> NDArray[np.float64]:
        """|delta| of a batch: [B], of sequences [B, T] by turns."""
        errors = (ids % 5).astype(np.float64)
        view = self.situation.view
        if isinstance(view, Transitions) or number % 2 == 0:
            return errors
        return np.repeat(errors[:, None], int(view.length), axis=1)

    def _read_beside(self) -> None:
        """Reads the buffer in every other way."""
        self.buffer.get(self.buffer.ids)
        beside = self.buffer.reader(sampler=self._watched(self.make()), view=Transitions(), seed=9)
        ids = beside.sample(2 + self.newest).ids if self.max_uses is None else self.buffer.ids
        if self.updates:
            beside.update_priorities(ids, np.full(len(ids), 7.0))


def _check_repeatable(make: Make, situation: _Situation, deterministic: bool) -> None:
    def story(seed: int = 1, *, state: int = 1, disturbed: bool = False) -> list[Ids]:
        np.random.seed(state)  # noqa: NPY002
        random.seed(state)
        before, batches = _global_states(), _Trial(make, situation, seed).story(disturbed=disturbed)
        untouched, rule = _global_states() == before, "global random states left alone"
        _expect(untouched, rule, "a draw that changed one", situation.name, _USE_RNG)
        return batches

    def expect_equal(other: list[Ids], why: str, remedy: str = _USE_RNG) -> None:
        same = all(map(np.array_equal, first, other))
        _expect(same, f"equal batches {why}", "others", situation.name, remedy)

    first = story()
    expect_equal(story(), "from equal seeds")
    expect_equal(story(state=2), "whatever the global random states")
    expect_equal(story(disturbed=True), "whatever other readers do")
    if deterministic:
        expect_equal(story(seed=2), "from other seeds, of a deterministic sampler", "Leave deterministic out.")
    elif situation.capacity > 1:
        differs = not all(map(np.array_equal, first, story(seed=2)))
        remedy = f"{_USE_RNG} Or say deterministic=True."
        _expect(differs, "other batches from other seeds", "equal ones", situation.name, remedy)


def _check_new_ones(make: Make, situation: _Situation, probability: OfIds | None) -> None:
    trial = _Trial(make, situation, seed=3)
    for _ in range(_ROUNDS):
        trial.grow()
        trial.draw(1 + trial.newest)
    old = trial.buffer.anchors
    trial.grow()
    anchors = trial.buffer.anchors
    new = np.setdiff1d(anchors, old)
    if probability is not None:  # those that are hardly ever drawn are not waited for
        new = np.intersect1d(new, anchors[_shares(probability, anchors) * _DRAWS > 30])
    drawn = 0
    while len(new) and drawn < _DRAWS:
        ids = trial.draw(64 + trial.newest)
        drawn += len(ids)
        new = np.setdiff1d(new, ids)
        if not len(ids):  # a batch has more rows than there are uses left
            new = new[: len(new) if len(new) * (trial.max_uses or 0) > trial.newest else 0]
            break
    found = f"none of {new[:5]} in {drawn} draws"
    _expect(not len(new), "new transitions to be drawn", found, situation.name, "Draw from the list that is given.")


def _check_probability(make: Make, situation: _Situation, probability: OfIds, abs_td: OfIds | None) -> None:
    trial = _Trial(make, situation, seed=4)
    trial.grow(_ROUNDS)
    ids = trial.buffer.anchors
    if abs_td is not None:
        trial.buffer.update_priorities(ids, abs_td(ids))
    p = _shares(probability, ids)
    size = 100 + trial.newest
    drawn = np.concatenate([trial.draw(size)[trial.newest :] for _ in range(_DRAWS // 100)])
    counts, expected = np.bincount(np.searchsorted(ids, drawn), minlength=len(ids)), p * len(drawn)
    surprise = (counts - expected) ** 2 / np.maximum(expected, 5)  # rare ones would weigh too much
    surprise[(p == 0) & (counts > 0)] = np.inf
    worst = int(surprise.argmax())
    found = f"id {ids[worst]} {counts[worst]} times instead of {expected[worst]:.0f} in {len(drawn)} draws"
    spread = 2 / 9 / max(int((p > 0).sum()) - 1, 1)  # the quantile as Wilson & Hilferty 1931 approximate it
    limit = 2 / 9 / spread * (1 - spread + NormalDist().inv_cdf(1 - 1e-6) * spread**0.5) ** 3
    _expect(surprise.sum() <= limit, "draws in proportion to `probability`", found, situation.name)
    batch = trial.buffer.sample(size, beta=1.0)
    product = batch.weight * p[np.searchsorted(ids, batch.ids)]  # constant where weights are c / probability
    found = f"weight * probability from {product.min():.4g} to {product.max():.4g}"
    remedy = "Return (ids, probability) from draw."
    fits = bool(product.max() <= 1.001 * product.min() and batch.weight.max() <= 1.001)
    _expect(fits, "weights (beta=1) inverse to `probability`", found, situation.name, remedy)


def _shares(probability: OfIds, ids: Ids) -> Any:
    """What `probability` says, summing to one: float64 [N]."""
    p = np.asarray(probability(ids.copy()), np.float64)
    if p.shape != ids.shape or not np.isfinite(p).all() or (p < 0).any():
        raise ConfigError(f"probability: expected {len(ids)} finite numbers of at least 0, got {p}.")
    return p / (p.sum() or 1.0)
