"""Environments by name: made, checked, and what is wrong with a name said in one line."""

import difflib
import importlib
from typing import Any

import gymnasium
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers import FrameStackObservation

from relive.errors import ConfigError

Env = gymnasium.Env[Any, Any]
Envs = VectorEnv[Any, Any, Any]


def make_env(name: str, *, stack: int = 1, render_mode: str | None = None) -> Env:
    """One environment, its observations stacked where `stack` is more than 1 (the first repeats at an episode's start).

    Raises:
        ConfigError: no such environment, an environment whose own requirements are not installed, actions that are not
            Discrete, or a render mode it does not have.
    """
    spec = find_spec(name)
    try:
        env: Env = gymnasium.make(spec, render_mode=render_mode)
    except gymnasium.error.DependencyNotInstalled as error:
        raise ConfigError(
            f"{name}: expected its own requirements to be installed, got: {_first_sentence(error)}. "
            f"For Box2D and classic control: pip install 'relive[train]'; for others see the environment's page."
        ) from None
    if not isinstance(env.action_space, gymnasium.spaces.Discrete):
        raise ConfigError(f"{name}: expected Discrete actions, got {env.action_space}. DQN learns one value an action.")
    if render_mode not in (None, *env.metadata.get("render_modes", ())):
        raise ConfigError(
            f"{name}: expected an environment that renders as {render_mode}, got none. It cannot be filmed."
        )
    return env if stack == 1 else FrameStackObservation(env, stack)


def make_training_envs(name: str, num_envs: int) -> Envs:
    """The environments that a run learns in, stepped together.

    Several use the environment's own vectorised form where it has one: one NumPy expression for all of them. Else they
    are stepped one by one, and one that ends starts anew in the same step, so that no step is spent on a reset.
    """
    spec = find_spec(name)
    if num_envs > 1 and has_vector_form(name):
        envs: Envs = gymnasium.make_vec(spec, num_envs, "vector_entry_point")
    else:
        envs = gymnasium.make_vec(spec, num_envs, "sync", {"autoreset_mode": AutoresetMode.SAME_STEP})
    return envs


def has_vector_form(name: str) -> bool:
    """Whether the environment can step any number of instances in one call of its own."""
    spec = find_spec(name)
    return spec.vector_entry_point is not None and not spec.additional_wrappers


def find_spec(name: str) -> gymnasium.envs.registration.EnvSpec:
    """What Gymnasium knows under this name; of `module:id` the module is imported first, which registers it.

    Raises:
        ConfigError: nothing; names the closest that it does know.
    """
    module, _, plain = name.rpartition(":")
    try:
        if module:
            importlib.import_module(module)
        return gymnasium.spec(plain)
    except (gymnasium.error.Error, ImportError) as error:
        known = {spec.lower(): spec for spec in gymnasium.registry}
        close = [known[match] for match in difflib.get_close_matches(name.lower(), known, n=2, cutoff=0.6)]
        remedy = f"Did you mean {' or '.join(close)}?" if close else f"Gymnasium says: {_first_sentence(error)}."
        raise ConfigError(f"environment: expected an id that Gymnasium knows, got {name!r}. {remedy}") from None


def _first_sentence(error: Exception) -> str:
    return str(error).split(". ")[0].split("\n")[0].rstrip(".")
