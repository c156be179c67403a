"""Random programs against the specification: samplers, sequences, hindsight, and several readers of one buffer.

One program drives a buffer, its readers (some made late), a twin of all of them, and the model. After every step the
anchors of every reader are compared, and each anchor is read. A batch is checked row by row: what may be drawn, what
it reads, with which weight. The twin has equal seeds, is never asked for what is refused, and is read only by `sample`:
its batches must be the same.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, replace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import relive
from model.compare import assert_rows
from model.driving import batched, block, each_lane, longer, remember
from model.hindsight import goal_steps, relabelled
from model.kinds import GOAL, KINDS
from model.options import HINDSIGHT, OTHERS, PRIORITIZED, SEQUENCES, TRANSITIONS, Own, keeps_priorities, real_view
from model.reference import Model, Row, View
from model.samplers import Epochs, Priorities, Reading
from model.sequences import SequenceView, sequence_rows
from relive.samplers import BuiltIn

RAW = [0.0, 1e-3, 0.5, 1.0, 2.0, 7.25, 100.0]
BAD = [np.nan, np.inf, -np.inf, -1.0, -1e-30]
SEEDS = st.integers(0, 2**32 - 1)  # of what is too much to be drawn one by one


@dataclass
class Reader:
    """A buffer or reader, its twin, and what they must do."""

    real: Any
    twin: Any
    reading: Reading
    sampler: Any
    hindsight: relive.Hindsight | None


def some_errors(rng: np.random.Generator, count: int, bad: float) -> list[float]:
    """|delta|, each with a chance to be none."""
    return np.where(rng.random(count) < bad, rng.choice(BAD, count), rng.choice(RAW, count)).tolist()


class SamplerMachine(RuleBasedStateMachine):
    """A buffer, its readers, their twins and the model driven by the same calls."""

    views: Any = st.one_of(TRANSITIONS, SEQUENCES)
    samplers: Any = st.one_of(PRIORITIZED, OTHERS)

    @initialize(
        kind=st.sampled_from(["vector", "frames", "dict", "stacked", "goal"]),
        lanes=st.integers(1, 3),
        depth=st.sampled_from([12, 5, 2]),
        data=st.data(),
        seed=SEEDS,
    )
    def build(self, kind: str, lanes: int, depth: int, data: st.DataObject, seed: int) -> None:
        """Make the buffer and its twin, not empty."""
        self.kind = {**KINDS, "goal": GOAL}[kind]
        self.lanes = lanes
        self.model = Model(depth * lanes, lanes)
        view, sampler, options, hindsight = self.draw_options(data, seed=5)
        self.buffers = [relive.ReplayBuffer(depth * lanes, self.kind.schema(lanes), **options) for _ in range(2)]
        self.readers: list[Reader] = []
        self.root = tempfile.mkdtemp()
        self.saved_to = f"{self.root}/snapshot"
        self.attend(*self.buffers, view, sampler, hindsight)
        for lane in range(lanes):
            self.extend(seed + lane, with_priority=False)

    def draw_options(self, data: st.DataObject, seed: int) -> tuple[Any, Any, Row, Any]:
        """A view and a sampler, in the words of the model and of the library."""
        view, hindsight = self.fitting(data.draw(self.views), data.draw(HINDSIGHT))
        sampler = data.draw(self.samplers)
        return view, sampler, {"view": real_view(view, hindsight), "sampler": sampler, "seed": seed}, hindsight

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
    @rule(data=st.data())
    def make_reader(self, data: st.DataObject) -> None:
        """Another way to read the same bytes, from now on."""
        view, sampler, options, hindsight = self.draw_options(data, seed=len(self.readers))
        if view.stack > self.readers[0].reading.view.stack:  # frames before the oldest transition are not kept
            with pytest.raises(relive.ConfigError):
                self.buffers[0].reader(**options)
            return
        made = [buffer.reader(**options) for buffer in self.buffers]
        self.attend(*made, view, sampler, hindsight)

    # What is pushed.

    def push(self, verb: str, fields: Row, rows: list[Row | None], lane: int | None, raw: list[float] | None) -> None:
        """The same call to buffer, twin and model; rows: one a lane, or all of one lane; None: masked.

        With `raw`, the buffer's own sampler is told |delta| where it keeps any, and must refuse it otherwise, and also
        where one of them is no number; then the transitions are pushed without.
        """
        lanes = range(self.lanes) if lane is None else [lane] * len(rows)
        own = self.readers[0]
        if raw is not None:
            told = {**fields, "priority": np.array(raw[: len(rows)]) if len(rows) > 1 or verb == "extend" else raw[0]}
            refusal: type[Exception] | None = None
            if not (np.isfinite(raw[: len(rows)]).all() and min(raw[: len(rows)]) >= 0):
                refusal = relive.ReplayError
            elif not keeps_priorities(own.sampler) or isinstance(own.reading.view, SequenceView):
                refusal = relive.ConfigError
            if refusal:
                raw = None
                with pytest.raises(refusal):
                    getattr(self.buffers[0], verb)(**told)
            else:
                fields = told
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

    @rule(seed=SEEDS, with_priority=st.booleans())
    def push_one(self, seed: int, with_priority: bool) -> None:
        """One transition of one lane."""
        rng = np.random.default_rng(seed)
        lane = int(rng.integers(self.lanes))
        rows = block(self.kind, self.model, longer(rng, 1), lane)
        raw = some_errors(rng, 1, bad=0.2) if with_priority else None
        self.push("push", {**rows[0], **self.of_lane(lane)}, rows, lane, raw)

    @precondition(lambda self: self.lanes > 1)
    @rule(seed=SEEDS, with_priority=st.booleans())
    def push_step(self, seed: int, with_priority: bool) -> None:
        """One step of every lane, or of some."""
        rng = np.random.default_rng(seed)
        rows, fields = each_lane(self.kind, self.model, longer(rng, self.lanes))
        mask = rng.random(self.lanes) < rng.choice([0.5, 1.0])
        raw = some_errors(rng, self.lanes, bad=0.1) if with_priority else None
        kept = [row if mask[lane] else None for lane, row in enumerate(rows)]
        self.push("push", {**fields, "mask": mask}, kept, None, raw)

    @rule(seed=SEEDS, with_priority=st.booleans())
    def extend(self, seed: int, with_priority: bool) -> None:
        """A block of one lane, also one longer than the lane."""
        rng = np.random.default_rng(seed)
        lane = int(rng.integers(self.lanes))
        rows = block(self.kind, self.model, longer(rng, int(rng.integers(1, 16))), lane)
        raw = some_errors(rng, len(rows), bad=0.02) if with_priority else None
        self.push("extend", {**batched(rows), **self.of_lane(lane)}, rows, lane, raw)

    @rule(seed=SEEDS)
    def end_episodes(self, seed: int) -> None:
        """Some environments are reset in the midst of an episode."""
        mask = np.random.default_rng(seed).random(self.lanes) < 0.5
        expected = self.model.end_episodes(mask.tolist())
        for buffer in self.buffers:
            assert buffer.end_episodes(mask) == expected
        for reader in self.readers:
            reader.reading.changed()

    @rule(seed=SEEDS)
    def save_and_load(self, seed: int) -> None:
        """One of the two is saved and goes on as what is loaded; nobody could tell. Further readers are not saved."""
        own, buffer = self.readers[0], self.buffers[0]
        if seed % 5 == 0:
            self.saved_to += "'"  # a directory it was not saved to before
        buffer.save(self.saved_to, compression=[None, None, "zstd"][seed % 3])
        custom = None if isinstance(own.sampler, BuiltIn) else own.sampler
        loaded = relive.load(self.saved_to, view=buffer.view, sampler=custom)
        assert repr(loaded) == repr(buffer)
        self.buffers[0] = loaded
        self.readers = [replace(own, real=loaded)]

    def teardown(self) -> None:
        """Remove what was saved."""
        if hasattr(self, "root"):
            shutil.rmtree(self.root)

    @rule(seldom=st.sampled_from([False] * 5 + [True]))
    def clear(self, seldom: bool) -> None:
        """Forget everything but the ids."""
        if not seldom:
            return
        self.model.clear()
        for buffer in self.buffers:
            buffer.clear()
        for reader in self.readers:
            reader.reading.changed()

    # Priorities.

    @rule(seed=SEEDS, with_bad=st.sampled_from([False] * 5 + [True]))
    def update(self, seed: int, with_bad: bool) -> None:
        """|delta| for some ids of every reader: anchors, other live ones, overwritten ones, some of them twice.

        With one that is not a number among them, none is written.
        """
        rng = np.random.default_rng(seed)
        for reader in self.readers:
            highest = max(self.model.ids, default=0)
            candidates = [*reader.reading.anchors * 2, *self.model.ids, *rng.integers(0, highest + 1, 3).tolist()]
            ids = rng.choice(candidates, int(rng.integers(1, 9))).tolist()
            steps = getattr(reader.reading.view, "length", 0)
            shape = (len(ids), *([steps] if isinstance(steps, int) and steps and rng.random() < 0.5 else []))
            bad = float(rng.choice(BAD)) if with_bad and len(shape) == 1 else None
            self.tell(reader, ids, rng.choice(RAW, shape).astype(rng.choice(["float32", "float64"])), bad)

    def tell(self, reader: Reader, ids: list[int], errors: Any, bad: float | None) -> None:
        """The same priorities to a reader, its twin and the model, or the right refusal."""
        if not keeps_priorities(reader.sampler):
            with pytest.raises(relive.ConfigError):
                reader.real.update_priorities(np.array(ids), errors)
            return
        if bad is not None:
            with pytest.raises(relive.SchemaError):
                reader.real.update_priorities(np.array(ids), [*errors[:-1], bad])
            return
        expected = reader.reading.update(ids, errors)
        for handle in (reader.real, reader.twin):
            assert handle.update_priorities(np.array(ids), errors) == expected

    # What is read.

    @rule(seed=SEEDS, n=st.integers(1, 12), beta=st.sampled_from([1.0, 0.5, 0.0, None]), learn=st.booleans())
    def sample(self, seed: int, n: int, beta: float | None, learn: bool) -> None:
        """A batch of every reader, or the right refusal. A learner then has |delta| of its rows, or of each step."""
        rng = np.random.default_rng(seed)
        for reader in self.readers:
            batch = self.sample_one(reader, n, beta)
            if batch and learn and keeps_priorities(reader.sampler):
                is_sequence = isinstance(reader.reading.view, SequenceView)
                shape = batch.reward.shape if is_sequence and rng.random() < 0.7 else (n,)
                self.tell(reader, batch.ids.tolist(), rng.choice(RAW, shape), None)
                self.sample_one(reader, n, beta)

    def sample_one(self, reader: Reader, n: int, beta: float | None) -> Any:
        """The batch, or None where it was refused."""
        reading = reader.reading
        refusal: type[Exception] | None = None
        if not reading.anchors or not reading.enough(n):
            refusal = relive.NotEnoughDataError
        if n < reading.newest:
            refusal = relive.ConfigError
        if refusal:
            with pytest.raises(refusal):
                reader.real.sample(n, beta=beta)
            return None
        batch, same = (handle.sample(n, beta=beta) for handle in (reader.real, reader.twin))
        ids = batch.ids.tolist()
        assert same.ids.tolist() == ids, "a refusal, or a look at the anchors, changed what is drawn"
        if beta is not None:
            self.check_weights(reader, batch.weight, ids, beta)
            assert same.weight.tobytes() == batch.weight.tobytes()
        reading.drawn(ids)
        self.check_rows(reader, batch)
        return batch

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

    @rule(seed=SEEDS)
    def read(self, seed: int) -> None:
        """Anchors by their ids, in any order, some of them twice; none is relabelled."""
        rng = np.random.default_rng(seed)
        for reader in self.readers:
            view = reader.reading.view
            ids = rng.permutation(np.resize(reader.reading.anchors, 12)).tolist() if reader.reading.anchors else []
            if isinstance(view, SequenceView):
                rows = sequence_rows(self.model, ids, view)
            else:
                rows = [self.model.row(identity, view) for identity in ids]
            assert_rows(reader.real.get(np.array(ids, np.int64)), rows)

    @invariant()
    def has_the_anchors_of_the_model(self) -> None:
        """What can be drawn, of every reader."""
        for reader in getattr(self, "readers", []):
            expected = reader.reading.anchors
            assert reader.real.anchors.dtype == np.int64
            assert reader.real.anchors.tolist() == expected
            if isinstance(reader.sampler, relive.samplers.RankBased):  # places in a heap depend on when it is looked at
                assert reader.twin.anchors.tolist() == expected


class PrioritizedMachine(SamplerMachine):
    """Priorities of transitions."""

    views, samplers = TRANSITIONS, PRIORITIZED


class SequencesMachine(SamplerMachine):
    """Priorities of sequences."""

    views, samplers = SEQUENCES, PRIORITIZED


class OthersMachine(SamplerMachine):
    """All other samplers, and all views."""

    views, samplers = st.sampled_from([TRANSITIONS, SEQUENCES]).flatmap(lambda strategy: strategy), OTHERS


QUICK = settings(max_examples=60, stateful_step_count=30)
SLOW = settings(max_examples=1_000, stateful_step_count=60, derandomize=False)  # for the night: others each time


def case(machine: type[SamplerMachine], how: settings) -> Any:
    """The machine as a test of its own."""
    test = type(machine.__name__, (machine,), {}).TestCase
    test.settings = how
    return test


TestPrioritized, TestSequences, TestOthers = (
    case(machine, QUICK) for machine in (PrioritizedMachine, SequencesMachine, OthersMachine)
)
TestPrioritizedSlow, TestSequencesSlow, TestOthersSlow = (
    pytest.mark.slow(case(machine, SLOW)) for machine in (PrioritizedMachine, SequencesMachine, OthersMachine)
)
