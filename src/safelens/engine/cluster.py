"""A Ray cluster: how it is reached or started, what a stage asks of it, and its errors in words.

Knows Ray's core. Knows nothing of what runs there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

OBJECT_STORE_BYTES = 512 << 20
"""Ray's object store where this process starts the cluster: unsure videos' frames between the stages."""


class EngineError(Exception):
    """The run cannot go on; the message says why and what to do."""


@dataclass(frozen=True)
class Pool:
    """Processes of one stage.

    Attributes:
        least: how many there are at least.
        most: how many there may be, as the stage's queue grows.
        cpus: of each; also its number of threads.
        gpus: of each, such as 0.25; None for a half where the cluster has one.
    """

    least: int = 1
    most: int = 1
    cpus: float = 1.0
    gpus: float | None = None


def has_address(address: str | None) -> bool:
    """Whether a cluster is named, here or in the environment."""
    return address is not None or "RAY_ADDRESS" in os.environ


def placed(pool: Pool) -> Pool:
    """The pool with what the cluster that this process is connected to makes of it."""
    import ray

    if pool.gpus is not None:
        return pool
    return replace(pool, gpus=0.5 if ray.cluster_resources().get("GPU", 0.0) > 0 else 0.0)


@contextmanager
def connected(address: str | None, pools: Sequence[Pool]) -> Iterator[None]:
    """A cluster, as long as the block runs: at an address, or started here.

    Args:
        address: of a cluster; by default RAY_ADDRESS, and without that one is started here.
        pools: what will be asked of it.

    Raises:
        EngineError: it cannot be reached, or can never hold the pools.
    """
    import logging

    import ray

    cpus = sum(pool.least * pool.cpus for pool in pools)
    gpus = sum(pool.least * (pool.gpus or 0.0) for pool in pools)
    own = not has_address(address)
    started: dict[str, Any] = {"address": address}
    if own:
        # Ray would have its workers yield to all else on the machine, which here is what the local engine does not do.
        os.environ.setdefault("RAY_worker_niceness", "0")
        most = sum(pool.most * pool.cpus for pool in pools)
        started = {
            "address": "local",
            "num_cpus": math.ceil(max(most, os.cpu_count() or 1)),
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    try:
        ray.init(
            **started, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True
        )
    except ConnectionError as error:
        raise EngineError(
            f"Ray at {address or os.environ.get('RAY_ADDRESS')}: {error}. If it runs there, it may ask for a token: "
            "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or the file ~/.ray/auth_token to what its head has"
        ) from error
    except (RuntimeError, ValueError) as error:
        raise EngineError(f"Ray at {address or 'this machine'}: {error}") from error
    try:
        there = ray.cluster_resources()
        for name, wanted in (("CPU", cpus), ("GPU", gpus)):
            if wanted > there.get(name, 0.0) and own:
                raise EngineError(
                    f"the actors ask for {wanted:g} {name}s, and there are {there.get(name, 0.0):g}; "
                    "ask for fewer actors or less for each"
                )
        yield
    finally:
        ray.shutdown()


@contextmanager
def explained() -> Iterator[None]:
    """What Ray raises, as the reason that the user can act on."""
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        cause: BaseException = error
        while isinstance(cause, ray.exceptions.RayTaskError) and cause.cause is not None:
            cause = cause.cause
        raise EngineError(f"{type(cause).__name__}: {cause}") from error


def last_line(text: str) -> str:
    """Of what Ray says, the part that says why: behind the traceback of another process."""
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no reason was given"
