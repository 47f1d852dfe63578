"""Processes of a training run: its own, and those by the mark in their environment, or by their role."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
STOP_S = 120.0  # from the request to stop to the end of a run

MARK = "DEMOPSD_TEST_MARK"  # environment variable that all processes of a marked run inherit
ROLES = ("rollout", "teacher", "learner")


@contextmanager
def training_process(words: Sequence[str], log: Path) -> Iterator[psutil.Popen]:
    """A process of `demopsd train` with these words, and its output in a file. Where the block is left before it has
    ended, it is asked to stop."""
    command = [sys.executable, "-m", "launch.train", *words]
    with log.open("w") as output:
        process = psutil.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=STOP_S)


def marked(mark: str) -> list[psutil.Process]:
    """Living processes that inherited this mark, except this one."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return [process for process in found if process.pid != os.getpid()]


def end_marked(mark: str, within_s: float) -> list[psutil.Process]:
    """Processes with this mark that are left after that time; they are killed."""
    give_up = time.monotonic() + within_s
    while (left := marked(mark)) and time.monotonic() < give_up:
        time.sleep(0.2)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return left


def role_processes(role: str) -> list[psutil.Process]:
    """Living processes of a role that descend from this one."""
    return of_role(role, psutil.Process().children(recursive=True))


def of_role(role: str, processes: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Workers of a role among these processes."""
    name = f"ray::{role.capitalize()}Worker"
    return [process for process in processes if name in command_of(process)]


def command_of(process: psutil.Process) -> str:
    """Command line of a process; empty if it has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def name_of(process: psutil.Process) -> str:
    """Name of a process; empty if it has ended."""
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return ""
