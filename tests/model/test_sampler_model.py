"""The model's priorities, uses and epochs against cases worked out by hand."""

from __future__ import annotations

import pytest

from model.reference import Model, View
from model.samplers import Epochs, Priorities, Reading
from model.sequences import SequenceView
from model.test_reference import chain, push


def prioritized(model: Model, view: View | SequenceView | None = None, alpha: float = 1.0, eps: float = 0.0) -> Reading:
    return Reading(model, view or View(), priorities=Priorities(alpha, eps, eta=0.5))


def told(reading: Reading, *arguments) -> int:
    count = reading.update(*arguments)
    reading.changed()
    return count


def test_new_anchors_get_the_largest_priority_so_far():
    model = Model(8)
    reading = prioritized(model)
    first = push(model, 0, 1)
    reading.changed()
    assert reading.priorities.of == {first: 1.0}
    assert told(reading, [first], [0.25]) == 1
    second = push(model, 1, 2)
    reading.changed()
    assert reading.priorities.of == {first: 0.25, second: 1.0}  # the largest so far, not the largest now
    assert told(reading, [second, second, 99], [7.0, 3.0, 50.0]) == 2
    push(model, 2, 3)
    reading.changed()
    assert list(reading.priorities.of.values()) == [0.25, 3.0, 7.0]


def test_priorities_are_transformed_once():
    model = Model(8)
    reading = prioritized(model, alpha=0.5, eps=1.0)
    identity = push(model, 0, 1)
    reading.changed()
    assert reading.priorities.of[identity] == 1.0  # as it is, not (1 + eps)^alpha
    reading.update([identity], [8.0])
    push(model, 1, 2)
    reading.changed()
    assert list(reading.priorities.of.values()) == [3.0, 3.0]


def test_zero_is_never_drawn_even_with_alpha_zero():
    model = Model(8)
    reading = prioritized(model, alpha=0.0)
    ids = chain(model, [0, 1, 2])
    reading.changed()
    reading.update(ids, [0.0, 5.0])
    assert reading.anchors == ids[1:]
    with pytest.raises(AssertionError, match="cannot be drawn"):
        reading.drawn(ids)


def test_the_priority_of_a_sequence():
    model = Model(8)
    reading = prioritized(model, SequenceView(3, burn_in=1, stride=2))
    ids = chain(model, [0, 1, 2, 3, 4, 5, 6], terminated=True)
    reading.changed()
    assert reading.anchors == [ids[0], ids[2], ids[4]]
    errors = [[100.0, 2.0, 4.0], [100.0, 2.0, 4.0], [100.0, 3.0, 50.0]]
    reading.update([ids[0], ids[2], ids[4]], errors)
    expected = [50 + 53 / 3, 2 + 1.5, 3.0]  # no burn-in at the start; no padding
    assert list(reading.priorities.of.values()) == pytest.approx(expected, rel=1e-12)


def test_sequences_get_their_priority_when_they_become_anchors():
    model = Model(8)
    reading = prioritized(model, SequenceView(3))
    first = chain(model, [0, 1, 2, 3])[0]
    reading.changed()
    reading.update([first], [6.0])
    push(model, 3, 4)
    reading.changed()
    assert list(reading.priorities.of.values()) == [6.0, 6.0]


def test_weights_by_hand():
    model = Model(8)
    reading = prioritized(model)
    ids = chain(model, [0, 1, 2, 3])
    reading.changed()
    reading.update(ids, [1.0, 2.0, 4.0])
    assert reading.weights(ids[1:], 1.0, "batch") == pytest.approx([1.0, 0.5])
    assert reading.weights(ids[1:], 1.0, "buffer") == pytest.approx([0.5, 0.25])
    assert reading.weights(ids[1:], 0.5, "buffer") == pytest.approx([2**-0.5, 0.5])


def test_the_newest_come_first_and_anchors_retire():
    model = Model(8)
    reading = Reading(model, View(), newest=2, max_uses=2)
    ids = chain(model, [0, 1, 2, 3])
    reading.changed()
    assert reading.enough(6)
    assert not reading.enough(7)
    with pytest.raises(AssertionError, match="newest"):
        reading.drawn([ids[0], ids[1], ids[2]])
    reading.drawn([ids[2], ids[1], ids[2]])
    assert reading.anchors == ids[:2]
    with pytest.raises(AssertionError, match="more than 2"):
        reading.drawn([ids[1], ids[0], ids[1]])
    assert not Reading(model, View()).enough(1)  # not told of anything yet


def come(epochs: Epochs, identities: list[int], can: list[int], live: list[int] | None = None) -> None:
    for identity in identities:
        epochs.draw(identity, can, live or can)


def test_epochs():
    epochs = Epochs()
    come(epochs, [2, 0, 1], [0, 1, 2])
    come(epochs, [1, 2], [0, 1, 2])  # the next
    with pytest.raises(AssertionError, match="not over"):
        come(epochs, [3], [0, 1, 2, 3])  # joins the one after
    come(epochs, [0, 3], [0, 1, 2, 3])
    come(epochs, [2, 1], [1, 2, 3])  # 0 was overwritten
    with pytest.raises(AssertionError, match="not over"):
        epochs = Epochs()
        come(epochs, [0, 1, 0], [0, 1, 2])  # a twin that repeats one


def test_a_late_anchor_may_come_in_the_epoch_or_not():
    for late in ([1], []):
        epochs = Epochs()
        come(epochs, [0], [0, 2], live=[0, 1, 2])
        come(epochs, [2, *late, 1, 2, 0], [0, 1, 2], live=[0, 1, 2])
        with pytest.raises(AssertionError, match="not over"):
            come(epochs, [9, 9], [0, 1, 2, 9])
