"""Code check: every node that a run uses must have the driver's code; a node with other code is refused by name."""

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

_NODE_LOST = (NodeDiedError, TaskUnschedulableError)
_checked: set[str] = set()  # nodes that have the driver's code, by Ray's id


async def refuse_other_code(nodes: Iterable[str], within_s: float) -> None:
    """Compare the code of nodes that were not checked before with the driver's; the driver's own node is not compared.

    Args:
        nodes: by Ray's id.
        within_s: time limit, seconds.

    Raises:
        ConfigError: a node's code differs, or no worker of this code can start there.
        WorkerError: a node did not answer.
    """
    unchecked = sorted(set(nodes) - _checked - {ray.get_runtime_context().get_node_id()})
    if not unchecked:
        return
    with pickled_by_value(sys.modules[__name__], code_digest):
        answers = {node: asyncio.wrap_future(task_on_node(_file_digests, node).remote().future()) for node in unchecked}
    await asyncio.wait(answers.values(), timeout=within_s)
    driver_files = code_digest.file_digests()
    names = {node["NodeID"]: node_name(node) for node in ray.nodes()}
    for node, answer in answers.items():
        name = names.get(node, node)
        if not answer.done() or isinstance(answer.exception(), _NODE_LOST):
            answer.cancel()
            raise WorkerError(
                f"{name} did not report its code within {within_s:g} s: it has ended or hangs. Restart Ray there."
            )
        if isinstance(error := answer.exception(), RayError):
            last = str(error).strip().splitlines()[-1]
            raise ConfigError(
                f"{name}: no worker of the run can start there. Copy {code_digest.ROOT} of this machine there. ({last})"
            )
        _refuse_other(name, driver_files, answer.result())
        _checked.add(node)


def _refuse_other(name: str, driver_files: dict[str, str], node_files: dict[str, str]) -> None:
    """Compare digests of files, here and on a node.

    Raises:
        ConfigError: they differ.
    """
    root = code_digest.ROOT
    if not node_files:
        raise ConfigError(f"{name}: it has no checkout of the project. Copy this machine's to {root} there.")
    if differing := code_digest.differing_files(driver_files, node_files):
        raise ConfigError(
            f"{name}: its code is not that of this machine: digest {code_digest.code_digest(node_files)}, here "
            f"{code_digest.code_digest(driver_files)}; {len(differing)} files differ, {differing[0]} first. Bring "
            f"{root} there to the commit of this machine."
        )


@contextmanager
def pickled_by_value(*modules: ModuleType) -> Iterator[None]:
    """Context in which the modules' functions travel with their code to a node that may have other code, or none."""
    for module in modules:
        ray.cloudpickle.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            ray.cloudpickle.unregister_pickle_by_value(module)


def task_on_node(function: Any, node: str) -> Any:
    """Ray task that runs the function on a node and claims no resources there."""
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=strategy)


def node_name(node: dict[str, Any]) -> str:
    """Host of one of `ray.nodes()`, or its name given at `ray start`, and its address."""
    address, name = node["NodeManagerAddress"], node["NodeName"]
    return f"{node['NodeManagerHostname'] if name == address else name} ({address})"


def _file_digests() -> dict[str, str]:
    """Digests of the code that a worker of the run would import. Runs on the node."""
    root = code_root()
    return code_digest.file_digests(root) if root else {}


def code_root() -> Path | None:
    """Folder that this process would import the project from."""
    spec = importlib.util.find_spec("demopsd_dist")
    return Path(spec.origin).parents[1] if spec and spec.origin else None
