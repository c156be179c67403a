"""Greedy episodes with fixed seeds."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from relive.dqn import DQN
from relive.train.environments import Env, Envs, has_vector_form, make_env

Act = Callable[[NDArray[Any]], NDArray[np.int64]]
"""Observations [B, *shape] -> actions int64 [B]."""

EVALUATION_SEED = 1_000_000
"""First seed of the evaluations during training. All runs use the same, so that their curves can be compared."""

FINAL_SEED = 2_000_000
"""First seed of the evaluation at the end: episodes that no decision of the run has seen."""

LANES = 16
"""Environments that take turns at the episodes: enough to make the network's calls cheap, few enough to make soon."""


def greedy(agent: DQN, action_space: gymnasium.Space[Any]) -> Act:
    """The agent's policy without exploration. Draws nothing from its generator: evaluating changes no training."""
    assert isinstance(action_space, gymnasium.spaces.Discrete)  # the agent refuses any other
    first = action_space.start

    def act(obs: NDArray[Any]) -> NDArray[np.int64]:
        actions: NDArray[np.int64] = agent.q_values(obs).argmax(axis=1) + first
        return actions

    return act


@dataclass(frozen=True)
class Evaluation:
    """What the episodes of one evaluation brought."""

    returns: tuple[float, ...]
    """Undiscounted return of each episode, in the order of their seeds."""
    lengths: tuple[int, ...]
    """Steps of each episode."""
    seconds: float
    """Wall time."""

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Standard deviation of the returns over the episodes (not of the mean)."""
        return float(np.std(self.returns))

    def __str__(self) -> str:
        digits = 1 if max(map(abs, self.returns)) >= 10 else 3
        number = len(self.returns)
        return f"{self.mean:.{digits}f} ± {self.std:.{digits}f} over {number} episode{'s' if number > 1 else ''}"


def evaluate(
    act: Act, env: str, *, episodes: int, seed: int, stack: int = 1, stop: Callable[[], bool] = lambda: False
) -> Evaluation | None:
    """Play whole episodes and add up their rewards.

    Each episode counts once, however short: never "the first k to end", which would favour short ones. An environment
    with a vectorised form plays all episodes side by side; any other plays episode i from seed + i.

    Args:
        act: the policy.
        env: Gymnasium id.
        episodes: how many.
        seed: of the first episode.
        stack: observations stacked into one.
        stop: asked at every step; True ends the evaluation at once.

    Returns:
        Evaluation, or None if `stop` ended it: half an evaluation is biased towards short episodes.
    """
    started = time.perf_counter()
    if stack == 1 and has_vector_form(env):
        with closing(gymnasium.make_vec(env, episodes, "vector_entry_point")) as envs:
            played = _play_side_by_side(envs, act, seed, stop)
    else:
        pool = [make_env(env, stack=stack) for _ in range(min(episodes, LANES))]
        try:
            played = _play_in_turn(pool, act, range(seed, seed + episodes), stop)
        finally:
            for one in pool:
                one.close()
    if played is None:
        return None
    returns, lengths = played
    return Evaluation(tuple(returns.tolist()), tuple(lengths.tolist()), time.perf_counter() - started)


def film(act: Act, env: str, *, seed: int, stack: int = 1) -> tuple[list[NDArray[np.uint8]], float, float]:
    """Play one episode and keep its pictures.

    Returns:
        Pictures uint8 [height, width, 3] from the first observation to the last; pictures a second; the return.

    Raises:
        ConfigError: the environment cannot render to arrays.
    """
    with closing(make_env(env, stack=stack, render_mode="rgb_array")) as stage:
        obs, _ = stage.reset(seed=seed)
        pictures, total, ended = [_picture(stage)], 0.0, False
        while not ended:
            obs, reward, terminated, truncated, _ = stage.step(act(np.asarray(obs)[None])[0])
            pictures.append(_picture(stage))
            total += float(reward)
            ended = terminated or truncated
        return pictures, float(stage.metadata.get("render_fps", 30)), total


def _picture(env: Env) -> NDArray[np.uint8]:
    return np.asarray(env.render(), dtype=np.uint8)


_Played = tuple[NDArray[np.float64], NDArray[np.int64]] | None


def _play_side_by_side(envs: Envs, act: Act, seed: int, stop: Callable[[], bool]) -> _Played:
    """One episode a lane; what a lane does after its first end is not counted."""
    returns = np.zeros(envs.num_envs)  # f64[B]
    lengths = np.zeros(envs.num_envs, np.int64)
    playing = np.ones(envs.num_envs, np.bool_)
    obs, _ = envs.reset(seed=seed)
    while playing.any():
        if stop():
            return None
        obs, reward, terminated, truncated, _ = envs.step(act(obs))
        returns += np.where(playing, reward, 0.0)
        lengths += playing
        playing &= ~(terminated | truncated)
    return returns, lengths


def _play_in_turn(envs: Sequence[Env], act: Act, seeds: Sequence[int], stop: Callable[[], bool]) -> _Played:
    """Each environment takes the next episode when it has ended one, so that none is stepped for nothing."""
    returns, lengths = np.zeros(len(seeds)), np.zeros(len(seeds), np.int64)
    waiting = deque(range(len(seeds)))
    playing: dict[int, int] = {}  # environment -> episode
    obs: dict[int, NDArray[Any]] = {}

    def begin(lane: int) -> None:
        playing[lane] = waiting.popleft()
        obs[lane] = np.asarray(envs[lane].reset(seed=seeds[playing[lane]])[0])

    for lane in range(len(envs)):
        begin(lane)
    while playing:
        if stop():
            return None
        lanes = list(playing)
        for lane, action in zip(lanes, act(np.stack([obs[lane] for lane in lanes])), strict=True):
            seen, reward, terminated, truncated, _ = envs[lane].step(action)
            obs[lane] = np.asarray(seen)
            returns[playing[lane]] += float(reward)
            lengths[playing[lane]] += 1
            if terminated or truncated:
                del playing[lane]
                if waiting:
                    begin(lane)
    return returns, lengths
