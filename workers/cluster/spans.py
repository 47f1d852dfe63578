"""What an actor was busy with, for a timeline of all (`demopsd_dist/run_record/timeline.py`)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

from demopsd_dist.run_record.timeline import ClockReading, Span, Spans, Track, clock, offset_of
from demopsd_dist.util.errors import WorkerError
from workers.actor_group import ActorGroup

F = TypeVar("F", bound=Callable[..., Any])


class Traced:
    """An actor that remembers what it was busy with."""

    def __init__(self) -> None:
        self.spans = Spans()

    def clock(self) -> ClockReading:
        return clock()

    def spans_since(self, start_s: float) -> list[Span]:
        """By this process's clock."""
        return self.spans.since(start_s)


def traced(method: F) -> F:
    """A method of `Traced` whose calls are spans of its name."""

    @wraps(method)
    def watched(self: Traced, *args: Any, **kwargs: Any) -> Any:
        with self.spans.span(method.__name__):
            return method(self, *args, **kwargs)

    return watched  # type: ignore[return-value]


async def tracks_of(groups: Sequence[ActorGroup], start_s: float, within_s: float) -> list[Track]:
    """A track for each actor, of what it did since then. Those of a group that does not answer are left out."""
    tracks: list[Track] = []
    for group in groups:
        try:
            tracks += await _tracks_of(group, start_s, within_s)
        except WorkerError:  # whoever needs it next hears of it
            continue
    return tracks


async def _tracks_of(group: ActorGroup, start_s: float, within_s: float) -> list[Track]:
    await group.each(lambda worker, _: worker.clock.remote(), within_s=within_s, what="its clock")  # when it is free
    asked_s = time.monotonic()
    clocks = await group.each(lambda worker, _: worker.clock.remote(), within_s=within_s, what="its clock")
    offsets = [offset_of(asked_s, there, time.monotonic()) for there in clocks]
    by_rank = dict(zip(group.ranks, offsets, strict=True))
    told = await group.each(
        lambda worker, rank: worker.spans_since.remote(start_s + by_rank[rank].offset_s),
        within_s=within_s,
        what="what it was busy with",
    )
    return [
        Track.told(f"{group.role} {rank}", spans, offset)
        for (rank, offset), spans in zip(by_rank.items(), told, strict=True)
    ]
