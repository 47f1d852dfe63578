"""Timeline of a step: spans of driver and workers in the Trace Event Format, for Perfetto or chrome://tracing.

Each process records its spans by its own monotonic clock. Processes of one machine share that clock; the driver
measures the offset of another machine's clock, with an error of half a round trip.
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

MAX_SPANS = 1 << 14  # newest spans that a process keeps


class Span(NamedTuple):
    """A named interval in seconds of a monotonic clock.

    Example: `Span("learn", 12.0, 13.5)`
    """

    name: str
    start_s: float
    end_s: float


class Spans:
    """The last spans of one process. Recording a span costs two readings of the clock."""

    def __init__(self, max_spans: int = MAX_SPANS) -> None:
        self._done: deque[Span] = deque(maxlen=max_spans)
        self._open: dict[object, tuple[str, float]] = {}

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Record the time inside the block as a span."""
        key, started = object(), time.monotonic()
        self._open[key] = name, started
        try:
            yield
        finally:
            del self._open[key]
            self._done.append(Span(name, started, time.monotonic()))

    def since(self, start_s: float) -> list[Span]:
        """Spans that ended after `start_s`, and the open spans up to now."""
        now = time.monotonic()
        open_spans = [Span(name, started, now) for name, started in self._open.values()]
        return [*(span for span in self._done if span.end_s > start_s), *open_spans]


class ClockReading(NamedTuple):
    """A reading of a process's monotonic clock. `machine` is equal for processes that share the clock."""

    machine: str
    now_s: float


def read_clock() -> ClockReading:
    """Read the clock of this process."""
    return ClockReading(_boot_id(), time.monotonic())


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


class ClockOffset(NamedTuple):
    """Seconds to subtract from another process's clock to get the clock of this process, and their largest error."""

    offset_s: float
    error_s: float


def clock_offset(sent_s: float, remote: ClockReading, received_s: float) -> ClockOffset:
    """Offset of a remote clock that was read between two times of the local clock."""
    here = _boot_id()
    if here and remote.machine == here:
        return ClockOffset(0.0, 0.0)
    half_s = (received_s - sent_s) / 2
    return ClockOffset(remote.now_s - (sent_s + half_s), half_s)


@dataclass(frozen=True)
class Track:
    """The spans of a process such as `rollout 0`, in seconds of the driver's clock with an error of `error_s`."""

    name: str
    spans: Sequence[Span]
    error_s: float = 0.0

    @classmethod
    def from_process(cls, name: str, spans: Iterable[Span], offset: ClockOffset) -> Track:
        """A track from spans by the clock of another process."""
        moved = [Span(s.name, s.start_s - offset.offset_s, s.end_s - offset.offset_s) for s in spans]
        return cls(name, moved, offset.error_s)

    def within(self, start_s: float, end_s: float) -> Track:
        """The track with only the spans that overlap this interval."""
        return replace(self, spans=[s for s in self.spans if s.end_s > start_s and s.start_s < end_s])


def nested_rows(spans: Iterable[Span]) -> list[list[Span]]:
    """Spans in rows that a viewer can show: two spans of a row are disjoint or nested, never partly overlapping."""
    rows: list[tuple[list[Span], list[float]]] = []  # spans of a row, and the ends of those that are still open in it
    for span in sorted(spans, key=lambda s: (s.start_s, -s.end_s)):
        for _, ends in rows:
            while ends and ends[-1] <= span.start_s:
                ends.pop()
        row, ends = next((row for row in rows if not row[1] or span.end_s <= row[1][-1]), ([], []))
        if not row:
            rows.append((row, ends))
        row.append(span)
        ends.append(span.end_s)
    return [row for row, _ in rows]


def trace_events(tracks: Iterable[Track], step: int, start_s: float, end_s: float) -> dict[str, Any]:
    """The spans that overlap a step, in the Trace Event Format, in microseconds since the step began."""
    events: list[dict[str, Any]] = []
    errors: dict[str, float] = {}
    for process, track in enumerate((track.within(start_s, end_s) for track in tracks), start=1):
        errors[track.name] = round(track.error_s * 1e6, 1)
        events += [_metadata("process_name", process, 0, name=track.name)]
        events += [_metadata("process_sort_index", process, 0, sort_index=process)]
        for thread, row in enumerate(nested_rows(track.spans), start=1):
            events.append(_metadata("thread_name", process, thread, name=track.name if thread == 1 else "concurrent"))
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
    metadata = {"step": step, "step_s": round(end_s - start_s, 6), "clock_error_us": errors}
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": metadata}


def _metadata(kind: str, process: int, thread: int, **values: Any) -> dict[str, Any]:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": values}


def to_json(trace: dict[str, Any]) -> str:
    return json.dumps(trace) + "\n"
