"""End of all processes started inside `fenced`, including grandchildren and orphans."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {DEAF!r}])"
INSIDE = f"""
import subprocess, sys, time
from launch._processes import fenced

with fenced():
    subprocess.Popen([sys.executable, "-c", {PARENT!r}]).wait()  # its child, deaf to SIGTERM, is an orphan now
    subprocess.Popen(["sleep", "60"], start_new_session=True)
    print("ready", flush=True)
    input()
    THEN
"""


@pytest.mark.parametrize("end", ["returns", "raise SystemExit(3)", "is terminated"])
def test_nothing_outlives_the_fence(end: str) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", INSIDE.replace("THEN", end if end.startswith("raise") else "pass")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "ready\n"
    inside = psutil.Process(run.pid).children(recursive=True)
    assert len(inside) == 2, "the orphan is ours, and the one in a session of its own"
    started = time.monotonic()
    if end == "is terminated":
        run.terminate()  # SIGTERM interrupts like Ctrl-C
        run.wait(timeout=20)
    run.communicate("go on\n" if end != "is terminated" else None, timeout=20)
    assert time.monotonic() - started < 10
    assert (run.returncode == 0) == (end == "returns")
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in inside)
