"""`relive evaluate RUN`: greedy episodes with a run's weights, and a film of one."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from relive.cli.options import parse
from relive.errors import ConfigError
from relive.train import evaluate, film, load_config, load_policy
from relive.train.evaluate import FINAL_SEED
from relive.train.rundir import WEIGHTS

GIF_FPS = 25
"""Pictures a second that a GIF keeps; viewers slow down GIFs that ask for many more."""


@dataclass(frozen=True)
class Options:
    """What the command line can say."""

    run: Path
    """Directory that `relive train` made."""
    episodes: int = 100
    """Episodes to play."""
    seed: int = FINAL_SEED
    """Seed of the first episode. The default repeats the evaluation at the end of `relive train`."""
    weights: Literal["best", "last"] | None = None
    """Weights of the best evaluation or of the end. None: those that the run kept."""
    video: Path | None = None
    """Film the first episode into this GIF."""


def run(args: Sequence[str]) -> int:
    """Play, print what came of it, film if asked; returns the exit code."""
    options = parse(
        Options, args, prog="relive evaluate", description="Play greedy episodes with the weights of a run."
    )
    if options.episodes < 1:
        raise ConfigError(f"--episodes: expected an integer >= 1, got {options.episodes}.")
    if options.video is not None and options.video.suffix.lower() != ".gif":
        raise ConfigError(f"--video: expected a file that ends in .gif, got {options.video}.")
    if options.video is not None and not options.video.parent.is_dir():
        raise ConfigError(f"--video: expected a directory that exists, got {options.video.parent}. Make it first.")
    config = load_config(options.run)
    kept: Literal["best", "last"] = (
        "best" if config.keep == "best" and (options.run / WEIGHTS["best"]).exists() else "last"
    )
    which = options.weights or kept
    act = load_policy(options.run, which)
    evaluation = evaluate(act, config.env, episodes=options.episodes, seed=options.seed, stack=config.stack)
    if evaluation is not None:
        span = f"from {min(evaluation.returns):g} to {max(evaluation.returns):g}"
        print(f"{config.env}, {which} weights of {options.run}: greedy return {evaluation}, {span}.")
    if options.video is not None:
        os.environ.setdefault(
            "SDL_VIDEODRIVER", "dummy"
        )  # pygame is to look for no screen, nor complain that it has none
        pictures, fps, total = film(act, config.env, seed=options.seed, stack=config.stack)
        save_gif(options.video, pictures, fps)
        print(f"{options.video}: an episode of {len(pictures) - 1} steps and return {total:g}.")
    return 0


def save_gif(path: Path, pictures: Sequence[NDArray[np.uint8]], fps: float) -> None:
    """Write an endless GIF that runs at the environment's own speed, of at most `GIF_FPS` pictures a second.

    Args:
        path: file.
        pictures: uint8 [height, width, 3] each.
        fps: pictures a second that the environment gives.

    Raises:
        OSError: `path` cannot be written.
    """
    stride = max(1, round(fps / GIF_FPS))
    first, *rest = [Image.fromarray(picture).quantize(64) for picture in pictures[::stride]]
    first.save(
        path,
        format="GIF",
        save_all=True,
        append_images=rest,
        duration=round(1000 * stride / fps),
        loop=0,
        optimize=True,
    )
