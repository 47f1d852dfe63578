"""A process that ends with the one that started it, however that ended."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Linux only; elsewhere nothing happens.

    Ray's workers get this too. By themselves they look whether the process id of their raylet still exists, which it
    does for ever where nobody reaps it: in a container whose first process is not an init.
    """
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended in between
        os.kill(os.getpid(), signal.SIGKILL)
