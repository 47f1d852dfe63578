"""Orderly end of a run at SIGINT, SIGTERM, SIGHUP (terminal closed) and SIGUSR1 (SLURM, before it pre-empts)."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from demopsd_dist.training.run import StopRequest
from launch._processes import end_descendants, handle_unless_ignored, leave_closed_terminal

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
INTERRUPTED = 130


@contextmanager
def stopped_by_signals(stop: StopRequest, within_s: float, say: Callable[[str], None]) -> Iterator[None]:
    """Handle signals inside the block, in a running event loop.

    The first signal asks the run to stop, and cancels it if it has not stopped within `within_s`. A second ends the
    process and all that it has started at once; the run can be resumed from its last checkpoint.
    """
    loop, run = asyncio.get_running_loop(), asyncio.current_task()
    assert run is not None
    stopping = False

    def ask(name: str) -> None:
        say(f"{name}: the step is finished or dropped, then saved; a second signal ends the run at once")
        stop.request()
        loop.call_later(within_s, run.cancel)

    def on_signal(number: int, _: object) -> None:
        nonlocal stopping
        if number == signal.SIGHUP:
            leave_closed_terminal()
        if stopping:
            end_descendants(politely=False)
            sys.stdout.write("\x1b[?25h" if sys.stdout.isatty() else "")  # the cursor, which a progress bar hides
            sys.stdout.flush()
            os._exit(INTERRUPTED)
        stopping = True
        loop.call_soon_threadsafe(ask, signal.Signals(number).name)

    before = handle_unless_ignored(SIGNALS, on_signal)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
