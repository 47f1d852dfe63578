"""What every node of a cluster is and has: a task pinned to each, before a run claims anything.

A node may have an old checkout, or none: what runs there travels with the task, and looks at the code that a worker of
the run would import.
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
from workers.cluster.code_check import checkout, node_name, pinned, travelling

SENT_BYTES = 64 << 20
ASKS = 3  # the one with the shortest way tells the clock best


@dataclass(frozen=True)
class NodeInfo:
    """As the node itself says. `clock_s` is how far its clock is before ours, known to `clock_within_s`."""

    name: str  # host and address
    files: dict[str, str]  # of the code that it would run
    versions: dict[str, str]
    cpus: int
    gpus: int
    memory_gib: float
    shared_memory_gib: tuple[float, float]  # total, free
    missing: list[str]  # of the paths asked for
    clock_s: float = 0.0
    clock_within_s: float = 0.0


@dataclass(frozen=True)
class NodeSurvey:
    nodes: list[NodeInfo]
    silent: list[str]  # nodes that did not answer in time, with what they said if they failed
    gb_per_s: dict[tuple[str, str], float] = field(default_factory=dict)  # from a node to the next
    offered: dict[str, float] = field(default_factory=dict)  # CPU and GPU, as Ray counts them


def survey(packages: Sequence[str], paths: Sequence[str], within_s: float) -> NodeSurvey:
    """Ask every living node of the cluster that was joined.

    Args:
        packages: whose versions to tell.
        paths: what each node must see.
        within_s: bound of each wait, seconds.
    """
    alive = {node["NodeID"]: node_name(node) for node in sorted(ray.nodes(), key=node_name) if node["Alive"]}
    with travelling(sys.modules[__name__], code_check, code_digest):
        refs = {node: pinned(_account, node).remote(list(packages), list(paths)) for node in alive}
        answers = {node: _answer(ref, within_s) for node, ref in refs.items()}
        nodes, silent = [], []
        for node, answer in answers.items():
            if isinstance(answer, str):
                silent.append(f"{alive[node]}: {answer}")
            else:
                clock_s, clock_within_s = _clock(node, within_s)
                nodes.append(NodeInfo(name=alive[node], clock_s=clock_s, clock_within_s=clock_within_s, **answer))
        heard = [node for node in alive if not isinstance(answers[node], str)]
        return NodeSurvey(nodes, silent, _rates(heard, alive, within_s), ray.cluster_resources())


def _answer(ref: Any, within_s: float) -> Any:
    """The answer, or in words why there is none."""
    try:
        return ray.get(ref, timeout=within_s)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(ref, force=True)
        return f"no answer within {within_s:g} s"
    except ray.exceptions.RayError as error:
        return str(error).strip().splitlines()[-1]


def _account(packages: list[str], paths: list[str]) -> dict[str, Any]:
    """Runs on the node: the fields of `NodeInfo` but for its name and clock."""
    import os
    import platform
    import shutil
    from contextlib import suppress
    from importlib.metadata import PackageNotFoundError, version
    from pathlib import Path

    root = checkout()
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
    """How far the node's clock is before ours, and how well that is known: it was read between asking and hearing."""
    best = (float("inf"), 0.0)
    for _ in range(ASKS):
        asked = time.time()
        there = _answer(pinned(_now, node).remote(), within_s)
        heard = time.time()
        if isinstance(there, float):
            best = min(best, (heard - asked, there - (asked + heard) / 2))
    return best[1], best[0] / 2


def _rates(nodes: Sequence[str], names: dict[str, str], within_s: float) -> dict[tuple[str, str], float]:
    """Around the ring: one node puts an array into the object store, the next fetches it and says how long it took."""
    rates = {}
    for sender, receiver in zip(nodes, [*nodes[1:], *nodes[:1]], strict=True) if len(nodes) > 1 else ():
        ref = pinned(_array, sender).remote(SENT_BYTES)
        _answer(pinned(_settled, sender).remote([ref]), within_s)
        seconds = _answer(pinned(_fetched, receiver).remote([ref]), within_s)
        if isinstance(seconds, float):
            rates[names[sender], names[receiver]] = SENT_BYTES / seconds / 1e9
    return rates


def _array(size: int) -> Any:
    import numpy as np

    return np.ones(size, np.uint8)


def _settled(refs: list[Any]) -> None:
    ray.wait(refs, fetch_local=False)


def _fetched(refs: list[Any]) -> float:
    """In a list, so that Ray does not fetch it before the clock is started."""
    started = time.perf_counter()
    ray.get(refs[0])
    return time.perf_counter() - started
