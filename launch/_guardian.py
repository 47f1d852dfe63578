"""Guardian of a run: a process that outlives the driver and ends all that the driver has started on this machine.

Run by path with the standard library alone: `python -I -S _guardian.py MARK`. Standard input is a pipe from the driver.
When the driver ends, however it ends, the pipe closes. Then every process of this user with the mark in its environment
is killed: Ray's processes and engines, and what they have started themselves, such as compilers.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

VARIABLE = "DEMOPSD_RUN_MARK"
ROUNDS, PAUSE_S = 20, 0.05  # a process that is killed may have started another just before


def main(mark: str) -> None:
    """Wait for the end of the driver, then kill what it has left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    while os.read(0, 1):
        pass
    for _ in range(ROUNDS):
        for pid in marked(mark):
            try:
                os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                continue
        time.sleep(PAUSE_S)
        if not marked(mark):
            return


def marked(mark: str) -> list[int]:
    """Ids of the living processes that inherited the mark from the driver, this one aside."""
    wanted = f"{VARIABLE}={mark}".encode()
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:  # it has ended, is a zombie or another user's
            continue
    return found


if __name__ == "__main__":
    main(sys.argv[1])
