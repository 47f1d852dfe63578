"""The account of every sample: `ledger.sqlite` in the run folder, which is only ever added to.

A sample goes issued -> generated -> rewarded -> scored -> trained, or is dropped on the way for a stated reason. A run
that starts, resumes or goes back to a checkpoint begins a new life after the step of that checkpoint; whatever earlier
lives did beyond that step is undone by it. `audit.py` draws the account.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterable, Sequence
from enum import Enum
from pathlib import Path

from demopsd_dist.data.records import Prompt, Rollout, TrainingExample
from demopsd_dist.util.errors import RunFolderError

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
ONLY_ADDED_TO = "".join(
    f"CREATE TRIGGER {table}_{verb} BEFORE {verb} ON {table} BEGIN SELECT RAISE(ABORT, 'only added to'); END;"
    for table in ("lives", "events", "steps")
    for verb in ("UPDATE", "DELETE")
)


class LedgerEvent(Enum):
    issued = "issued"
    generated = "generated"
    rewarded = "rewarded"
    scored = "scored"
    trained = "trained"
    dropped = "dropped"


class DropReason(Enum):
    """Why a sample was not trained."""

    no_example = "no example"  # nothing in its group to learn from
    no_mark = "no mark"  # the user's own reward failed on it, and reward_errors is drop
    late = "late"  # not there when the step's time for late groups was over
    not_needed = "not needed"  # its step had enough groups with a signal without it


Row = tuple[int, int, str, str, int, int | None, int | None, int | None, int | None, str | None]


class Ledger:
    """Steps are counted from 1: a sample of step k is learned from by the k-th optimizer step.

    What is in flight when the process dies may lack its last lines, never its first: `issued` is on disk before a
    sample is asked for, and a step's lines are before the step counts as done.

    Raises:
        RunFolderError: from every method, where the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: list[Row] = []
        fresh = not path.exists()
        try:
            self._file = sqlite3.connect(path, isolation_level=None)
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=NORMAL")
            if fresh:
                self._file.executescript(SCHEMA + ONLY_ADDED_TO)
            (last,) = self._file.execute("SELECT coalesce(max(life), 0) FROM lives").fetchone()
        except sqlite3.Error as error:
            raise self._failed(error) from None
        self._life: int = last

    def begin(self, from_step: int, why: str) -> None:
        """A new life, which goes on after `from_step`."""
        self._waiting.clear()  # of the life before, whose steps beyond are undone
        self._life += 1
        self._write("INSERT INTO lives VALUES (?, ?, ?, ?)", [(self._life, from_step, why, time.time())])

    def issued(self, step: int, prompts: Sequence[Prompt], samples: int) -> None:
        self._note(step, LedgerEvent.issued, ((prompt.id, sample) for prompt in prompts for sample in range(samples)))
        self._flush()

    def generated(self, step: int, rollouts: Sequence[Rollout], unmarked: Sequence[Rollout] = ()) -> None:
        """These have come and been marked; those `unmarked` have come and are dropped."""
        for rollout in [*rollouts, *unmarked]:
            versions = int(rollout.version_T[0]), int(rollout.version_T[-1])
            name = rollout.prompt.id, rollout.sample
            self._waiting.append(
                (self._life, step, LedgerEvent.generated.value, *name, rollout.attempt, rollout.worker, *versions, None)
            )
        self._note(step, LedgerEvent.rewarded, _names(rollouts))
        self.dropped(step, _names(unmarked), DropReason.no_mark)

    def scored(self, step: int, examples: Sequence[TrainingExample]) -> None:
        self._note(step, LedgerEvent.scored, _names([example.rollout for example in examples]))

    def dropped(self, step: int, samples: Iterable[tuple[str, int]], reason: DropReason) -> None:
        self._note(step, LedgerEvent.dropped, samples, reason.value)

    def trained(self, step: int, examples: Sequence[TrainingExample], samples: int) -> None:
        """The step is done: it took these examples, of `samples` that were issued for it."""
        self._note(step, LedgerEvent.trained, _names([example.rollout for example in examples]))
        self._flush((self._life, step, samples, time.time()))

    @property
    def position(self) -> int:
        """Lines so far that are on disk."""
        (position,) = self._file.execute("SELECT coalesce(max(id), 0) FROM events").fetchone()
        return int(position)

    def close(self) -> None:
        self._flush()
        self._file.close()

    def _note(
        self, step: int, event: LedgerEvent, samples: Iterable[tuple[str, int]], reason: str | None = None
    ) -> None:
        nothing = (None, None, None, None)
        self._waiting += [(self._life, step, event.value, *name, *nothing, reason) for name in samples]

    def _flush(self, step: tuple[int, int, int, float] | None = None) -> None:
        rows, self._waiting = self._waiting, []
        self._write(f"INSERT INTO events VALUES (NULL{', ?' * 10})", rows, step)

    def _write(self, statement: str, rows: Sequence[tuple], step: tuple[int, int, int, float] | None = None) -> None:
        try:
            self._file.execute("BEGIN")
            self._file.executemany(statement, rows)
            if step is not None:
                self._file.execute("INSERT INTO steps VALUES (NULL, ?, ?, ?, ?)", step)
            self._file.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._failed(error) from None

    def _failed(self, error: sqlite3.Error) -> RunFolderError:
        return RunFolderError(
            f"{self._path} cannot be written: {error}. Nothing is trained without an account; make room or mend the "
            "disk, then resume from the last checkpoint."
        )


def _names(rollouts: Iterable[Rollout]) -> Iterable[tuple[str, int]]:
    return ((rollout.prompt.id, rollout.sample) for rollout in rollouts)
