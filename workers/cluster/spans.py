"""Spans of an actor's work, for the timeline of a run (`demopsd_dist/run_record/timeline.py`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

from demopsd_dist.run_record.timeline import ClockReading, Span, Spans, Track, clock_offset, read_clock
from demopsd_dist.util.errors import WorkerError
from workers.actor_group import ActorGroup

F = TypeVar("F", bound=Callable[..., Any])


class Traced:
    """An actor that records spans of its work."""

    def __init__(self) -> None:
        self.spans = Spans()

    def clock(self) -> ClockReading:
        """Read this process's clock."""
        return read_clock()

    def spans_since(self, start_s: float) -> list[Span]:
        """Spans since a moment of this process's clock."""
        return self.spans.since(start_s)


def traced(method: F) -> F:
    """Decorate a method of `Traced`: each call is recorded as a span of the method's name."""

    @wraps(method)
    def traced_method(self: Traced, *args: Any, **kwargs: Any) -> Any:
        with self.spans.span(method.__name__):
            return method(self, *args, **kwargs)

    return traced_method  # type: ignore[return-value]


async def tracks_of(groups: Sequence[ActorGroup[Traced]], start_s: float, within_s: float) -> list[Track]:
    """Track of each actor: its spans since `start_s`. A group that does not answer is left out."""
    tracks: list[Track] = []
    for group in groups:
        try:
            tracks += await _tracks_of(group, start_s, within_s)
        except WorkerError:  # the next call that needs the group reports it
            continue
    return tracks


async def _tracks_of(group: ActorGroup[Traced], start_s: float, within_s: float) -> list[Track]:
    # The first call waits until the actors are free, the second is timed.
    await group.each(lambda worker, _: worker(Traced.clock), within_s=within_s, what="its clock")
    asked_s = time.monotonic()
    clocks = await group.each(lambda worker, _: worker(Traced.clock), within_s=within_s, what="its clock")
    offsets = [clock_offset(asked_s, there, time.monotonic()) for there in clocks]
    by_rank = dict(zip(group.ranks, offsets, strict=True))
    spans_by_rank = await group.each(
        lambda worker, rank: worker(Traced.spans_since, start_s + by_rank[rank].offset_s),
        within_s=within_s,
        what="its spans",
    )
    return [
        Track.from_process(f"{group.role} {rank}", spans, offset)
        for (rank, offset), spans in zip(by_rank.items(), spans_by_rank, strict=True)
    ]
