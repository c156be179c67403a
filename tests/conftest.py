"""Settings of every test: hypothesis draws the same examples each time, so that a red run is red again."""

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "relive", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("relive")

_PLOT = "relive.train.runs.plot_runs"


@pytest.fixture(scope="module")
def blank_curves() -> Iterator[None]:
    """For modules of many short runs: half of the time of each would go into the picture of its curve."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_PLOT, lambda runs, out: out.touch())
        yield


@pytest.fixture
def drawn_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a test in such a module that looks at the picture."""
    from relive.train.plot import plot_runs

    monkeypatch.setattr(_PLOT, plot_runs)
