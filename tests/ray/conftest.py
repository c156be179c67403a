"""A Ray of the tests' own, on this machine, small."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(scope="module")
def local_ray() -> Iterator[Any]:
    """Ray, connected; one for a module."""
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # No token: it would be written to the home of whoever runs the tests.
        patch.setenv("RAY_AUTH_MODE", "disabled")
        import ray

        ray.init(
            address="local",  # not one that somebody else has here
            num_cpus=4,
            include_dashboard=False,
            object_store_memory=256 << 20,
            log_to_driver=False,
            logging_level="ERROR",
        )
        yield ray
        ray.shutdown()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and two more nodes; a test may take one away, and adds another."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("RAY_AUTH_MODE", "disabled")
        import ray
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 2, "object_store_memory": 100 << 20, "include_dashboard": False}
        soon = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 6}
        whole = Cluster(initialize_head=True, head_node_args={**node, "_system_config": soon})
        for _ in range(2):
            whole.add_node(**{**node, "resources": {"shards": 2}})
        ray.init(address=whole.address, log_to_driver=False, logging_level="ERROR")
        yield whole
        ray.shutdown()
        whole.shutdown()
