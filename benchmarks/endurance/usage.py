"""Readings of what the processes of a run hold, and of the files that it has written."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

MIB = 1 << 20
SHARED_MEMORY = Path("/dev/shm")
_ACTOR = re.compile(r"ray::(\w+)")
_SESSION = re.compile(r"--session-dir=(\S+)")
RAY_SERVERS = ("raylet", "gcs_server")


@dataclass(frozen=True)
class Usage:
    """One reading, after a step of the run.

    Attributes:
        seconds: since the start of the run.
        memory_mib: memory that only processes of this role hold (unique set size).
        open_files: file descriptors by role.
        processes: number of processes by role.
        shared_mib: shared memory. `segments` are the files of /dev/shm, those of other programs included; `object
            store` is what Ray's raylet has touched of its own.
        written_mib: files of the run folder by kind, and the logs of Ray's session.
    """

    step: int
    seconds: float
    memory_mib: dict[str, float]
    open_files: dict[str, int]
    processes: dict[str, int]
    shared_mib: dict[str, float]
    written_mib: dict[str, float]

    def values(self) -> dict[str, float]:
        """All quantities by name, such as `memory: driver`."""
        groups: dict[str, Mapping[str, float]] = {
            "memory": self.memory_mib,
            "open files": self.open_files,
            "processes": self.processes,
            "shared memory": self.shared_mib,
            "written": self.written_mib,
        }
        return {f"{group}: {name}": float(value) for group, values in groups.items() for name, value in values.items()}

    def to_json(self) -> dict[str, Any]:
        """The reading as plain values."""
        return asdict(self)


def read_usage(driver: psutil.Process, folder: Path, step: int, seconds: float) -> Usage:
    """Read the driver, all its descendants and the run folder. A process that ends meanwhile is left out."""
    memory: Counter[str] = Counter()
    files: Counter[str] = Counter()
    processes: Counter[str] = Counter()
    object_store, session = 0.0, None
    for process in [driver, *driver.children(recursive=True)]:
        try:
            command = process.cmdline()
            role = "driver" if process == driver else role_of(process.name(), command)
            held, opened = process.memory_full_info(), process.num_fds()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        memory[role] += held.uss
        files[role] += opened
        processes[role] += 1
        if role == "raylet":
            object_store += held.shared
        if found := _SESSION.search(" ".join(command)):
            session = Path(found[1])
    written = written_bytes(folder)
    if session is not None:
        written["logs of Ray"] = size_of(session / "logs")
    return Usage(
        step=step,
        seconds=round(seconds, 1),
        memory_mib=_mib(memory),
        open_files=dict(sorted(files.items())),
        processes=dict(sorted(processes.items())),
        shared_mib=_mib({"segments": size_of(SHARED_MEMORY), "object store": object_store}),
        written_mib=_mib(written),
    )


def role_of(name: str, command: list[str]) -> str:
    """Role of a process in a run: an actor's class, a server of Ray, or `other processes of Ray`."""
    if found := _ACTOR.match(command[0] if command else ""):
        return {"RolloutWorker": "rollout", "TeacherWorker": "teacher", "LearnerWorker": "learner"}.get(
            found[1], "other processes of Ray"
        )
    return name if name in RAY_SERVERS else "other processes of Ray"


def written_bytes(folder: Path) -> dict[str, int]:
    """Bytes of a run folder by file or subfolder; the ledger with the files of its journal."""
    sizes: Counter[str] = Counter()
    for path in folder.glob("*"):
        kind = "ledger" if path.name.startswith("ledger.") else path.stem
        sizes[kind] += size_of(path)
    return {kind: size for kind, size in sorted(sizes.items()) if size}


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; a file that is removed meanwhile counts nothing."""
    total = 0
    for file in [path, *path.rglob("*")]:
        try:
            total += file.stat().st_size if file.is_file() else 0
        except OSError:
            continue
    return total


def _mib(sizes: dict[str, Any] | Counter[str]) -> dict[str, float]:
    return {name: round(size / MIB, 3) for name, size in sorted(sizes.items())}
