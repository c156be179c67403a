"""Random programs against the specification: samplers, sequences, hindsight, and several readers of one buffer.

One program drives a buffer, its readers (some made late), a twin of all of them, and the model. After every step the
anchors of every reader are compared, and each anchor is read. A batch is checked row by row: what may be drawn, what
it reads, with which weight. The twin has equal seeds, is never asked for what is refused, and is read only by `sample`:
its batches must be the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import relive
from model.compare import assert_rows
from model.driving import LANES, MASKS, Step, batched, block, each_lane, newest, remember, steps, transition
from model.hindsight import goal_steps, relabelled
from model.kinds import GOAL, KINDS
from model.reference import Model, Row, View
from model.samplers import Epochs, Priorities, Reading
from model.sequences import SequenceView, sequence_rows

STEPS = steps(14)
RAW = st.sampled_from([0.0, 1e-3, 0.5, 1.0, 2.0, 7.25, 100.0])
BAD = st.sampled_from([np.nan, np.inf, -np.inf, -1.0, -1e-30])


def reached(achieved: Any, desired: Any) -> tuple[Any, Any]:
    """A reward of goals, and an end where the goal is reached, all exact in float32."""
    return achieved[:, 0] - 2 * desired[:, 1], (achieved == desired).all(axis=1)


def reward_only(achieved: Any, desired: Any) -> Any:
    """The same reward; terminations stay as recorded."""
    return achieved[:, 0] - 2 * desired[:, 1]


class Own:
    """A sampler from outside: odd anchors twice as often as even ones, and it says so."""

    def draw(self, ids: Any, n: int, rng: np.random.Generator) -> tuple[Any, Any]:
        """Draws with replacement."""
        mass = 1.0 + ids % 2
        places = rng.choice(len(ids), size=n, p=mass / mass.sum())
        return ids[places], mass[places] / mass.sum()


@dataclass
class Reader:
    """A buffer or reader, its twin, and what they must do."""

    real: Any
    twin: Any
    reading: Reading
    sampler: Any
    hindsight: relive.Hindsight | None


TRANSITIONS = st.builds(
    View, n=st.sampled_from([1, 3]), stack=st.sampled_from([1, 3]), padding=st.sampled_from(["repeat", "zeros"])
)
WINDOWS = st.integers(1, 5).flatmap(
    lambda length: st.integers(0, length - 1).flatmap(
        lambda burn_in: st.builds(
            SequenceView,
            length=st.just(length),
            burn_in=st.just(burn_in),
            stride=st.integers(1, length - burn_in),
            stack=st.sampled_from([1, 1, 3]),
            padding=st.sampled_from(["repeat", "zeros"]),
            state=st.sampled_from([(), ("carry",)]),
        )
    )
)
EPISODES = st.builds(SequenceView, length=st.just("episode"), stack=st.sampled_from([1, 3]))
VIEWS = st.one_of(TRANSITIONS, WINDOWS, WINDOWS, EPISODES)
LIMITS = {"newest": st.sampled_from([0, 0, 1, 3]), "max_uses": st.sampled_from([None, None, 1, 2, 5])}
NORMALIZE = st.sampled_from(["batch", "buffer"])
PRIORITIZED = st.builds(
    relive.Prioritized,
    alpha=st.sampled_from([0.0, 0.5, 1.0]),
    eps=st.sampled_from([0.0, 1e-6, 0.5]),
    normalize=NORMALIZE,
    eta=st.sampled_from([0.0, 0.9]),
    **LIMITS,
)
RANKED = st.builds(relive.samplers.RankBased, normalize=NORMALIZE, **LIMITS)
SAMPLERS = st.one_of(
    PRIORITIZED,
    PRIORITIZED,
    RANKED,
    st.builds(relive.Uniform, **LIMITS),
    st.builds(relive.Shuffled, **LIMITS),
    st.builds(relive.samplers.Recent, eta=st.just(0.5), period=st.just(3), min_size=st.integers(1, 4), **LIMITS),
    st.builds(Own),
)
HINDSIGHT = st.builds(
    relive.Hindsight,
    st.sampled_from(["future", "final", "episode"]),
    k=st.sampled_from([0, 1, 4]),
    reward_fn=st.sampled_from([reached, reward_only]),
)


def real_view(view: View | SequenceView, hindsight: relive.Hindsight | None) -> Any:
    """The library's words for a view of the model."""
    if isinstance(view, View):
        return relive.Transitions(view.n, view.gamma, view.stack, view.padding, hindsight)
    return relive.Sequences(view.length, view.burn_in, view.stride, view.stack, view.gamma, view.padding, view.state)


class SamplerMachine(RuleBasedStateMachine):
    """A buffer, its readers, their twins and the model driven by the same calls."""

    @initialize(
        kind=st.sampled_from(["vector", "vector", "frames", "dict", "stacked", "goal"]),
        lanes=st.sampled_from([1, 1, 2, 3]),
        depth=st.sampled_from([2, 5, 12]),
        view=VIEWS,
        sampler=SAMPLERS,
        hindsight=HINDSIGHT,
    )
    def build(self, kind: str, lanes: int, depth: int, view: Any, sampler: Any, hindsight: Any) -> None:
        """Make the buffer and its twin."""
        self.kind = {**KINDS, "goal": GOAL}[kind]
        self.lanes = lanes
        self.model = Model(depth * lanes, lanes)
        view, hindsight = self.fitting(view, hindsight)
        options = {"view": real_view(view, hindsight), "sampler": sampler, "seed": 5}
        self.buffers = [relive.ReplayBuffer(depth * lanes, self.kind.schema(lanes), **options) for _ in range(2)]
        self.readers: list[Reader] = []
        self.attend(*self.buffers, view, sampler, hindsight)

    def fitting(self, view: Any, hindsight: Any) -> tuple[Any, Any]:
        """The view without what this kind of observation does not have; goals only where there are some."""
        changes: Row = {}
        if self.kind.stacked > 1:
            changes["stack"] = 1
        if isinstance(view, SequenceView) and "carry" not in self.kind.extras:
            changes["state"] = ()
        has_goals = self.kind is GOAL and isinstance(view, View)
        return type(view)(**{**vars(view), **changes}), hindsight if has_goals else None

    def attend(self, real: Any, twin: Any, view: Any, sampler: Any, hindsight: Any) -> None:
        """Compare this reader from now on."""
        reading = Reading(self.model, view, getattr(sampler, "newest", 0), getattr(sampler, "max_uses", None))
        if isinstance(sampler, relive.Prioritized):
            reading.priorities = Priorities(sampler.alpha, sampler.eps, sampler.eta)
        if isinstance(sampler, relive.Shuffled):
            reading.epochs = Epochs()
        reading.changed()
        self.readers.append(Reader(real, twin, reading, sampler, hindsight))

    @precondition(lambda self: len(self.readers) < 3)
    @rule(view=VIEWS, sampler=SAMPLERS, hindsight=HINDSIGHT)
    def make_reader(self, view: Any, sampler: Any, hindsight: Any) -> None:
        """Another way to read the same bytes, from now on."""
        view, hindsight = self.fitting(view, hindsight)
        options = {"view": real_view(view, hindsight), "sampler": sampler, "seed": len(self.readers)}
        if view.stack > self.readers[0].reading.view.stack:  # frames before the oldest transition are not kept
            with pytest.raises(relive.ConfigError):
                self.buffers[0].reader(**options)
            return
        made = [buffer.reader(**options) for buffer in self.buffers]
        self.attend(*made, view, sampler, hindsight)

    # What is pushed.

    def push(self, verb: str, fields: Row, rows: list[Row | None], lane: int | None, raw: list[float] | None) -> None:
        """The same call to buffer, twin and model; rows: one a lane, or all of one lane; None: masked.

        With `raw`, the buffer's own sampler is told |delta| where it keeps any, and must refuse it otherwise.
        """
        lanes = range(self.lanes) if lane is None else [lane] * len(rows)
        own = self.readers[0]
        if raw is not None:
            told = {**fields, "priority": np.array(raw[: len(rows)]) if len(rows) > 1 or verb == "extend" else raw[0]}
            if isinstance(own.sampler, relive.Prioritized | relive.samplers.RankBased) and isinstance(
                own.reading.view, View
            ):
                fields = told
            else:
                raw = None
                with pytest.raises(relive.ConfigError):
                    getattr(self.buffers[0], verb)(**told)
        expected = []
        for place, row in enumerate(rows):
            identity = -1 if row is None else remember(self.kind, self.model, row, lanes[place])
            expected.append(identity)
            if raw is not None and row is not None and own.reading.priorities:
                own.reading.priorities.give(identity, raw[place])
        for buffer in self.buffers:
            assert np.atleast_1d(getattr(buffer, verb)(**fields)).tolist() == expected
        for reader in self.readers:
            reader.reading.changed()

    def of_lane(self, lane: int) -> Row:
        """The option that names the lane, where there are several."""
        return {"lane": lane} if self.lanes > 1 else {}

    @rule(step=STEPS, lane=LANES, raw=st.none() | RAW)
    def push_one(self, step: Step, lane: int, raw: float | None) -> None:
        """One transition of one lane."""
        lane %= self.lanes
        row = transition(self.kind, step, newest(self.model, lane))
        self.push("push", {**row, **self.of_lane(lane)}, [row], lane, None if raw is None else [raw])

    @rule(
        coming=st.lists(STEPS, min_size=3, max_size=3),
        mask=st.none() | MASKS,
        raw=st.none() | st.lists(RAW, min_size=3, max_size=3),
    )
    def push_step(self, coming: list[Step], mask: list[bool] | None, raw: list[float] | None) -> None:
        """One step of every lane, or of some."""
        if self.lanes == 1:
            return
        rows, fields = each_lane(self.kind, self.model, coming)
        kept = mask or [True] * 3
        if mask:
            fields["mask"] = np.array(mask[: self.lanes])
        self.push("push", fields, [row if kept[lane] else None for lane, row in enumerate(rows)], None, raw)

    @rule(
        coming=st.lists(STEPS, min_size=1, max_size=9),
        lane=LANES,
        raw=st.none() | st.lists(RAW, min_size=9, max_size=9),
    )
    def extend(self, coming: list[Step], lane: int, raw: list[float] | None) -> None:
        """A block of one lane, also one longer than the lane."""
        lane %= self.lanes
        rows = block(self.kind, self.model, coming, lane)
        self.push("extend", {**batched(rows), **self.of_lane(lane)}, rows, lane, raw)

    @rule(chance=st.integers(0, 3))
    def clear(self, chance: int) -> None:
        """Forget everything but the ids. Seldom: a buffer that is always empty shows little."""
        if chance:
            return
        self.model.clear()
        for buffer in self.buffers:
            buffer.clear()
        for reader in self.readers:
            reader.reading.changed()

    # Priorities.

    @rule(which=st.integers(0, 2), data=st.data(), steps_too=st.booleans())
    def update(self, which: int, data: st.DataObject, steps_too: bool) -> None:
        """|delta| for some ids: anchors, other live ones, overwritten ones, some of them twice."""
        reader = self.readers[which % len(self.readers)]
        if not self.model.ids:
            return
        asked = st.sampled_from(self.model.ids) | st.integers(0, self.model.ids[-1])
        ids = data.draw(st.lists(asked, min_size=1, max_size=6))
        view = reader.reading.view
        shape: tuple[int, ...] = (len(ids),)
        if steps_too and isinstance(view, SequenceView) and view.length != "episode":
            shape = (len(ids), view.length)
        many = int(np.prod(shape))
        errors = np.array(data.draw(st.lists(RAW, min_size=many, max_size=many)), np.float32).reshape(shape)
        if not isinstance(reader.sampler, relive.Prioritized | relive.samplers.RankBased):
            with pytest.raises(relive.ConfigError):
                reader.real.update_priorities(np.array(ids), errors)
            return
        expected = reader.reading.update(ids, errors)
        for handle in (reader.real, reader.twin):
            assert handle.update_priorities(np.array(ids), errors) == expected

    @rule(which=st.integers(0, 2), bad=BAD, place=st.integers(0, 5))
    def refuse_update(self, which: int, bad: float, place: int) -> None:
        """One that is not a number among others: none is written."""
        reader = self.readers[which % len(self.readers)]
        ids = self.model.ids
        if not ids or not isinstance(reader.sampler, relive.Prioritized | relive.samplers.RankBased):
            return
        errors = np.full(len(ids), 50.0)
        errors[place % len(ids)] = bad
        with pytest.raises(relive.SchemaError):
            reader.real.update_priorities(np.array(ids), errors)

    @rule(bad=BAD, step=STEPS)
    def refuse_push(self, bad: float, step: Step) -> None:
        """A transition with a priority that is none: not pushed, whatever the sampler."""
        row = transition(self.kind, step, newest(self.model, 0))
        with pytest.raises(relive.ReplayError):
            self.buffers[0].push(**row, priority=bad, **self.of_lane(0))

    # What is read.

    @rule(which=st.integers(0, 2), n=st.integers(1, 12), beta=st.sampled_from([None, 0.0, 0.5, 1.0]))
    def sample(self, which: int, n: int, beta: float | None) -> None:
        """A batch, or the right refusal."""
        reader = self.readers[which % len(self.readers)]
        reading = reader.reading
        if n < reading.newest:
            with pytest.raises(relive.ConfigError):
                reader.real.sample(n, beta=beta)
            return
        if not reading.anchors or not reading.enough(n):
            with pytest.raises(relive.NotEnoughDataError):
                reader.real.sample(n, beta=beta)
            return
        batch, same = (handle.sample(n, beta=beta) for handle in (reader.real, reader.twin))
        ids = batch.ids.tolist()
        assert same.ids.tolist() == ids, "a refusal, or a look at the anchors, changed what is drawn"
        if beta is not None:
            self.check_weights(reader, batch.weight, ids, beta)
            assert same.weight.tobytes() == batch.weight.tobytes()
        reading.drawn(ids)
        self.check_rows(reader, batch)

    def check_weights(self, reader: Reader, weight: Any, ids: list[int], beta: float) -> None:
        """Importance weights, where it is known what they must be."""
        assert weight.dtype == np.float32
        if reader.reading.priorities:
            expected = reader.reading.weights(ids, beta, reader.sampler.normalize)
        elif isinstance(reader.sampler, Own):
            mass = (1.0 + np.array(ids) % 2) ** -beta
            expected = (mass / mass.max()).tolist()
        elif isinstance(reader.sampler, relive.samplers.RankBased):
            assert ((weight > 0) & (weight <= 1)).all()
            expected = weight.tolist()
        else:
            expected = [1.0] * len(ids)
        np.testing.assert_allclose(weight, np.array(expected), rtol=1e-5)

    def check_rows(self, reader: Reader, batch: Any) -> None:
        """Every row is what the model says, relabelled or not."""
        ids, view = batch.ids.tolist(), reader.reading.view
        if isinstance(view, SequenceView):
            assert_rows(batch, sequence_rows(self.model, ids, view))
        elif reader.hindsight is None:
            assert_rows(batch, [self.model.row(identity, view) for identity in ids])
        else:
            rows = []
            for identity, goal in zip(ids, batch.goal_ids.tolist(), strict=True):
                if goal == -1:
                    rows.append({**self.model.row(identity, view), "goal_ids": np.int64(-1)})
                    continue
                assert goal in goal_steps(self.model, identity, reader.hindsight.strategy)
                rows.append(relabelled(self.model, identity, view, goal, reader.hindsight.reward_fn))
            assert_rows(batch, rows)

    @invariant()
    def reads_like_the_model(self) -> None:
        """The anchors of every reader, and what each of them reads."""
        for reader in getattr(self, "readers", []):
            expected, view = reader.reading.anchors, reader.reading.view
            assert reader.real.anchors.dtype == np.int64
            assert reader.real.anchors.tolist() == expected
            if isinstance(reader.sampler, relive.samplers.RankBased):  # places in a heap depend on when it is looked at
                assert reader.twin.anchors.tolist() == expected
            if not expected:
                continue
            batch = reader.real.get(np.array(expected))
            if isinstance(view, SequenceView):
                assert_rows(batch, sequence_rows(self.model, expected, view))
            else:
                assert_rows(batch, [self.model.row(identity, view) for identity in expected])


class QuickMachine(SamplerMachine):
    """For every commit."""


class SlowMachine(SamplerMachine):
    """For the night: other examples each time."""


TestSamplerMachine = QuickMachine.TestCase
TestSamplerMachine.settings = settings(max_examples=150, stateful_step_count=30)

TestSamplerMachineSlow = pytest.mark.slow(SlowMachine.TestCase)
TestSamplerMachineSlow.settings = settings(max_examples=3_000, stateful_step_count=60, derandomize=False)
