"""The suite for samplers: ours pass it, and for each of its rules a sampler that breaks that rule alone is refused."""

from __future__ import annotations

import random

import numpy as np
import pytest

import relive
from relive.samplers import RankBased, Recent
from relive.testing import check_sampler


def ones(ids):
    return np.ones(len(ids))


def by_five(ids):
    return 1.0 + ids % 5


PASSING = {
    "uniform": (relive.Uniform, {"probability": ones}),
    "uniform and the newest": (lambda: relive.Uniform(newest=3), {"probability": ones}),
    "uniform, used once": (lambda: relive.Uniform(max_uses=1), {}),
    "prioritized": (relive.Prioritized, {"abs_td": by_five, "probability": lambda ids: by_five(ids) ** 0.6}),
    "prioritized, zeros": (
        lambda: relive.Prioritized(1, 0, "buffer", newest=4),
        {"abs_td": lambda ids: ids % 5, "probability": lambda ids: ids % 5},
    ),
    "ranked": (lambda: RankBased(newest=1, max_uses=2), {}),
    "ranked alike": (lambda: RankBased(alpha=0), {"probability": ones}),
    "shuffled": (relive.Shuffled, {"probability": ones}),
    "shuffled, one epoch": (lambda: relive.Shuffled(max_uses=1), {}),
    "recent": (lambda: Recent(0.999, period=3, min_size=2), {}),
}


@pytest.mark.parametrize("name", PASSING)
def test_samplers_of_this_library_pass(name):
    make, options = PASSING[name]
    check_sampler(make, **options)


class Even:
    """Right: every anchor alike. The twins below each get one thing wrong."""

    def draw(self, ids, n, rng):
        return rng.choice(ids, n)


class Own:
    """Right: priorities of its own, and probabilities that say so."""

    def __init__(self):
        self.mass = {}

    def draw(self, ids, n, rng):
        mass = np.array([self.mass.get(identity, 1.0) for identity in ids.tolist()]) + 0.5
        mass /= mass.sum()
        places = rng.choice(len(ids), n, p=mass)
        return ids[places], mass[places]

    def update_priorities(self, ids, abs_td):
        raw = abs_td if abs_td.ndim == 1 else abs_td.max(1)  # of sequences one a step
        self.mass.update(zip(ids.tolist(), raw, strict=True))


class Newest:
    """Right: the newest, over and over, and no random numbers."""

    def draw(self, ids, n, rng):
        return np.resize(ids[::-1], n)


def test_samplers_of_others_pass():
    check_sampler(Even, probability=ones)
    check_sampler(Own, abs_td=lambda ids: ids % 5, probability=lambda ids: ids % 5 + 0.5)
    check_sampler(Newest, deterministic=True)


def test_the_global_generators_are_left_as_they_were():
    before = np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    check_sampler(Newest, deterministic=True)
    assert (np.random.get_state()[1].tolist(), random.getstate()) == before  # noqa: NPY002


# Twins.


class Stale(Even):
    """Goes on drawing from a list it was given earlier."""

    def __init__(self):
        self.old = None

    def draw(self, ids, n, rng):
        self.old = ids if self.old is None or len(ids) > len(self.old) else self.old
        return rng.choice(self.old, n)


class Beyond(Even):
    """Draws between the first and the last id: right as long as there are no sequences and one lane."""

    def draw(self, ids, n, rng):
        return rng.integers(ids[0], ids[-1] + 1, n)


class OneLess(Even):
    def draw(self, ids, n, rng):
        return super().draw(ids, n - 1, rng)


class Distinct(Even):
    """Fails where a batch is larger than the buffer."""

    def draw(self, ids, n, rng):
        return rng.choice(ids, n, replace=False)


class Fractions(Even):
    def draw(self, ids, n, rng):
        return super().draw(ids, n, rng).astype(np.float64)


class Shuffles(Even):
    """Shuffles the list it was given."""

    def draw(self, ids, n, rng):
        rng.shuffle(ids)
        return np.resize(ids, n)


class Squares(Own):
    """Transforms |delta| in place."""

    def update_priorities(self, ids, abs_td):
        abs_td += 1
        super().update_priorities(ids, abs_td)


class Flat(Own):
    """Right as long as there are no sequences, or their priorities come one a sequence."""

    def update_priorities(self, ids, abs_td):
        self.mass.update({identity: float(value) for identity, value in zip(ids.tolist(), abs_td, strict=True)})


class GlobalNumpy(Even):
    def draw(self, ids, n, rng):
        return np.random.choice(ids, n)  # noqa: NPY002


class GlobalPython(Even):
    def draw(self, ids, n, rng):
        return np.array(random.choices(ids.tolist(), k=n))


class Seeded(Even):
    """Seeds the global generator first: always the same batch, and everybody else's numbers are spoiled."""

    def draw(self, ids, n, rng):
        np.random.seed(0)  # noqa: NPY002
        return np.random.choice(ids, n)  # noqa: NPY002


class Peeks(Even):
    """Reads the global state and leaves it as it was."""

    def draw(self, ids, n, rng):
        own = np.random.default_rng(np.random.get_state()[1][:4])  # noqa: NPY002
        return own.choice(ids, n)


class Entropy(Even):
    """A generator that nobody seeded."""

    def draw(self, ids, n, rng):
        return np.random.default_rng().choice(ids, n)


class Unseeded(Even):
    """A generator of its own: the same numbers whatever the seed."""

    def __init__(self):
        self.own = np.random.default_rng(0)

    def draw(self, ids, n, rng):
        return self.own.choice(ids, n)


class Common(Own):
    """Priorities in a place that all instances share."""

    shared: dict = {}  # noqa: RUF012 - the mistake

    def __init__(self):
        self.mass = self.shared
        self.mass.clear()


class Oldest(Even):
    """Leaves the newest out, as if its next observation were not stored yet."""

    def draw(self, ids, n, rng):
        return rng.choice(ids[: max(1, len(ids) - 1)], n)


class Frozen(Even):
    """Draws from the anchors it saw at first, as long as any of them is left."""

    def __init__(self):
        self.first = None

    def draw(self, ids, n, rng):
        self.first = ids if self.first is None else self.first
        kept = np.intersect1d(self.first, ids)
        return rng.choice(kept if len(kept) else ids, n)


class LanesFirst(Even):
    """A lane at random, then one of its transitions: of four uneven lanes."""

    def draw(self, ids, n, rng):
        lanes = [ids[ids % 4 == lane] for lane in range(4)]
        lanes = [lane for lane in lanes if len(lane)]
        return np.array([rng.choice(lanes[rng.integers(len(lanes))]) for _ in range(n)])


class Silent(Own):
    """Says nothing of its probabilities."""

    def draw(self, ids, n, rng):
        return super().draw(ids, n, rng)[0]


class Inverse(Own):
    """Returns weights where probabilities are asked for."""

    def draw(self, ids, n, rng):
        drawn, probability = super().draw(ids, n, rng)
        return drawn, 1 / probability


class Nothing(Own):
    def draw(self, ids, n, rng):
        drawn, probability = super().draw(ids, n, rng)
        return drawn, 0 * probability


class LastWeight(Own):
    """Probabilities of other ids than those drawn."""

    def draw(self, ids, n, rng):
        drawn, probability = super().draw(ids, n, rng)
        return drawn, probability[::-1]


OF_OWN = {"abs_td": lambda ids: ids % 5, "probability": lambda ids: ids % 5 + 0.5}
BROKEN = {
    Stale: ({}, r"expected ids of the list it was given, got \d+"),
    Beyond: ({}, r"expected ids of the list it was given, got \d+"),
    OneLess: ({}, r"expected ids int64 \(16,\), got int64 \(15,\)"),
    Distinct: ({}, r"expected an answer, got ValueError.*not full"),
    Fractions: ({}, r"expected ids int64 \(16,\), got float64 \(16,\)"),
    Shuffles: ({}, r"only read, got arrays that were written to \(draw with \d+ ids"),
    Squares: ({}, r"only read, got arrays that were written to \(update_priorities with \d+ ids"),
    Flat: ({}, r"an answer, got TypeError.*\(update_priorities with \d+ ids, Sequences\(4, stride=2\)"),
    GlobalNumpy: ({}, "global random states left alone"),
    GlobalPython: ({}, "global random states left alone"),
    Seeded: ({}, "global random states left alone"),
    Peeks: ({}, "equal batches whatever the global random states"),
    Entropy: ({}, "equal batches from equal seeds"),
    Unseeded: ({}, "other batches from other seeds, got equal ones"),
    Newest: ({}, "other batches from other seeds, got equal ones.*deterministic=True"),
    Even: ({"deterministic": True}, "equal batches from other seeds, of a deterministic sampler"),
    Common: ({}, "equal batches whatever other readers do"),
    Oldest: ({}, r"new transitions to be drawn, got none of \[\d+\]"),
    Frozen: ({}, r"new transitions to be drawn, got none of \["),
    LanesFirst: ({"probability": ones}, r"in proportion to `probability`, got id \d+ \d+ times instead of \d+"),
    Own: ({**OF_OWN, "probability": ones}, "in proportion to `probability`"),
    Silent: (OF_OWN, r"weights \(beta=1\) inverse to `probability`.*Return \(ids, probability\)"),
    LastWeight: (OF_OWN, r"weights \(beta=1\) inverse to `probability`"),
    Inverse: (OF_OWN, r"weights \(beta=1\) inverse to `probability`"),
    Nothing: (OF_OWN, r"probabilities \(\d+,\) above 0"),
}


@pytest.mark.parametrize("twin", BROKEN, ids=lambda twin: twin.__name__)
def test_a_broken_sampler_is_refused_for_what_is_broken(twin):
    options, rule = BROKEN[twin]
    with pytest.raises(AssertionError, match=rule) as raised:
        check_sampler(twin, **options)
    assert str(raised.value).startswith("check_sampler: ")


@pytest.mark.parametrize(
    ("spoil", "rule"),
    [
        (lambda ids: ids + 1, r"expected \d+ anchors, got \d+ ids, not among them \[\d+"),
        (lambda ids: ids[:-1], r"expected 16 anchors, got 15 ids"),
    ],
)
def test_our_own_samplers_are_looked_at_too(monkeypatch, spoil, rule):
    sample = relive.ReplayBuffer.sample

    def spoiled(self, n, **options):
        batch = sample(self, n, **options)
        batch.ids = spoil(batch.ids)
        return batch

    monkeypatch.setattr(relive.ReplayBuffer, "sample", spoiled)
    with pytest.raises(AssertionError, match=rule):
        check_sampler(relive.Uniform)


def test_the_message_says_where():
    with pytest.raises(AssertionError, match=r"\(7 of \d+ anchors, uneven lanes"):
        check_sampler(Beyond)
    with pytest.raises(AssertionError, match=r"64 of \d+ anchors|larger than the buffer"):
        check_sampler(lambda: Patient(limit=32))


class Patient(Even):
    """Fails on batches that are larger than it expected."""

    def __init__(self, limit):
        self.limit = limit

    def draw(self, ids, n, rng):
        return super().draw(ids, min(n, self.limit), rng)


def test_one_sampler_for_all_trials_is_noticed():
    """State that earlier trials left behind makes equal seeds unequal."""
    only = Own()
    with pytest.raises(AssertionError, match=r"equal batches from equal seeds.*shares nothing"):
        check_sampler(lambda: only)


def test_draws_that_the_user_expects_otherwise():
    with pytest.raises(AssertionError, match=r"in proportion to `probability`"):
        check_sampler(relive.Prioritized, abs_td=by_five, probability=ones)
    with pytest.raises(AssertionError, match=r"got id \d+ \d+ times instead of 0"):
        check_sampler(relive.Uniform, probability=lambda ids: (ids % 2).astype(float))


@pytest.mark.parametrize("make", [Even(), relive.Uniform(), None, Even, lambda: 3, lambda: Even])
def test_something_that_makes_no_sampler(make):
    if make is Even:
        make = lambda: object()  # noqa: E731 - no draw
    with pytest.raises(relive.ConfigError, match=r"^(make|sampler): expected .*, got"):
        check_sampler(make)


@pytest.mark.parametrize("answer", [[1.0], -1.0, np.nan])
def test_probabilities_that_are_none(answer):
    with pytest.raises(relive.ConfigError, match=r"^probability: expected \d+ finite numbers"):
        check_sampler(Even, probability=lambda ids: answer if isinstance(answer, list) else np.full(len(ids), answer))
