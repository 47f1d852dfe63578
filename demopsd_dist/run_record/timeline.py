"""Who was busy with what, and when: spans of driver and workers in one timeline, for Perfetto or chrome://tracing.

Each process tells its own spans by its own monotonic clock. Processes of one machine share that clock; of another
machine's clock the driver measures the offset, to half of the time that an answer takes.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

MOST = 1 << 14  # spans that a process remembers: the newest


class Span(NamedTuple):
    """Seconds of a monotonic clock.

    Example: `Span("learn", 12.0, 13.5)`
    """

    name: str
    start_s: float
    end_s: float


class Spans:
    """What one process did last. Costs two looks at the clock a span."""

    def __init__(self, most: int = MOST) -> None:
        self._done: deque[Span] = deque(maxlen=most)
        self._under_way: dict[object, tuple[str, float]] = {}

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        key, started = object(), time.monotonic()
        self._under_way[key] = name, started
        try:
            yield
        finally:
            del self._under_way[key]
            self._done.append(Span(name, started, time.monotonic()))

    def since(self, start_s: float) -> list[Span]:
        """Those that ended later, and those under way, as far as they are."""
        now = time.monotonic()
        under_way = [Span(name, started, now) for name, started in self._under_way.values()]
        return [*(span for span in self._done if span.end_s > start_s), *under_way]


class ClockReading(NamedTuple):
    """A look at a process's clock. `machine` is the same for processes that share it."""

    machine: str
    now_s: float


def clock() -> ClockReading:
    return ClockReading(_boot(), time.monotonic())


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


class ClockOffset(NamedTuple):
    """What to take from another process's seconds to have ours, and by how much that may be wrong."""

    offset_s: float
    error_s: float


def offset_of(asked_s: float, there: ClockReading, answered_s: float) -> ClockOffset:
    """Of a clock that was looked at between two moments of ours."""
    here = _boot()
    if here and there.machine == here:
        return ClockOffset(0.0, 0.0)
    half_s = (answered_s - asked_s) / 2
    return ClockOffset(there.now_s - (asked_s + half_s), half_s)


@dataclass(frozen=True)
class Track:
    """A process: `rollout 0`. Its spans are in the driver's seconds, right to `error_s`."""

    name: str
    spans: Sequence[Span]
    error_s: float = 0.0

    @classmethod
    def told(cls, name: str, spans: Iterable[Span], offset: ClockOffset) -> Track:
        """From spans in the seconds of another process."""
        moved = [Span(s.name, s.start_s - offset.offset_s, s.end_s - offset.offset_s) for s in spans]
        return cls(name, moved, offset.error_s)

    def within(self, start_s: float, end_s: float) -> Track:
        """The spans that touch this time, whole."""
        return replace(self, spans=[s for s in self.spans if s.end_s > start_s and s.start_s < end_s])


def rows_of(spans: Iterable[Span]) -> list[list[Span]]:
    """Spans in as few rows as this takes: in a row each is after another, or inside of it, and none overlaps half."""
    rows: list[tuple[list[Span], list[float]]] = []  # with the ends of those around the last
    for span in sorted(spans, key=lambda s: (s.start_s, -s.end_s)):
        row, ends = next((row for row in rows if _has_room(row[1], span)), ([], []))
        if not row:
            rows.append((row, ends))
        row.append(span)
        ends.append(span.end_s)
    return [row for row, _ in rows]


def _has_room(ends: list[float], span: Span) -> bool:
    """Whether the row has nothing that the span would overlap by half. What ended before it is forgotten."""
    while ends and ends[-1] <= span.start_s:
        ends.pop()
    return not ends or span.end_s <= ends[-1]


def trace_of(tracks: Iterable[Track], step: int, start_s: float, end_s: float) -> dict[str, Any]:
    """Of what touches a step's time, in the Trace Event Format; microseconds since the step began."""
    events: list[dict[str, Any]] = []
    errors: dict[str, float] = {}
    for process, track in enumerate((track.within(start_s, end_s) for track in tracks), start=1):
        errors[track.name] = round(track.error_s * 1e6, 1)
        events += [_told("process_name", process, 0, name=track.name)]
        events += [_told("process_sort_index", process, 0, sort_index=process)]
        for thread, row in enumerate(rows_of(track.spans), start=1):
            events.append(_told("thread_name", process, thread, name=track.name if thread == 1 else "at the same time"))
            events += [
                {
                    "ph": "X",
                    "name": span.name,
                    "cat": track.name.partition(" ")[0],
                    "pid": process,
                    "tid": thread,
                    "ts": round((span.start_s - start_s) * 1e6, 3),
                    "dur": round((span.end_s - span.start_s) * 1e6, 3),
                }
                for span in row
            ]
    told = {"step": step, "step_s": round(end_s - start_s, 6), "clock_error_us": errors}
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": told}


def _told(kind: str, process: int, thread: int, **values: Any) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": values}


def as_json(trace: dict[str, Any]) -> str:
    return json.dumps(trace) + "\n"
