"""Files that ended runs have left on this machine: temporary folders and Ray's session folders."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

from demopsd_dist.util.code_caches import private_folder
from demopsd_dist.util.temporary_files import process_namespace, remove_left_temporary_folders

RAY = "ray"


def ray_folder() -> Path:
    """Folder of the sessions of Ray that runs of this machine start themselves. Another container that shares the
    temporary folder has its own: which of its processes live cannot be seen from here.

    Raises:
        ConfigError: there is no private folder (`private_folder`).
    """
    return private_folder() / f"{RAY}-{process_namespace()}"


def remove_leftovers() -> int:
    """Remove this user's temporary folders and Ray sessions whose processes have ended; the number of them."""
    return remove_left_temporary_folders() + sum(1 for _ in _removed_sessions())


def _removed_sessions() -> Iterator[Path]:
    sessions = [path for path in ray_folder().glob("session_*_*") if path.is_dir() and not path.is_symlink()]
    if not sessions:
        return
    used = " ".join(_command_lines())
    for session in sessions:
        pid = session.name.rpartition("_")[2]
        if pid.isdigit() and not psutil.pid_exists(int(pid)) and session.name not in used:
            shutil.rmtree(session, ignore_errors=True)
            yield session


def _command_lines() -> Iterator[str]:
    """Command lines of all processes; those of Ray name their session's folder."""
    for process in psutil.process_iter():
        try:
            yield " ".join(process.cmdline())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
