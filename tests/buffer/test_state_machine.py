"""Random programs against the specification: whatever is pushed, refused or cleared, the buffer reads like the model.

One program drives several buffers, one a view, and one model. After every step all of them are compared: length, ids,
and every live transition byte for byte. Capacities are a few transitions a lane, so nearly every step wraps and evicts.
"""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import relive
from model.compare import assert_rows, assert_same
from model.driving import LANES, MASKS, STEPS, Step, batched, block, each_lane, newest, remember, transition
from model.kinds import KINDS, Kind
from model.reference import Model, Row, View, leaves, map_tree

STACKS = [(1, "repeat"), (4, "repeat"), (4, "zeros")]
VIEWS = [View(n, 0.5, stack, padding) for n in (1, 3, 5) for stack, padding in STACKS]


class BufferMachine(RuleBasedStateMachine):
    """Buffers and model driven by the same calls."""

    @initialize(
        kind=st.sampled_from(sorted(KINDS)),
        lanes=st.sampled_from([1, 2, 3]),
        depth=st.sampled_from([1, 2, 3, 5]),
        views=st.lists(st.sampled_from(VIEWS), min_size=1, max_size=3, unique=True),
    )
    def build(self, kind: str, lanes: int, depth: int, views: list[View]) -> None:
        """Make the buffers: one schema, one capacity, several views."""
        self.kind: Kind = KINDS[kind]
        self.lanes = lanes
        if self.kind.stacked > 1:
            views = [View(view.n, view.gamma) for view in views]  # stacks arrive whole
        self.model = Model(depth * lanes, lanes)
        self.readers = [
            (
                relive.ReplayBuffer(
                    depth * lanes,
                    self.kind.schema(lanes),
                    view=relive.Transitions(view.n, view.gamma, view.stack, view.padding),
                    seed=place,
                ),
                view,
            )
            for place, view in enumerate(views)
        ]

    # What is pushed.

    @rule(step=STEPS, lane=LANES)
    def push_one(self, step: Step, lane: int) -> None:
        """One transition of one lane."""
        lane %= self.lanes
        row = transition(self.kind, step, newest(self.model, lane))
        expected = remember(self.kind, self.model, row, lane)
        for buffer, _ in self.readers:
            identity = buffer.push(**row, **({"lane": lane} if self.lanes > 1 else {}))
            assert type(identity) is int
            assert identity == expected

    @rule(steps=st.lists(STEPS, min_size=3, max_size=3))
    def push_all(self, steps: list[Step]) -> None:
        """One step of every lane."""
        rows, fields = each_lane(self.kind, self.model, steps)
        expected = [remember(self.kind, self.model, row, lane) for lane, row in enumerate(rows)]
        for buffer, _ in self.readers:
            ids = buffer.push(**fields)
            assert ids.dtype == np.int64
            assert ids.tolist() == expected

    @rule(steps=st.lists(STEPS, min_size=3, max_size=3), mask=MASKS)
    def push_masked(self, steps: list[Step], mask: list[bool]) -> None:
        """One step of some lanes."""
        rows, fields = each_lane(self.kind, self.model, steps)
        kept = mask[: self.lanes]
        expected = [remember(self.kind, self.model, row, lane) if kept[lane] else -1 for lane, row in enumerate(rows)]
        for buffer, _ in self.readers:
            assert buffer.push(**fields, mask=np.array(kept)).tolist() == expected

    @rule(steps=st.lists(STEPS, min_size=1, max_size=7), lane=LANES)
    def extend(self, steps: list[Step], lane: int) -> None:
        """A block of one lane, also one longer than the lane."""
        lane %= self.lanes
        rows = block(self.kind, self.model, steps, lane)
        expected = [remember(self.kind, self.model, row, lane) for row in rows]
        for buffer, _ in self.readers:
            ids = buffer.extend(**batched(rows), **({"lane": lane} if self.lanes > 1 else {}))
            assert ids.dtype == np.int64
            assert ids.tolist() == expected

    @rule(mask=MASKS)
    def end_episodes(self, mask: list[bool]) -> None:
        """Some environments are reset in the midst of an episode; what is pushed next may begin where it ended."""
        kept = mask[: self.lanes]
        expected = self.model.end_episodes(kept)
        for buffer, _ in self.readers:
            assert buffer.end_episodes(None if all(kept) else np.array(kept)) == expected

    @rule()
    def clear(self) -> None:
        """Forget everything but the ids."""
        self.model.clear()
        for buffer, _ in self.readers:
            buffer.clear()

    # What is refused; that nothing changed is for the invariant to see.

    @rule(
        steps=st.lists(STEPS, min_size=3, max_size=3), spoil=st.sampled_from(["action", "shape", "unknown", "priority"])
    )
    def refuse_last_lane(self, steps: list[Step], spoil: str) -> None:
        """A step of every lane of which only the last is bad: no lane is pushed."""
        rows, fields = each_lane(self.kind, self.model, steps)
        self.refuse(
            "push", spoiled(rows, fields, spoil), relive.SchemaError if spoil != "priority" else relive.ReplayError
        )

    @rule(
        steps=st.lists(STEPS, min_size=1, max_size=5), lane=LANES, spoil=st.sampled_from(["action", "shape", "unknown"])
    )
    def refuse_last_of_block(self, steps: list[Step], lane: int, spoil: str) -> None:
        """A block of which only the last transition is bad: none is pushed."""
        lane %= self.lanes
        rows = [transition(self.kind, step, newest(self.model, lane)) for step in steps]
        fields = spoiled(rows, batched(rows), spoil)
        self.refuse("extend", {**fields, **({"lane": lane} if self.lanes > 1 else {})}, relive.SchemaError)

    @precondition(lambda self: self.kind.stacked > 1)
    @rule(steps=st.lists(STEPS, min_size=3, max_size=3))
    def refuse_stack_that_does_not_roll(self, steps: list[Step]) -> None:
        """Stacks are derived, so a next_obs that is not obs moved by one frame cannot be stored."""
        rows, _ = each_lane(self.kind, self.model, steps)
        rows[-1] = {**rows[-1], "next_obs": self.kind.almost(rows[-1]["next_obs"])}
        self.refuse("push", batched(rows), relive.SchemaError)

    @rule(offset=st.sampled_from([-1, 0, 1]))
    def refuse_ids(self, offset: int) -> None:
        """Ids before the oldest, after the newest, and none at all."""
        ids = self.model.ids
        asked = {-1: (ids[0] if ids else 0) - self.lanes, 0: -1, 1: (ids[-1] if ids else 0) + 3 * self.lanes}[offset]
        for buffer, _ in self.readers:
            with pytest.raises(relive.StaleIdError):
                buffer.get(np.array([*ids, asked], np.int64))

    def refuse(self, verb: str, fields: Row, error: type[Exception]) -> None:
        """A call that every buffer must refuse."""
        for buffer, _ in self.readers:
            with pytest.raises(error):
                getattr(buffer, verb)(**fields)

    # What is read.

    @rule(size=st.integers(1, 20))
    def sample(self, size: int) -> None:
        """Whatever was drawn is live and reads as the model says."""
        for buffer, view in self.readers:
            if not self.model.ids:
                with pytest.raises(relive.NotEnoughDataError):
                    buffer.sample(size)
                continue
            batch = buffer.sample(size)
            assert batch.ids.shape == (size,)
            assert set(batch.ids.tolist()) <= set(self.model.ids)
            assert_rows(batch, [self.model.row(identity, view) for identity in batch.ids.tolist()])

    @invariant()
    def reads_like_the_model(self) -> None:
        """Every live transition under every view."""
        for buffer, view in self.readers:
            assert_same(buffer, self.model, view)


def spoiled(rows: list[Row], fields: Row, how: str) -> Row:
    """The fields with one thing wrong: in the last transition, or in all."""
    if how == "unknown":
        return {**fields, "colour": np.zeros(len(rows))}
    if how == "priority":
        return {**fields, "priority": np.ones(len(rows), np.float32)}
    if how == "shape":
        return {**fields, "next_obs": map_tree(lambda leaf: leaf[..., None], fields["next_obs"])}
    wrong = map_tree(np.array, fields["action"])
    leaf = leaves(wrong)[0]
    if leaf.dtype.kind == "f":
        return {**fields, "action": map_tree(lambda values: values.astype(np.float64) + 1e-12, wrong)}
    leaf[-1] = 99  # outside its Discrete space
    return {**fields, "action": wrong}


class QuickMachine(BufferMachine):
    """For every commit."""


class SlowMachine(BufferMachine):
    """For the night: other examples each time."""


TestStateMachine = QuickMachine.TestCase
TestStateMachine.settings = settings(max_examples=120, stateful_step_count=25)

TestStateMachineSlow = pytest.mark.slow(SlowMachine.TestCase)
TestStateMachineSlow.settings = settings(max_examples=3_000, stateful_step_count=60, derandomize=False)
