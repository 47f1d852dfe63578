"""The fence around a run: what was started inside, children of children and orphans too, is gone at the end."""

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
from launch.processes import fenced

with fenced():
    subprocess.Popen([sys.executable, "-c", {PARENT!r}]).wait()  # its child, deaf to SIGTERM, is an orphan now
    subprocess.Popen(["sleep", "60"], start_new_session=True)
    print("ready", flush=True)
    THEN
"""


@pytest.mark.parametrize(("then", "code"), [("pass", 0), ("raise SystemExit(3)", 3), ("time.sleep(60)", 1)])
def test_nothing_outlives_the_fence(then: str, code: int) -> None:
    run = subprocess.Popen(
        [sys.executable, "-c", INSIDE.replace("THEN", then)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "ready\n"
    inside = psutil.Process(run.pid).children(recursive=True) if "sleep" in then else []
    if "sleep" in then:
        assert len(inside) == 2
        run.terminate()  # SIGTERM interrupts like Ctrl-C
    started = time.monotonic()
    found = run.wait(timeout=20)
    run.stdout.close()
    assert time.monotonic() - started < 10
    assert (found != 0) == (code != 0)
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in inside)
