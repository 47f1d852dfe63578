"""Node information: code, versions, devices, memory, clock and network of every node of a cluster.

Collected by a task pinned to each node, before a run claims anything. A node may have an old checkout, or none: the
task's own code travels with it, and reads the code that a worker of the run would import.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from demopsd_dist.util import code_digest
from workers.cluster import code_check
from workers.cluster.code_check import code_root, node_name, pickled_by_value, task_on_node

SENT_BYTES = 64 << 20
CLOCK_READINGS = 3  # clock readings; the one with the shortest round trip is the most accurate


@dataclass(frozen=True)
class NodeInfo:
    """Information that a node reports on itself. `clock_s` is by how much its clock is ahead of the driver's, known to
    `clock_within_s`."""

    name: str  # host and address
    files: dict[str, str]  # digests of the code that it would run
    versions: dict[str, str]
    cpus: int
    gpus: int
    memory_gib: float
    shared_memory_gib: tuple[float, float]  # total, free
    missing: list[str]  # of the required paths
    clock_s: float = 0.0
    clock_within_s: float = 0.0


@dataclass(frozen=True)
class ClusterInfo:
    """Information on all nodes of a cluster."""

    nodes: list[NodeInfo]
    unanswered: list[str]  # nodes that did not answer in time or failed, each with the reason
    gb_per_s: dict[tuple[str, str], float] = field(default_factory=dict)  # network rate from a node to the next
    offered: dict[str, float] = field(default_factory=dict)  # CPU and GPU, as Ray counts them


def collect_node_info(packages: Sequence[str], paths: Sequence[str], within_s: float) -> ClusterInfo:
    """Collect information on every living node of the cluster that was joined.

    Args:
        packages: packages whose versions are reported.
        paths: paths that each node must see.
        within_s: time limit of each wait, seconds.
    """
    alive = {node["NodeID"]: node_name(node) for node in sorted(ray.nodes(), key=node_name) if node["Alive"]}
    with pickled_by_value(sys.modules[__name__], code_check, code_digest):
        refs = {node: task_on_node(_node_facts, node).remote(list(packages), list(paths)) for node in alive}
        answers = {node: _answer(ref, within_s) for node, ref in refs.items()}
        nodes, unanswered = [], []
        for node, answer in answers.items():
            if isinstance(answer, str):
                unanswered.append(f"{alive[node]}: {answer}")
            else:
                clock_s, clock_within_s = _clock(node, within_s)
                nodes.append(NodeInfo(name=alive[node], clock_s=clock_s, clock_within_s=clock_within_s, **answer))
        answered = [node for node in alive if not isinstance(answers[node], str)]
        return ClusterInfo(nodes, unanswered, _network_rates(answered, alive, within_s), ray.cluster_resources())


def _answer(ref: Any, within_s: float) -> Any:
    """The task's result, or the reason that there is none."""
    try:
        return ray.get(ref, timeout=within_s)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(ref, force=True)
        return f"no answer within {within_s:g} s"
    except ray.exceptions.RayError as error:
        return str(error).strip().splitlines()[-1]


def _node_facts(packages: list[str], paths: list[str]) -> dict[str, Any]:
    """Fields of `NodeInfo` without its name and clock. Runs on the node."""
    import os
    import platform
    import shutil
    from contextlib import suppress
    from importlib.metadata import PackageNotFoundError, version
    from pathlib import Path

    root = code_root()
    versions = {"python": platform.python_version()}
    for name in packages:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    total, free = (0.0, 0.0)
    with suppress(OSError):
        usage = shutil.disk_usage("/dev/shm")
        total, free = usage.total / 2**30, usage.free / 2**30
    return {
        "files": code_digest.file_digests(root) if root else {},
        "versions": versions,
        "cpus": os.cpu_count() or 0,
        "gpus": len(list(Path("/proc/driver/nvidia/gpus").glob("*"))),
        "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        "shared_memory_gib": (total, free),
        "missing": [path for path in paths if not Path(path).exists()],
    }


def _now() -> float:
    return time.time()


def _clock(node: str, within_s: float) -> tuple[float, float]:
    """Seconds by which the node's clock is ahead of this one, and their error: half of the shortest round trip."""
    best = (float("inf"), 0.0)
    for _ in range(CLOCK_READINGS):
        sent = time.time()
        node_time = _answer(task_on_node(_now, node).remote(), within_s)
        received = time.time()
        if isinstance(node_time, float):
            best = min(best, (received - sent, node_time - (sent + received) / 2))
    return best[1], best[0] / 2


def _network_rates(nodes: Sequence[str], names: dict[str, str], within_s: float) -> dict[tuple[str, str], float]:
    """GB/s around the ring of nodes: one puts an array into the object store, the next fetches it and reports how long
    that took."""
    rates = {}
    for sender, receiver in zip(nodes, [*nodes[1:], *nodes[:1]], strict=True) if len(nodes) > 1 else ():
        ref = task_on_node(_array, sender).remote(SENT_BYTES)
        _answer(task_on_node(_wait_for, sender).remote([ref]), within_s)
        seconds = _answer(task_on_node(_fetch_seconds, receiver).remote([ref]), within_s)
        if isinstance(seconds, float):
            rates[names[sender], names[receiver]] = SENT_BYTES / seconds / 1e9
    return rates


def _array(size: int) -> Any:
    import numpy as np

    return np.ones(size, np.uint8)


def _wait_for(refs: list[Any]) -> None:
    ray.wait(refs, fetch_local=False)


def _fetch_seconds(refs: list[Any]) -> float:
    """Seconds that fetching an array takes. Its reference is in a list, so that Ray does not fetch it before the clock
    is started."""
    started = time.perf_counter()
    ray.get(refs[0])
    return time.perf_counter() - started
