"""End of every process that a run has started, directly or indirectly.

Linux only; elsewhere Ray's own shutdown must suffice. The driver makes itself the reaper of its orphaned descendants,
so that a Ray or engine process whose parent died is still among its children. If the driver itself is killed, its
guardian (`launch/_guardian.py`) ends them.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import psutil

from demopsd_dist.util.code_caches import keep_code_caches_private
from demopsd_dist.util.temporary_files import remove_own_temporary_folder, use_own_temporary_folder
from launch import _guardian
from workers.cluster.leftovers import remove_leftovers

_PR_SET_CHILD_SUBREAPER = 36
GRACE_S = 3.0
Handler = Callable[[int, FrameType | None], None]


@contextmanager
def fenced() -> Iterator[None]:
    """End all processes that the block has started, and the Ray that it has started, when the block is left, by an
    error too. Inside, SIGTERM and SIGHUP interrupt like Ctrl-C, caches of compiled code lie in a private folder, and
    temporary files in one that is removed at the end; leftovers of ended runs are removed first.

    Further interrupts are ignored during the cleanup, which takes a few seconds at most.

    Raises:
        ConfigError: no folder can be made that only this user may write to (`private_folder`).
    """
    keep_code_caches_private()
    remove_leftovers()
    temporary = use_own_temporary_folder()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    earlier, had_ray = {child.pid for child in psutil.Process().children()}, in_ray()
    outer = os.environ.get(_guardian.VARIABLE)
    guardian = start_guardian()
    previous = handle_unless_ignored((signal.SIGTERM, signal.SIGHUP), _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for number in previous:
            signal.signal(number, signal.SIG_IGN)
        if not had_ray:
            shut_down_ray()
        end_descendants(spared={*earlier, guardian.pid})
        dismiss(guardian)
        if outer is not None:
            os.environ[_guardian.VARIABLE] = outer
        remove_own_temporary_folder(temporary)
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def start_guardian() -> subprocess.Popen[bytes]:
    """Start the process that ends all others of this run if this one is killed. Processes started from now on carry
    the mark by which it finds them."""
    mark = uuid.uuid4().hex
    command = [sys.executable, "-I", "-S", _guardian.__file__, mark]
    # A session of its own, where no signal to the run's process group reaches it.
    guardian = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    os.environ[_guardian.VARIABLE] = mark
    return guardian


def dismiss(guardian: subprocess.Popen[bytes]) -> None:
    """Let the guardian end what is left and end itself."""
    os.environ.pop(_guardian.VARIABLE, None)
    assert guardian.stdin is not None
    guardian.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        guardian.wait(GRACE_S)


def handle_unless_ignored(numbers: Iterable[int], handler: Handler) -> dict[int, Any]:
    """Set the handler of each of these signals, except where it is ignored, as SIGHUP is under nohup.

    Returns:
        The handlers before, by signal.
    """
    before = {number: signal.getsignal(number) for number in numbers}
    for number, earlier in before.items():
        if earlier is not signal.SIG_IGN:
            signal.signal(number, handler)
    return before


def leave_closed_terminal() -> None:
    """Direct output that goes to a terminal to nowhere: after SIGHUP, writing to it would fail."""
    for number in (1, 2):
        if os.isatty(number):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)
            os.close(null)


def _interrupt(number: int, _: object) -> None:
    if number == signal.SIGHUP:
        leave_closed_terminal()
    raise KeyboardInterrupt


def in_ray() -> bool:
    """Whether this process has started Ray, or joined a cluster."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


def shut_down_ray() -> None:
    """Shut Ray down within `GRACE_S`: its own shutdown may wait for a process that no longer answers."""
    ray = sys.modules.get("ray")
    if ray is None:
        return
    thread = threading.Thread(target=ray.shutdown, daemon=True)
    thread.start()
    thread.join(GRACE_S)


def end_descendants(politely: bool = True, spared: Collection[int] = ()) -> None:
    """Terminate all descendants, then kill the rest; orphans of killed processes become children and are killed too.

    Args:
        spared: process ids of children that stay, with their own descendants.
    """
    ask = psutil.Process.terminate if politely else psutil.Process.kill
    for end in (ask, psutil.Process.kill, psutil.Process.kill):
        alive = _descendants_except(spared)
        if not alive:
            return
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                end(process)
        psutil.wait_procs(alive, timeout=GRACE_S / 2)


def _descendants_except(spared: Collection[int]) -> list[psutil.Process]:
    found = [child for child in psutil.Process().children() if child.pid not in spared]
    for child in list(found):
        with suppress(psutil.NoSuchProcess):
            found += child.children(recursive=True)
    return found
