"""Processes of a training run: by the mark in their environment, or by their role."""

from __future__ import annotations

import os
import time
from contextlib import suppress

import psutil

MARK = "DEMOPSD_TEST_MARK"  # environment variable that all processes of a marked run inherit
ROLES = ("rollout", "teacher", "learner")


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
    name = f"ray::{role.capitalize()}Worker"
    return [process for process in psutil.Process().children(recursive=True) if name in command_of(process)]


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
