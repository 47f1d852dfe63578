"""Parent-death signal: a process is killed when its parent ends, however it ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent ends. Linux only; no effect elsewhere.

    Ray's workers call this too. Ray's own check asks whether the process id of their raylet still exists, and a dead
    raylet's id exists forever where no process reaps it: in a container whose first process is not an init.
    """
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the call took effect
        os.kill(os.getpid(), signal.SIGKILL)
