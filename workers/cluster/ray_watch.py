"""Watch over Ray's own processes: a run ends soon after one of them, instead of waiting for its answer."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

from demopsd_dist.util.errors import WorkerError

WATCHED = ("raylet", "gcs_server")
EVERY_S = 0.5
AGAIN_S = 3.0


def own_processes() -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """Processes that Ray runs for this driver, with their names; none where it joined a cluster."""
    from ray._private import worker

    node = worker._global_node
    for name, infos in node.all_processes.items() if node is not None else ():
        yield from ((name, info.process) for info in infos)


def ended_process() -> str | None:
    """Name and exit code of a process that this driver's Ray cannot work without and that has ended; None while all
    live."""
    for name, process in own_processes():
        if name in WATCHED and process.poll() is not None:
            return f"{name} (process {process.pid}, exit code {process.returncode})"
    return None


@asynccontextmanager
async def ended_with_ray() -> AsyncIterator[None]:
    """Cancel the block's task when a process of the driver's own Ray ends.

    Raises:
        WorkerError: one has ended.
    """
    task = asyncio.current_task()
    assert task is not None
    ended: list[str] = []

    async def watch() -> None:
        while (name := ended_process()) is None:
            await asyncio.sleep(EVERY_S)
        ended.append(name)
        while True:  # again where a cancellation ends one of several waits
            task.cancel()
            await asyncio.sleep(AGAIN_S)

    watching = asyncio.create_task(watch())
    try:
        yield
    except BaseException:
        if (name := ended[0] if ended else ended_process()) is None:
            raise
        raise WorkerError(
            f"Ray's {name} has ended, and with it all workers. The run can be resumed from its last checkpoint "
            "with --resume."
        ) from None
    finally:
        watching.cancel()
