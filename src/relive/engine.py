"""View and sampler as the native core takes them, checked against the schema."""

from __future__ import annotations

from typing import Any

from relive._core import WHOLE_EPISODE
from relive.errors import ConfigError
from relive.samplers import BuiltIn, Prioritized, RankBased, Recent, Sampler, Shuffled, Uniform
from relive.schema import Field, Schema, leaves
from relive.views import Hindsight, Sequences, Transitions, View

_DRAWS: dict[type, int] = {Uniform: 0, Prioritized: 1, RankBased: 2, Shuffled: 3, Recent: 4}  # enum Draw
GOALS = ("achieved_goal", "desired_goal")
_STRATEGIES = {"future": 0, "final": 1, "episode": 2}  # enum Strategy


def check_axes(view: Any, sampler: Any) -> tuple[View, BuiltIn | Sampler]:
    """The view and the sampler, as values of their kinds; None gives the ordinary one.

    Raises:
        ConfigError: something else.
    """
    if isinstance(view, Hindsight):
        view = Transitions(relabel=view)
    view = Transitions() if view is None else view
    sampler = Uniform() if sampler is None else sampler
    if not isinstance(view, View):
        raise ConfigError(f"view: expected Transitions, Sequences or Hindsight, got {view!r}.")
    if isinstance(sampler, type):
        raise ConfigError(
            f"sampler: expected a sampler, got the class {sampler.__name__}. Call it: {sampler.__name__}()."
        )
    if not isinstance(sampler, BuiltIn | Sampler):
        raise ConfigError(f"sampler: expected a sampler, or an object with draw(ids, n, rng), got {sampler!r}.")
    return view, sampler


def keeps_priorities(sampler: BuiltIn | Sampler) -> bool:
    """Whether a priority given with a push means something."""
    return isinstance(sampler, Prioritized | RankBased)


def check_updates(sampler: BuiltIn | Sampler) -> None:
    """Refuses new priorities for a sampler that has no use for them.

    Raises:
        ConfigError: it keeps no priorities.
    """
    if not keeps_priorities(sampler) and not callable(getattr(sampler, "update_priorities", None)):
        raise ConfigError(
            f"update_priorities: expected a sampler that keeps priorities, got {sampler}. Use sampler=Prioritized()."
        )


def options(schema: Schema, view: View, sampler: BuiltIn | Sampler) -> dict[str, Any]:
    """What the native reader has to know.

    Raises:
        ConfigError: a view that this schema does not allow.
    """
    if schema.stacked > 1 and view.stack > 1:
        raise ConfigError(
            f"view: expected stack=1 for observations that arrive as stacks of {schema.stacked}, "
            f"got stack={view.stack}. They are returned as they came."
        )
    num_actions = len(list(leaves(schema.action, "action")))
    state = view.state if isinstance(view, Sequences) else ()
    unknown = [name for name in state if name not in schema.extras]
    if unknown:
        raise ConfigError(f"Sequences: expected state to be among the extras {list(schema.extras)}, got {unknown}.")
    # An object that draws by itself needs the anchors from us, nothing else.
    ours = sampler if isinstance(sampler, BuiltIn) else Uniform()
    return {
        **_sampler_options(ours),
        **_view_options(view),
        "first_only": [False] * num_actions + [name in state for name in schema.extras],
        "relabel": None if isinstance(view, Sequences) else _relabel_options(schema, view.relabel),
    }


def _sampler_options(sampler: BuiltIn) -> dict[str, Any]:
    ranked = sampler if isinstance(sampler, Prioritized | RankBased) else None
    recent = sampler if isinstance(sampler, Recent) else Recent()
    return {
        "draw": _DRAWS[type(sampler)],
        "alpha": ranked.alpha if ranked else 0.0,
        "eps": sampler.eps if isinstance(sampler, Prioritized) else 0.0,
        "eta": ranked.eta if ranked else 0.0,
        "minima": ranked is not None and ranked.normalize == "buffer",
        "shrink": recent.eta,
        "period": recent.period,
        "smallest": recent.min_size,
        "newest": sampler.newest,
        "max_uses": sampler.max_uses or 0,
    }


def _view_options(view: View) -> dict[str, Any]:
    common = {"gamma": view.gamma, "stack": view.stack, "pad_with_zeros": view.padding == "zeros"}
    if isinstance(view, Transitions):
        return {**common, "n": view.n, "length": 0, "stride": 1, "burn_in": 0}
    length = WHOLE_EPISODE if view.length == "episode" else view.length
    return {**common, "n": 1, "length": length, "stride": view.stride, "burn_in": view.burn_in}


def _relabel_options(schema: Schema, hindsight: Hindsight | None) -> tuple[int, float, int, int] | None:
    if hindsight is None:
        return None
    names = [name for name, _ in leaves(schema.obs, "obs")]
    goals = [schema.obs.get(name) if isinstance(schema.obs, dict) else None for name in GOALS]
    if not all(isinstance(goal, Field) for goal in goals) or str(goals[0]) != str(goals[1]):
        found = ", ".join(f"{name}: {field}" for name, field in leaves(schema.obs, "obs"))
        raise ConfigError(
            "Hindsight: expected observations with achieved_goal and desired_goal of one shape and dtype, got "
            f"{found}. Name them so in the environment's Dict space."
        )
    achieved, desired = (names.index(f"obs.{name}") for name in GOALS)
    return _STRATEGIES[hindsight.strategy], hindsight.k / (hindsight.k + 1), achieved, desired
