"""The run folder: paths of the files of a run."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from demopsd_dist.config import Config, to_yaml
from demopsd_dist.util.errors import ConfigError, RunFolderError

CONFIG = "config.yaml"


class LockError(RunFolderError):
    """A file system keeps no file locks."""


@dataclass(frozen=True)
class RunFolder:
    """Folder with `config.yaml`, `inputs.json`, `metrics.jsonl`, `samples/`, `ledger.sqlite`, `checkpoints/`,
    `initial_responses.npz`, `replay/`, `trace-step-*.json`, `summary.json`, `report.html` and `student/`, a Hugging
    Face model folder."""

    path: Path

    @classmethod
    def create(cls, config: Config) -> RunFolder:
        """Create `output_dir/name`, or the first free `name-2`, `name-3`, ...: an earlier run is never overwritten.

        Raises:
            ConfigError: the folder cannot be made, written or locked.
        """
        parent = Path(config.output_dir)
        if not parent.is_dir() and os.path.lexists(parent):
            raise ConfigError(f"output_dir={parent} is a file, or a link to a folder that is not there. Name a folder.")
        candidates = [config.name] + [f"{config.name}-{i}" for i in range(2, 10_000)]
        for name in candidates:
            try:
                (parent / name).mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise ConfigError(f"output_dir={parent}: cannot make a run folder there ({error.strerror}).") from None
            folder = cls(parent / name)
            try:
                replace_text(folder.config, to_yaml(config))
                with folder.locked():
                    pass
            except RunFolderError as error:
                shutil.rmtree(folder.path, ignore_errors=True)
                if isinstance(error, LockError):
                    raise ConfigError(f"output_dir={parent}: {error}") from None
                cause = error.__context__.strerror if isinstance(error.__context__, OSError) else error
                raise ConfigError(
                    f"output_dir={parent}: cannot write the settings of the run there ({cause}). Free disk space, or "
                    "name another folder."
                ) from None
            return folder
        raise ConfigError(f"output_dir={parent} holds {len(candidates)} runs named {config.name}. Choose another name.")

    @classmethod
    def newest(cls, config: Config) -> RunFolder | None:
        """The folder with the highest number among the runs of this name in `output_dir`; None if there is none.

        Times of files do not count, since a copy changes them.
        """
        parent, name = Path(config.output_dir), re.compile(rf"{re.escape(config.name)}(?:-([1-9]\d*))?")
        matches = [(name.fullmatch(path.name), path) for path in parent.glob("*") if (path / CONFIG).is_file()]
        numbered = [(int(match[1] or 1), path) for match, path in matches if match and _has_name(path, config.name)]
        return cls(max(numbered)[1]) if numbered else None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder's lock: inside the block no other process runs in the folder.

        Raises:
            ConfigError: another process holds the lock.
            RunFolderError: the folder cannot be written.
            LockError: its file system keeps no locks.
        """
        with open_to_append(self._lock) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"{self.path} is in use by a running process. Stop that run first.") from None
            except OSError as error:
                raise LockError(
                    f"the file system of {self.path} keeps no file locks ({error.strerror}), so that two processes "
                    "could run in one folder. Mount it with locks (Lustre: flock), or name another folder."
                ) from None
            yield

    def in_use(self) -> bool:
        """True if a process on this machine, or on one that shares its file locks, holds the folder's lock."""
        try:
            with self.locked():
                return False
        except ConfigError:
            return True

    @property
    def _lock(self) -> Path:
        return self.path / ".lock"

    @property
    def config(self) -> Path:
        return self.path / CONFIG

    @property
    def inputs(self) -> Path:
        return self.path / "inputs.json"

    def read_inputs(self) -> dict[str, Any]:
        """Content of `inputs.json` (`run_inputs.py`); empty where the run has none.

        Raises:
            ConfigError: the file is damaged.
        """
        try:
            content = json.loads(self.inputs.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError):
            content = None
        if not isinstance(content, dict):
            raise ConfigError(f"{self.inputs} is damaged. Remove it; the inputs of the run are then not compared.")
        return content

    @property
    def identity(self) -> str | None:
        """Random name of the run, which its checkpoints carry; None for runs that have none."""
        return self.read_inputs().get("run")

    @property
    def student(self) -> Path:
        return self.path / "student"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def undone_metrics(self) -> Path:
        return self.path / "metrics-undone.jsonl"

    @property
    def ledger(self) -> Path:
        return self.path / "ledger.sqlite"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def initial_responses(self) -> Path:
        return self.path / "initial_responses.npz"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluations"

    @property
    def replay(self) -> Path:
        return self.path / "replay"

    def trace(self, step: int) -> Path:
        return self.path / f"trace-step-{step:06d}.json"

    def operations(self, step: int) -> Path:
        """Folder of the operations of torch in a profiled step."""
        return self.path / f"operations-step-{step:06d}"

    def start_error(self, rank: int) -> Path:
        """Full text of the failed start of a rollout worker's engine."""
        return self.path / "errors" / f"rollout-{rank}-start.txt"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def write_summary(self, summary: dict[str, Any]) -> None:
        replace_text(self.summary, json.dumps(summary, indent=2) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a file atomically: a reader sees the old text or the new one.

    Raises:
        RunFolderError: it cannot be written; the old file is intact.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Context that gives a path to write to; what is written there takes the place of the file at the end.

    Raises:
        RunFolderError: it cannot be written; the old file is intact, and nothing else is left.
    """
    temporary = path.with_name(f".{path.name}.new")
    with writing(path):
        try:
            yield temporary
            temporary.rename(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Context in which an error of the file system becomes a RunFolderError that names the file."""
    try:
        yield
    except OSError as error:
        raise RunFolderError(
            f"{path} cannot be written: {error}. Free disk space or repair the disk, then resume."
        ) from None


def _has_name(path: Path, name: str) -> bool:
    """True unless the settings of the run in this folder give it another name, as `sweep-9` beside `sweep`."""
    try:
        text = (path / CONFIG).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return True
    match = re.search(r"^name: (.*)$", text, re.MULTILINE)
    return match is None or match[1].strip().strip("'\"") == name


def open_to_append(path: Path) -> TextIO:
    """Open a text file of the run folder to append to it.

    Raises:
        RunFolderError: the folder is read-only, the disk full, or the file of another kind.
    """
    with writing(path):
        return path.open("a", encoding="utf-8")
