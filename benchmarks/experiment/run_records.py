"""Records of an experiment's runs: one JSON line a run in `records.jsonl`, which is appended to and never rewritten."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterable
from io import FileIO
from pathlib import Path
from typing import Any

from demopsd_dist.util.errors import InputError

Record = dict[str, Any]
"""`words` (overrides of the run's config), `config` (YAML), `summary`, and `curves` over the steps."""


def pairs_by_seed(records: Iterable[Record], others: Iterable[Record]) -> list[tuple[Record, Record]]:
    """Records with the one of `others` that has the same seed; those without are left out."""
    by_seed = {record["summary"]["seed"]: record for record in others}
    return [(record, by_seed[seed]) for record in records if (seed := record["summary"]["seed"]) in by_seed]


class RunRecords:
    """Records by the name of their run; of two records of one run the later counts.

    Several threads and processes may append at the same time: a lock on the file keeps their lines apart, and a line is
    on disk when `append` returns. A process that is killed in mid-write leaves an incomplete last line. Readers skip it
    and report it, and the next `append` cuts it off.
    """

    def __init__(self, path: Path, report: Callable[[str], None] = print) -> None:
        self.path, self._report = path, report

    def load(self) -> dict[str, Record]:
        """Read all records, by run name.

        Raises:
            InputError: a complete line is not a record.
        """
        if not self.path.exists():
            return {}
        with self.path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            text = file.read()
        *lines, last = text.split(b"\n")
        if _is_record(last):
            lines.append(last)  # only its line feed is missing
        elif last:
            self._report(f"{self.path}: the last line is incomplete ({len(last)} bytes) and is ignored")
        records: dict[str, Record] = {}
        for number, line in enumerate(lines, start=1):
            if not _is_record(line):
                raise InputError(f"{self.path}, line {number} is not the record of a run: {line[:80]!r}. Remove it.")
            record = json.loads(line)
            records[record.pop("run")] = record
        return records

    def append(self, run: str, record: Record) -> None:
        """Write the record of a run to disk, as one line."""
        line = json.dumps({"run": run, **record}) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            _end_last_line(file)
            remaining = memoryview(line.encode())
            while remaining:
                remaining = remaining[file.write(remaining) :]
            os.fsync(file.fileno())


def _end_last_line(file: FileIO) -> None:
    """Cut an incomplete last line off, or add the line feed that a complete one lacks."""
    file.seek(0)
    text = file.read()
    last = text.rpartition(b"\n")[2]
    if _is_record(last):
        file.write(b"\n")
    elif last:
        file.truncate(len(text) - len(last))


def _is_record(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line)["run"], str)
    except (ValueError, KeyError, TypeError):
        return False
