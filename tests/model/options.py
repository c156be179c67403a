"""Views and samplers that machines choose from, in the words of the library and of the model."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np

import relive
from model.reference import View
from model.sequences import SequenceView


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


TRANSITIONS = st.builds(
    View, n=st.sampled_from([1, 3]), stack=st.sampled_from([1, 3]), padding=st.sampled_from(["repeat", "zeros"])
)
WINDOWS = st.sampled_from([3, 2, 4, 1, 5]).flatmap(
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
SEQUENCES = st.integers(0, 3).flatmap(lambda which: EPISODES if which == 0 else WINDOWS)
LIMITS = {"newest": st.sampled_from([0, 0, 0, 1, 3]), "max_uses": st.sampled_from([None, None, None, None, 1, 3, 10])}
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
_OTHERS = [
    RANKED,
    st.builds(relive.Shuffled, **LIMITS),
    st.builds(relive.Uniform, **LIMITS),
    st.builds(relive.samplers.Recent, eta=st.just(0.5), period=st.just(3), min_size=st.integers(1, 4), **LIMITS),
    st.builds(Own),
]
OTHERS = st.sampled_from(_OTHERS).flatmap(lambda strategy: strategy)
HINDSIGHT = st.builds(
    relive.Hindsight,
    st.sampled_from(["future", "final", "episode"]),
    k=st.sampled_from([0, 1, 4]),
    reward_fn=st.sampled_from([reached, reward_only]),
)


def keeps_priorities(sampler: Any) -> bool:
    """Whether |delta| means something to it."""
    return isinstance(sampler, relive.Prioritized | relive.samplers.RankBased)


def real_view(view: View | SequenceView, hindsight: relive.Hindsight | None) -> Any:
    """The library's words for a view of the model."""
    if isinstance(view, View):
        return relive.Transitions(view.n, view.gamma, view.stack, view.padding, hindsight)
    return relive.Sequences(view.length, view.burn_in, view.stride, view.stack, view.gamma, view.padding, view.state)
