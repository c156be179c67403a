"""How random each of many actors is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from relive.checks import integer, number


def epsilon_ladder(num_actors: int, base: float = 0.4, alpha: float = 7.0) -> NDArray[np.float64]:
    """Probabilities of a random action, one an actor, constant over the run: from hardly any to many.

        epsilon_i = base^(1 + alpha * i / (N - 1)),   i = 0, ..., N - 1

    Some actors explore, others see what the policy meets when it is followed; no schedule has to be chosen. A single
    actor has `base`.

    Args:
        num_actors: N, at least 1.
        base: of the first actor, the most random, in [0, 1].
        alpha: at least 0; the last actor has base^(1 + alpha). 0 makes all alike.

    Returns:
        float64 [N], falling.

    Raises:
        ConfigError: a value out of range.

    Paper: Horgan et al. 2018 (arXiv:1803.00933), section 4.1, with its base 0.4 and alpha 7.
    """
    num_actors = integer("epsilon_ladder", "num_actors", num_actors, 1, 1 << 20)
    base = number("epsilon_ladder", "base", base, 0, 1)
    alpha = number("epsilon_ladder", "alpha", alpha, 0, 1e6)
    place = np.arange(num_actors) / max(num_actors - 1, 1)  # f64[N]
    return np.power(base, 1.0 + alpha * place)
