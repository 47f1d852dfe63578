"""Waiting for the nodes of a cluster that is just being started."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress

import ray

from demopsd_dist.util.errors import WorkerError

POLL_S = 1.0


def wait_for_nodes(address: str, names: Sequence[str], within_s: float) -> None:
    """Wait until a node of each name has joined.

    Raises:
        WorkerError: some did not join within `within_s`; it names them.
    """
    deadline = time.monotonic() + within_s
    missing = list(names)
    while missing:
        with suppress(ConnectionError, RuntimeError, TimeoutError):  # the head is not there yet
            if not ray.is_initialized():
                ray.init(address=address, log_to_driver=False, logging_level="CRITICAL")
            joined = {node["NodeName"] for node in ray.nodes() if node["Alive"]}
            missing = [name for name in names if name not in joined]
        if missing and time.monotonic() > deadline:
            raise WorkerError(
                f"{len(missing)} of {len(names)} nodes did not join {address} within {within_s:g} s: "
                f"{', '.join(missing)}. Look at their logs, or leave them out (sbatch --exclude)."
            )
        if missing:
            time.sleep(POLL_S)
