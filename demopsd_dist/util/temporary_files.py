"""Temporary files of a run: in a folder of the process that started it, which is removed with it or at the next start.

Engines and libraries leave files in the temporary folder when they are killed. A folder carries the machine's boot and
the namespace of process ids in its name, since several machines or containers may share the place. Imports the standard
library alone.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zlib
from functools import lru_cache
from pathlib import Path

from demopsd_dist.util.code_caches import MACHINE_TMPDIR, create_private, keep_compiler_headers, private_folder

FOLDER = "tmp"


def use_own_temporary_folder() -> Path:
    """Point this process and its children to a temporary folder of their own, unless the parent has done so.

    Raises:
        ConfigError: there is no private folder (`private_folder`).
    """
    root = private_folder() / FOLDER
    current = Path(tempfile.gettempdir())
    if current.parent == root and current.is_dir():
        return current
    os.environ.setdefault(MACHINE_TMPDIR, str(current))
    create_private(root, str(root.parent))
    folder = root / _own_name()
    create_private(folder, str(root))
    keep_compiler_headers(folder)
    os.environ["TMPDIR"] = str(folder)
    tempfile.tempdir = None  # read again
    return folder


def remove_own_temporary_folder(folder: Path) -> None:
    """Remove the folder with all that is in it; later files of this process go to the machine's temporary folder. A
    folder that the parent has made is the parent's to remove."""
    if folder.name != _own_name():
        return
    os.environ["TMPDIR"] = os.environ.pop(MACHINE_TMPDIR, tempfile.gettempdir())
    tempfile.tempdir = None
    shutil.rmtree(folder, ignore_errors=True)


def remove_left_temporary_folders() -> int:
    """Remove the folders of processes that have ended; the number of them."""
    removed = 0
    for folder in (private_folder() / FOLDER).glob("*-*"):
        if is_left(folder):
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
    return removed


def is_left(folder: Path) -> bool:
    """Whether this is the temporary folder of a process of this machine that has ended."""
    place, _, process = folder.name.partition("-")
    pid, _, ticks = process.partition("-")
    return place == process_namespace() and pid.isdigit() and started_ticks(int(pid)) != ticks


def _own_name() -> str:
    return f"{process_namespace()}-{os.getpid()}-{started_ticks(os.getpid())}"


@lru_cache(maxsize=1)
def process_namespace() -> str:
    """Six characters for the place in which a process id names one process: this boot of the machine, and the namespace
    of process ids."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    namespace = Path("/proc/self/ns/pid")
    known = [boot.read_text(encoding="ascii")] if boot.exists() else []
    known += [os.readlink(namespace)] if namespace.is_symlink() else []
    return f"{zlib.crc32(''.join(known).encode()) & 0xFFFFFF:06x}"


def started_ticks(pid: int) -> str | None:
    """Start time of a process in the kernel's clock ticks, which tells apart two processes of one id; None if there is
    no such process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]
