"""An environment whose every episode is known beforehand."""

import ctypes
import multiprocessing
import os
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

ID = "relive-tests/Countdown-v0"
GRID = "relive-tests/Grid-v0"


class Countdown(gymnasium.Env[NDArray[np.float32], np.int64]):
    """An episode that lasts 1 + seed % 7 steps and pays its seed at the last; obs = [steps so far, seed % 7]."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 50}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0, 1000, (2,), np.float32)
        self.action_space = spaces.Discrete(3, start=-1)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self.seed_given = int(self.np_random.integers(100)) if seed is None else seed
        self.now = 0
        return self._obs(), {}

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.now += 1
        ended = self.now > self.seed_given % 7
        truncated = ended and self.seed_given % 2 == 0
        return self._obs(), float(self.seed_given * ended), ended and not truncated, truncated, {}

    def render(self) -> NDArray[np.uint8]:
        return np.full((8, 12, 3), self.now * 20, np.uint8)

    def _obs(self) -> NDArray[np.float32]:
        return np.array([self.now, self.seed_given % 7], np.float32)


gymnasium.register(ID, Countdown)


class Broken(Countdown):
    """An environment that fails at its third step."""

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        if self.now == 2:
            raise RuntimeError("broken")
        return super().step(action)[0], 0.0, False, False, {}


gymnasium.register("relive-tests/Broken-v0", Broken)


class BrokenPipe(Countdown):
    """An environment whose simulator goes away at its third step."""

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        if self.now == 2:
            raise BrokenPipeError("the simulator's pipe broke")
        return super().step(action)[0], 0.0, False, False, {}


gymnasium.register("relive-tests/BrokenPipe-v0", BrokenPipe)


class Hanging(Countdown):
    """An environment that hangs in an actor, says so by a file, and holds the interpreter meanwhile."""

    steps = 0

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.steps > 400 and multiprocessing.parent_process() is not None:
            Path(os.environ["HANGS"]).touch()
            ctypes.PyDLL(None).sleep(1000)  # PyDLL: with the interpreter's lock
        return super().step(action)


gymnasium.register("relive-tests/Hanging-v0", Hanging)


class Grid(Countdown):
    """The same seen as planes of a small grid, as in MinAtar: bool [10, 10, 4]."""

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(render_mode)
        self.observation_space = spaces.Box(0, 1, (10, 10, 4), np.bool_)

    def _obs(self) -> NDArray[Any]:  # type: ignore[override]
        planes = np.zeros((10, 10, 4), np.bool_)
        planes[self.now, :, 0] = planes[:, self.seed_given % 10, 1] = planes[self.seed_given // 10 % 10, :, 2] = True
        return planes


gymnasium.register(GRID, Grid)
