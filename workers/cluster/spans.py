"""Spans and operations of an actor's work, for the profile of a step (`demopsd_dist/run_record/profiling/`)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from demopsd_dist.run_record.profiling.operations import ProcessOperations
from demopsd_dist.run_record.profiling.timeline import ClockReading, Span, Spans, Track, clock_offset, read_clock
from demopsd_dist.util.errors import WorkerError
from workers.actor_group import ActorGroup
from workers.actor_handle import Handle, Ref

if TYPE_CHECKING:
    from workers.cluster.operation_profiler import OperationProfiler

F = TypeVar("F", bound=Callable[..., Any])


class Traced:
    """An actor that records spans of its work, and on request the operations of torch."""

    _profiler: OperationProfiler | None = None

    def __init__(self) -> None:
        self.spans = Spans()

    def clock(self) -> ClockReading:
        """Read this process's clock."""
        return read_clock()

    def spans_since(self, start_s: float) -> list[Span]:
        """Spans since a moment of this process's clock."""
        return self.spans.since(start_s)

    def start_operations(self, process: str) -> None:
        """Start to record the operations of torch in this process, under this name."""
        from workers.cluster.operation_profiler import OperationProfiler  # imports torch

        self.stop_operations()
        self._profiler = OperationProfiler(process)

    def stop_operations(self) -> None:
        """End the recording of operations, if there is one, and drop it."""
        self._stopped_profiler()

    def operations(self) -> ProcessOperations | None:
        """End the recording of operations, and return them; None if there was none."""
        profiler = self._stopped_profiler()
        return None if profiler is None else profiler.result()

    def _stopped_profiler(self) -> OperationProfiler | None:
        profiler, self._profiler = self._profiler, None
        if profiler is not None:
            profiler.stop()
        return profiler


def traced(method: F) -> F:
    """Decorate a method of `Traced`: each call is recorded as a span of the method's name."""

    @wraps(method)
    def traced_method(self: Traced, *args: Any, **kwargs: Any) -> Any:
        with self.spans.span(method.__name__):
            return method(self, *args, **kwargs)

    return traced_method  # type: ignore[return-value]


class GroupProfiling:
    """Profiles of all actors of some groups. A group that does not answer is left out: the next call that needs it
    reports the loss.

    Args:
        groups: returns the groups as they are now.
        within_s: time limit of a call, seconds.
    """

    def __init__(self, groups: Callable[[], Sequence[ActorGroup[Traced]]], within_s: float) -> None:
        self._groups, self._within_s = groups, within_s

    async def tracks(self, start_s: float) -> list[Track]:
        """Track of each actor: its spans since `start_s`, by the driver's monotonic clock."""
        tracks: list[Track] = []
        for group in self._groups():
            with suppress(WorkerError):
                tracks += await _tracks_of(group, start_s, self._within_s)
        return tracks

    async def start_operations(self) -> None:
        """Start to record the operations of torch in every actor."""
        for group in self._groups():

            def start(worker: Handle[Traced], rank: int, role: str = group.role) -> Ref[None]:
                return worker(Traced.start_operations, f"{role} {rank}")

            with suppress(WorkerError):
                await group.each(start, within_s=self._within_s, what="the start of its profiler")

    def stop_operations(self) -> None:
        """Ask every actor to drop its recording, and do not wait for it: some may be lost."""
        for group in self._groups():
            group.start(lambda worker, _: worker(Traced.stop_operations))

    async def operations(self) -> list[ProcessOperations]:
        """Operations of every actor since `start_operations`. An actor that was started since then has none."""

        async def of_group(group: ActorGroup[Traced]) -> list[ProcessOperations | None]:
            with suppress(WorkerError):
                return await group.each(
                    lambda worker, _: worker(Traced.operations), within_s=self._within_s, what="its operations"
                )
            return []

        found = await asyncio.gather(*map(of_group, self._groups()))  # all at once: writing a trace takes seconds
        return [one for of_one_group in found for one in of_one_group if one is not None]


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
