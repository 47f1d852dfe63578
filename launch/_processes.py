"""End of every process that a run has started, directly or indirectly.

Linux only; elsewhere Ray's own shutdown must suffice. The driver makes itself the reaper of its orphaned descendants,
so that a Ray or engine process whose parent died is still among its children.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

from demopsd_dist.util.code_caches import keep_code_caches_private

_PR_SET_CHILD_SUBREAPER = 36
GRACE_S = 3.0


@contextmanager
def fenced() -> Iterator[None]:
    """End all descendants when the block is left, however it ends; inside, SIGTERM interrupts like Ctrl-C, and caches
    of compiled code lie in a private folder.

    Further interrupts are ignored during the cleanup, which takes a few seconds at most.

    Raises:
        ConfigError: there is no private folder (`keep_code_caches_private`).
    """
    keep_code_caches_private()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        shut_down_ray()
        end_descendants()
        signal.signal(signal.SIGTERM, previous)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def shut_down_ray() -> None:
    """Shut Ray down within `GRACE_S`: its own shutdown may wait for a process that no longer answers."""
    ray = sys.modules.get("ray")
    if ray is None:
        return
    thread = threading.Thread(target=ray.shutdown, daemon=True)
    thread.start()
    thread.join(GRACE_S)


def end_descendants(politely: bool = True) -> None:
    """Terminate all descendants, then kill the rest; orphans of killed processes become children and are killed too."""
    ask = psutil.Process.terminate if politely else psutil.Process.kill
    for end in (ask, psutil.Process.kill, psutil.Process.kill):
        alive = psutil.Process().children(recursive=True)
        if not alive:
            return
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                end(process)
        psutil.wait_procs(alive, timeout=GRACE_S / 2)
