"""The code of every node that a run uses is that of its driver, or the run is refused by name of the node."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import ray
from ray.exceptions import NodeDiedError, RayError, TaskUnschedulableError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from demopsd_dist.util import code_digest
from demopsd_dist.util.errors import ConfigError, WorkerError

_GONE = (NodeDiedError, TaskUnschedulableError)
_same: set[str] = set()  # nodes known to have the driver's code, by Ray's id


async def refuse_other_code(nodes: Iterable[str], within_s: float) -> None:
    """Ask those that have not been asked before; the driver's own has its code.

    Args:
        nodes: by Ray's id.
        within_s: bound of the wait, seconds.

    Raises:
        ConfigError: the code of one differs, or no worker of this code can start there.
        WorkerError: one did not answer.
    """
    unknown = sorted(set(nodes) - _same - {ray.get_runtime_context().get_node_id()})
    if not unknown:
        return
    with travelling(sys.modules[__name__], code_digest):
        asked = {node: asyncio.wrap_future(pinned(_files, node).remote().future()) for node in unknown}
    await asyncio.wait(asked.values(), timeout=within_s)
    here = code_digest.file_digests()
    names = {node["NodeID"]: node_name(node) for node in ray.nodes()}
    for node, answer in asked.items():
        name = names.get(node, node)
        if not answer.done() or isinstance(answer.exception(), _GONE):
            answer.cancel()
            raise WorkerError(f"{name} did not say within {within_s:g} s what code it has: it is gone, or hangs.")
        if isinstance(error := answer.exception(), RayError):
            last = str(error).strip().splitlines()[-1]
            raise ConfigError(
                f"{name}: no worker of the run can start there. Bring {code_digest.ROOT} there as it is here. ({last})"
            )
        _refuse_other(name, here, answer.result())
        _same.add(node)


def _refuse_other(name: str, here: dict[str, str], there: dict[str, str]) -> None:
    """
    Raises:
        ConfigError: these are not the digests of the files here.
    """
    root = code_digest.ROOT
    if not there:
        raise ConfigError(f"{name}: there is no checkout that it would import. Put this one at {root} there.")
    if others := code_digest.differing_files(here, there):
        raise ConfigError(
            f"{name}: its code is not that of this machine: digest {code_digest.code_digest(there)}, here "
            f"{code_digest.code_digest(here)}; {len(others)} files differ, {others[0]} first. Bring {root} there to "
            "the commit of this machine."
        )


@contextmanager
def travelling(*modules: ModuleType) -> Iterator[None]:
    """Inside, their functions are sent whole to where they run, which may have other code of that name, or none."""
    for module in modules:
        ray.cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            ray.cloudpickle.unregister_pickle_by_value(module)


def pinned(work: Any, node: str) -> Any:
    """A task on that node, which claims nothing there."""
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(work).options(num_cpus=0, max_retries=0, scheduling_strategy=strategy)


def node_name(node: dict[str, Any]) -> str:
    """Of one of `ray.nodes()`: its host, or what it was named at `ray start`, and its address."""
    address, named = node["NodeManagerAddress"], node["NodeName"]
    return f"{node['NodeManagerHostname'] if named == address else named} ({address})"


def _files() -> dict[str, str]:
    """Runs on the node: digests of the code that a worker of the run would import there."""
    root = checkout()
    return code_digest.file_digests(root) if root else {}


def checkout() -> Path | None:
    """Where this process would import the project from."""
    found = importlib.util.find_spec("demopsd_dist")
    return Path(found.origin).parents[1] if found and found.origin else None
