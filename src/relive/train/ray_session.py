"""A Ray for a run: connected to or started here, and left as it was found."""

from __future__ import annotations

import logging
import signal
import socket
import threading
import uuid
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from relive.errors import ConfigError
from relive.share.ray_remote import ray

REACH_SECONDS = 10.0
"""In which the head of a cluster has to let itself be reached."""

LOOK_SECONDS = 60.0
"""In which hosts have to say whether they see a directory."""

Leave = Callable[[], None]


def connect(address: str) -> Leave:
    """Connect to Ray, or start one.

    A process that is connected already stays so, whoever connected it.

    Args:
        address: HOST:PORT, "auto", or "local" for a Ray of its own.

    Returns:
        What leaves it, and ends one that was started here. Idempotent.

    Raises:
        ConfigError: nothing answers there, or this process is connected to another.
    """
    if ray.is_initialized():
        there = ray.get_runtime_context().gcs_address
        if address not in ("local", "auto", there):
            raise ConfigError(
                f"ray: expected {there}, which this process is connected to, got {address}. Leave it first."
            )
        return lambda: None
    if address not in ("local", "auto"):
        _reach(address)
    # One that is started needs no CPUs in Ray's books, as nothing here asks for any: so it starts no processes ahead.
    own: dict[str, Any] = {"num_cpus": 0, "include_dashboard": False} if address == "local" else {}
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # on GPUs of actors that ask for none
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise ConfigError(f"ray: expected a Ray at {address}, got none ({_first_line(error)}). {_remedy()}") from error
    finally:
        if main and before is not None:
            signal.signal(signal.SIGTERM, before)  # Ray puts its own in its place, which would end us in the midst
    return _leave


def unseen(directory: Path, hosts: Iterable[str]) -> list[str]:
    """Those of the hosts, by name, where this directory is not the one that it is here, or that did not say.

    Cost: a file that is made and removed, and a process on each of them but this one.
    """
    others = set(hosts) - {socket.gethostname()}
    probe = directory / f"seen-{uuid.uuid4().hex}"
    known: Callable[[], list[dict[str, Any]]] = ray.nodes
    nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in known() if node["Alive"]}
    look = ray.remote(num_cpus=0, max_retries=0)(_exists)
    asked = {}
    for node, host in nodes.items():
        if host in others:
            where = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node, soft=False)
            asked[look.options(scheduling_strategy=where).remote(str(probe))] = host
    if not asked:
        return []
    probe.touch()
    try:
        done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=LOOK_SECONDS)
        for ref in done:
            with suppress(ray.exceptions.RayError):
                if ray.get(ref, timeout=LOOK_SECONDS):
                    asked.pop(ref)
    finally:
        probe.unlink()
    return sorted(set(asked.values()))


def _exists(path: str) -> bool:
    return Path(path).exists()


def _reach(address: str) -> None:
    """Refuse an address where nobody listens: Ray itself takes minutes to say so."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ConfigError(f"ray: expected a Ray at {address}, got none ({error}). {_remedy()}") from None


def _remedy() -> str:
    return "Start it with ray start --head, and on this host too with ray start --address; or give local."


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")


def _leave() -> None:
    if ray.is_initialized():
        ray.shutdown()
