"""The epsilon ladder: the paper's numbers, and what is refused."""

import numpy as np
import pytest

from relive.errors import ConfigError
from relive.share import epsilon_ladder


def test_it_is_the_paper_s() -> None:
    """Bug: i counted from 1, N in place of N - 1, alpha outside of the exponent."""
    expected = [0.4 ** (1 + i / 7 * 7) for i in range(8)]
    assert np.allclose(epsilon_ladder(8), expected, rtol=1e-12)
    assert np.allclose(epsilon_ladder(3, 0.5, 2.0), [0.5, 0.25, 0.125], rtol=1e-12)


def test_one_actor_has_the_base_and_alpha_zero_makes_all_alike() -> None:
    """Bug: a division by zero."""
    assert epsilon_ladder(1, 0.3).tolist() == [0.3]
    assert epsilon_ladder(4, 0.3, 0.0).tolist() == [0.3] * 4
    assert epsilon_ladder(3, 0.0).tolist() == [0.0] * 3


@pytest.mark.parametrize("arguments", [(0,), (2.0,), (True,), (2, -0.1), (2, 1.1), (2, 0.4, -1), (2, 0.4, np.nan)])
def test_what_makes_no_ladder_is_refused(arguments: tuple[float, ...]) -> None:
    """Bug: NaN, or probabilities above 1, that only an actor would notice."""
    with pytest.raises(ConfigError, match="epsilon_ladder: expected"):
        epsilon_ladder(*arguments)  # type: ignore[arg-type]
