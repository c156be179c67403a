"""Settings of every test: hypothesis draws the same examples each time, so that a red run is red again."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "relive", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("relive")
