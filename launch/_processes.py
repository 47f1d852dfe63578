"""No process of a run outlives it: whatever the driver started, directly or not, is ended with it.

Linux only (elsewhere Ray's own shutdown has to do). The driver makes itself the reaper of its orphaned descendants, so
that a Ray or engine process whose parent died still counts as its own.
"""

from __future__ import annotations

import ctypes
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil

_PR_SET_CHILD_SUBREAPER = 36
GRACE_S = 3.0


@contextmanager
def fenced() -> Iterator[None]:
    """Inside, SIGTERM interrupts like Ctrl-C; at the end, however it comes, every descendant is gone.

    While it cleans up, further interrupts are ignored: it takes a few seconds at most.
    """
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
    """Ray's own shutdown, with a bound: it may wait for a process that no longer answers."""
    ray = sys.modules.get("ray")
    if ray is None:
        return
    thread = threading.Thread(target=ray.shutdown, daemon=True)
    thread.start()
    thread.join(GRACE_S)


def end_descendants(politely: bool = True) -> None:
    """Ask politely, then kill; orphans of what was killed come to us and are killed too."""
    ask = psutil.Process.terminate if politely else psutil.Process.kill
    for end in (ask, psutil.Process.kill, psutil.Process.kill):
        alive = psutil.Process().children(recursive=True)
        if not alive:
            return
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                end(process)
        psutil.wait_procs(alive, timeout=GRACE_S / 2)
