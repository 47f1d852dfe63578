"""End of all processes started inside `fenced`, including grandchildren and orphans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from demopsd_dist.util.code_caches import private_folder
from demopsd_dist.util.temporary_files import FOLDER
from workers.cluster.leftovers import ray_folder, remove_leftovers

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
    assert len(inside) == 3, "the guardian, the orphan, and the one in a session of its own"
    started = time.monotonic()
    if end == "is terminated":
        run.terminate()  # SIGTERM interrupts like Ctrl-C
        run.wait(timeout=20)
    run.communicate("go on\n" if end != "is terminated" else None, timeout=20)
    assert time.monotonic() - started < 10
    assert (run.returncode == 0) == (end == "returns")
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in inside)


def start_inside() -> tuple[subprocess.Popen[str], list[psutil.Process]]:
    """A process inside a fence that waits, and its descendants."""
    run = subprocess.Popen(
        [sys.executable, "-c", INSIDE.replace("THEN", "pass")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "ready\n"
    return run, psutil.Process(run.pid).children(recursive=True)


def test_a_killed_driver_takes_orphans_and_other_sessions_with_it() -> None:
    run, inside = start_inside()
    run.kill()
    run.wait()
    _, left = psutil.wait_procs(inside, timeout=5)
    assert [one for one in left if one.status() != psutil.STATUS_ZOMBIE] == []


def test_a_signal_to_the_process_group_leaves_the_guardian() -> None:
    run, inside = start_inside()
    guardian = next(one for one in inside if any("_guardian.py" in word for word in one.cmdline()))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        guardian.send_signal(number)
    time.sleep(0.2)
    assert guardian.status() != psutil.STATUS_ZOMBIE
    assert os.getpgid(guardian.pid) != os.getpgid(run.pid)
    run.communicate("go on\n", timeout=20)


def test_a_hang_up_interrupts_and_is_ignored_under_nohup() -> None:
    run, _ = start_inside()
    run.send_signal(signal.SIGHUP)
    run.communicate(timeout=20)
    assert run.returncode != 0
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does; the child inherits it
    try:
        run, _ = start_inside()
    finally:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    run.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert run.poll() is None
    run.communicate("go on\n", timeout=20)
    assert run.returncode == 0


TEMPORARY = """
import tempfile
from pathlib import Path
from launch._processes import fenced

with fenced():
    path = Path(tempfile.mkstemp(prefix="vllm_dist_")[1])
    print(path, flush=True)
    input()
"""


def test_temporary_files_go_with_the_run_or_at_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))

    def start() -> tuple[subprocess.Popen[str], Path]:
        run = subprocess.Popen(
            [sys.executable, "-c", TEMPORARY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert run.stdout is not None
        path = Path(run.stdout.readline().strip())
        assert path.is_file()
        assert path.parent.parent == private_folder() / FOLDER
        return run, path

    run, ended = start()
    run.communicate("\n", timeout=20)
    assert not ended.parent.exists()
    run, killed = start()
    run.kill()
    run.wait()
    assert killed.exists()
    living, kept = start()
    assert not killed.parent.exists(), "removed at the next start"
    assert remove_leftovers() == 0
    assert kept.exists(), "its run lives"
    living.communicate("\n", timeout=20)


def test_a_worker_removes_the_temporary_files_of_killed_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    worker = (
        "import tempfile; from demopsd_dist.util.worker_setup import set_up_worker; set_up_worker(); "
        "print(tempfile.gettempdir(), flush=True); input()"
    )

    def start() -> tuple[subprocess.Popen[str], Path]:
        run = subprocess.Popen([sys.executable, "-c", worker], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert run.stdout is not None
        return run, Path(run.stdout.readline().strip())

    run, killed = start()
    other, kept = start()
    run.kill()
    run.wait()
    assert killed.is_dir()
    assert kept.is_dir()
    last, own = start()
    assert sorted((private_folder() / FOLDER).iterdir()) == sorted([kept, own])
    for each in (other, last):
        each.communicate("\n", timeout=20)


NESTED = """
import subprocess, sys, tempfile
from pathlib import Path
from launch._processes import fenced

with fenced():
    own = Path(tempfile.mkstemp()[1])
    inner = "from launch._processes import fenced\\nwith fenced(): pass"
    subprocess.run([sys.executable, "-c", inner], check=True)
    print(own.exists())
"""


def test_a_run_inside_another_leaves_the_temporary_files_of_the_outer_one(tmp_path: Path) -> None:
    variables = os.environ | {"RAY_TMPDIR": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", NESTED], env=variables, capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout == "True\n"


EARLIER = """
import os, subprocess
from launch import _guardian
from launch._processes import fenced

with fenced():
    mark = os.environ[_guardian.VARIABLE]
    earlier = subprocess.Popen(["sleep", "60"])
    with fenced():
        later = subprocess.Popen(["sleep", "60"])
    print(earlier.poll() is None, later.poll() is None, os.environ[_guardian.VARIABLE] == mark)
"""


def test_a_block_inside_another_ends_its_own_processes_alone() -> None:
    found = subprocess.run([sys.executable, "-c", EARLIER], capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout == "True False True\n"


def test_ray_sessions_of_ended_runs_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    ended = subprocess.Popen(["true"])
    ended.wait()
    served = f"session_2026-01-01_00-00-01_000000_{ended.pid}"
    sessions = {
        "ended": ray_folder() / f"session_2026-01-01_00-00-00_000000_{ended.pid}",
        "lives": ray_folder() / f"session_2026-01-01_00-00-00_000000_{os.getpid()}",
        "serves": ray_folder() / served,  # started by a command that has ended, as `ray start` does
        "other": ray_folder() / "prom_metrics_service_discovery.json",
    }
    for folder in sessions.values():
        folder.mkdir(parents=True)
    server = subprocess.Popen([sys.executable, "-c", "input()", served], stdin=subprocess.PIPE)
    try:
        assert remove_leftovers() == 1
    finally:
        server.communicate(b"\n")
    assert [name for name, folder in sessions.items() if not folder.exists()] == ["ended"]
