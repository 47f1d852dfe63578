"""The ledger of a run: `ledger.sqlite` in the run folder, an append-only record of the events of every sample.

A sample goes issued -> generated -> rewarded -> scored -> trained, or is dropped on the way for a stated reason. A run
that starts, resumes or goes back to a checkpoint begins a new *life* (a row of table `lives`) after the step of that
checkpoint; the life undoes the later steps of earlier lives. `audit.py` checks the ledger.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path

from demopsd_dist.data.records import Prompt, Rollout, TrainingExample
from demopsd_dist.util.errors import RunFolderError

_FULL_BYTES = 1 << 20  # SQLite needs more than this to write and to index its journal
LOCKED_S = 60.0  # a reader of the run, a backup or a viewer may hold the lock for a while

SCHEMA = """
CREATE TABLE lives (
    life INTEGER PRIMARY KEY, from_step INTEGER NOT NULL, why TEXT NOT NULL, began REAL NOT NULL);
CREATE TABLE events (
    id INTEGER PRIMARY KEY, life INTEGER NOT NULL, step INTEGER NOT NULL, event TEXT NOT NULL, prompt TEXT NOT NULL,
    sample INTEGER NOT NULL, attempt INTEGER, worker INTEGER, oldest_version INTEGER, newest_version INTEGER,
    reason TEXT);
CREATE TABLE steps (
    id INTEGER PRIMARY KEY, life INTEGER NOT NULL, step INTEGER NOT NULL, samples INTEGER NOT NULL,
    ended REAL NOT NULL);
"""
APPEND_ONLY = "".join(
    f"CREATE TRIGGER {table}_{verb} BEFORE {verb} ON {table} BEGIN SELECT RAISE(ABORT, 'only added to'); END;"
    for table in ("lives", "events", "steps")
    for verb in ("UPDATE", "DELETE")
)

WENT_BACK = "went back"
"""Beginning of the reason of a life that began because the alarm sent the run back."""


class LedgerEvent(Enum):
    """Events of a sample, in the order in which they happen."""

    issued = "issued"
    generated = "generated"
    rewarded = "rewarded"
    scored = "scored"
    trained = "trained"
    dropped = "dropped"


class DropReason(Enum):
    """Reason that a sample was not trained."""

    no_example = "no example"  # its group gives it no training example
    no_reward = "no reward"  # the user's own reward failed on it, and reward_errors is drop
    late = "late"  # not finished within rollout.late_group_s
    not_needed = "not needed"  # its step had enough other groups with a signal


Row = tuple[int, int, str, str, int, int | None, int | None, int | None, int | None, str | None]


class Ledger:
    """Writer of the ledger. Steps are counted from 1: the k-th optimizer step trains the samples of step k.

    Samples in flight when the process dies may lack their last events, never their first: `issued` is on disk before a
    sample is requested, and all events of a step are on disk before its row in `steps`.

    Args:
        locked_s: seconds to wait while another process holds the file's lock.

    Raises:
        RunFolderError: from every method, if the file cannot be written; a process that locks it is named.
    """

    def __init__(self, path: Path, locked_s: float = LOCKED_S) -> None:
        self._path, self._locked_s = path, locked_s
        self._waiting: list[Row] = []
        fresh = not path.exists()
        try:
            self._file = sqlite3.connect(path, timeout=locked_s, isolation_level=None)
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=NORMAL")
            if fresh:
                self._file.executescript(SCHEMA + APPEND_ONLY)
            (last,) = self._file.execute("SELECT coalesce(max(life), 0) FROM lives").fetchone()
        except sqlite3.Error as error:
            raise self._failed(error) from None
        self._life: int = last

    def begin(self, from_step: int, why: str) -> None:
        """Begin a new life after `from_step`."""
        self._waiting.clear()  # events of the life before, of steps that are undone
        self._life += 1
        self._write("INSERT INTO lives VALUES (?, ?, ?, ?)", [(self._life, from_step, why, time.time())])

    @property
    def rollbacks(self) -> int:
        """Number of lives that began because the alarm sent the run back."""
        (count,) = self._file.execute("SELECT count(*) FROM lives WHERE why LIKE ?", [f"{WENT_BACK}%"]).fetchone()
        return int(count)

    def issued(self, step: int, prompts: Sequence[Prompt], samples: int) -> None:
        """Record that `samples` samples of each prompt are about to be requested; on disk at return."""
        self._add(step, LedgerEvent.issued, ((prompt.id, sample) for prompt in prompts for sample in range(samples)))
        self._flush()

    def generated(self, step: int, rollouts: Sequence[Rollout], unrewarded: Sequence[Rollout] = ()) -> None:
        """Record rollouts that were generated and rewarded, and those dropped because the reward failed on them."""
        for rollout in [*rollouts, *unrewarded]:
            versions = int(rollout.version_T[0]), int(rollout.version_T[-1])
            name = rollout.prompt.id, rollout.sample
            self._waiting.append(
                (self._life, step, LedgerEvent.generated.value, *name, rollout.attempt, rollout.worker, *versions, None)
            )
        self._add(step, LedgerEvent.rewarded, _names(rollouts))
        self.dropped(step, _names(unrewarded), DropReason.no_reward)

    def scored(self, step: int, examples: Sequence[TrainingExample]) -> None:
        """Record that the examples were scored, with the source of each teacher's solution as the reason."""
        for example in examples:
            self._add(step, LedgerEvent.scored, _names([example.rollout]), example.source)

    def dropped(self, step: int, samples: Iterable[tuple[str, int]], reason: DropReason) -> None:
        self._add(step, LedgerEvent.dropped, samples, reason.value)

    def trained(self, step: int, examples: Sequence[TrainingExample], samples: int) -> None:
        """Record that the step is done: it trained on these examples, of `samples` rollouts rewarded for it."""
        self._add(step, LedgerEvent.trained, _names([example.rollout for example in examples]))
        self._flush((self._life, step, samples, time.time()))

    @property
    def position(self) -> int:
        """Number of events that are on disk."""
        (position,) = self._file.execute("SELECT coalesce(max(id), 0) FROM events").fetchone()
        return int(position)

    def close(self) -> None:
        self._flush()
        self._file.close()

    def _add(
        self, step: int, event: LedgerEvent, samples: Iterable[tuple[str, int]], reason: str | None = None
    ) -> None:
        nothing = (None, None, None, None)
        self._waiting += [(self._life, step, event.value, *name, *nothing, reason) for name in samples]

    def _flush(self, step: tuple[int, int, int, float] | None = None) -> None:
        rows, self._waiting = self._waiting, []
        self._write(f"INSERT INTO events VALUES (NULL{', ?' * 10})", rows, step)

    def _write(self, statement: str, rows: Sequence[tuple], step: tuple[int, int, int, float] | None = None) -> None:
        try:
            self._file.execute("BEGIN IMMEDIATE")  # waits for the lock here, not in the middle of the rows
            self._file.executemany(statement, rows)
            if step is not None:
                self._file.execute("INSERT INTO steps VALUES (NULL, ?, ?, ?, ?)", step)
            self._file.execute("COMMIT")
        except sqlite3.Error as error:
            if self._file.in_transaction:
                with suppress(sqlite3.Error):
                    self._file.execute("ROLLBACK")
            raise self._failed(error) from None

    def _failed(self, error: sqlite3.Error) -> RunFolderError:
        if getattr(error, "sqlite_errorcode", None) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            other_processes = ", ".join(other_users_of(self._path)) or "a process that cannot be seen from this machine"
            return RunFolderError(
                f"{self._path} was locked by another process for {self._locked_s:g} s: {other_processes}. No step is "
                "trained without its ledger; end that process, then resume from the last checkpoint."
            )
        return RunFolderError(
            f"{self._path} cannot be written: {error}{_where_full(self._path.parent)}. No step is trained without its "
            "ledger; free disk space or repair the disk, then resume from the last checkpoint."
        )


def _where_full(folder: Path) -> str:
    """Text that says that the volume of a folder is full, which SQLite may call an I/O error; empty where it is not."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return ""
    return f" (No space left on device: {free} bytes are free)" if free < _FULL_BYTES else ""


def other_users_of(path: Path) -> list[str]:
    """Other processes of this machine that have the file open: "process 123 (sqlite3 ledger.sqlite)". Linux only."""
    users = []
    for descriptors in Path("/proc").glob("[0-9]*/fd"):
        process = descriptors.parent
        if process.name == str(os.getpid()):
            continue
        with suppress(OSError):  # it has ended, or belongs to another user
            if any(os.path.realpath(open_file) == os.path.realpath(path) for open_file in descriptors.iterdir()):
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                users.append(f"process {process.name} ({command[:80]})")
    return users


def _names(rollouts: Iterable[Rollout]) -> Iterable[tuple[str, int]]:
    return ((rollout.prompt.id, rollout.sample) for rollout in rollouts)
