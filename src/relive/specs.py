"""Samplers and views <-> JSON. Nothing that comes out of a file becomes code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from relive.errors import ConfigError
from relive.samplers import BuiltIn, Prioritized, RankBased, Recent, Sampler, Shuffled, Uniform
from relive.views import Hindsight, Sequences, Transitions, View

_SAMPLERS: dict[str, type[BuiltIn]] = {
    kind.__name__: kind for kind in (Uniform, Prioritized, RankBased, Shuffled, Recent)
}


def sampler_to_dict(sampler: BuiltIn | Sampler) -> dict[str, Any]:
    """A sampler's name and options; of a user's own only its name."""
    if not isinstance(sampler, BuiltIn):
        return {"custom": f"{type(sampler).__module__}.{type(sampler).__qualname__}"}
    return {"name": type(sampler).__name__, **_options(sampler)}


def sampler_from_dict(data: Mapping[str, Any]) -> BuiltIn:
    """The inverse.

    Raises:
        ConfigError: it was a user's own, which only the user can make.
    """
    if "custom" in data:
        raise ConfigError(
            f"sampler: expected one to be given, the snapshot's is {data['custom']}, which cannot be read from a file. "
            "Pass sampler=."
        )
    options = dict(data)
    return _SAMPLERS[options.pop("name")](**options)


def view_to_dict(view: View) -> dict[str, Any]:
    """A view's name and options; of a reward function only its name."""
    options = _options(view)
    if isinstance(view, Transitions) and view.relabel is not None:
        reward_fn = view.relabel.reward_fn
        name = getattr(reward_fn, "__qualname__", type(reward_fn).__qualname__)
        module = getattr(reward_fn, "__module__", type(reward_fn).__module__)
        options["relabel"] = {**_options(view.relabel), "reward_fn": f"{module}.{name}"}
    return {"name": type(view).__name__, **options}


def view_from_dict(data: Mapping[str, Any]) -> View:
    """The inverse.

    Raises:
        ConfigError: it has a reward function, which is code.
    """
    options = dict(data)
    name = options.pop("name")
    if options.get("relabel") is not None:
        raise ConfigError(
            "view: expected one to be given, the snapshot's has the reward function "
            f"{options['relabel']['reward_fn']}, and code is never read from a file. Pass view=."
        )
    if name == "Sequences":
        return Sequences(**{**options, "state": tuple(options["state"])})
    return {"Transitions": Transitions}[name](**options)


def _options(value: BuiltIn | View | Hindsight) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in fields(value)}
