"""Step time where steps overlap: a batch is sampled and scored while the learners train on the previous one.

A small discrete-event simulation. A process is a generator; it yields seconds to pass, a worker group to acquire, or a
signal to wait for. It follows `training/loop.py` and `training/pipelining.py`;
`benchmarks/plan/compare_plans.py` compares it with a run of the real driver.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field

STEPS = 24
WARMUP_STEPS = 8  # steps until step times repeat
SIMULATED_GROUPS = 16  # groups that represent a whole batch


@dataclass
class SimulatedWorkers:
    """A worker group that one process uses at a time, in order of arrival."""

    busy: bool = False
    queue: deque[Process] = field(default_factory=deque)


@dataclass
class SimulatedSignal:
    """An event that processes wait for; it fires once."""

    fired: bool = False
    waiting: list[Process] = field(default_factory=list)


Process = Generator["float | SimulatedWorkers | SimulatedSignal", None, None]


class SimulatedClock:
    """Event loop: a clock and the processes that are due."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Process]] = []
        self._order = 0

    def start(self, process: Process, after: float = 0.0) -> None:
        self._order += 1
        heapq.heappush(self._due, (self.now + after, self._order, process))

    def run(self) -> None:
        while self._due:
            self.now, _, process = heapq.heappop(self._due)
            self._advance(process)

    def release(self, workers: SimulatedWorkers) -> None:
        if workers.queue:
            self.start(workers.queue.popleft())
        else:
            workers.busy = False

    def fire(self, signal: SimulatedSignal) -> None:
        signal.fired = True
        for process in signal.waiting:
            self.start(process)
        signal.waiting.clear()

    def _advance(self, process: Process) -> None:
        """Run a process until it has to wait."""
        for request in process:
            match request:
                case SimulatedWorkers() if not request.busy:
                    request.busy = True
                case SimulatedWorkers():
                    request.queue.append(process)
                    return
                case SimulatedSignal() if request.fired:
                    pass
                case SimulatedSignal():
                    request.waiting.append(process)
                    return
                case _:
                    self.start(process, request)
                    return


class SimulatedRun:
    """A run's batches, its scoring and its training loop, with one worker group for each role."""

    def __init__(self, seconds: Mapping[str, float], done: Sequence[float], ahead: int, waits: bool) -> None:
        self.clock = SimulatedClock()
        self._seconds, self._done, self._ahead, self._waits = seconds, done, ahead, waits
        self._engines, self._teacher, self._learners = SimulatedWorkers(), SimulatedWorkers(), SimulatedWorkers()
        self._scored = [SimulatedSignal() for _ in range(STEPS)]
        self.published: list[float] = []

    def simulate(self) -> None:
        for step in range(self._ahead + 1):
            self.clock.start(self._sample_batch(step))
        self.clock.start(self._train())
        self.clock.run()

    def _sample_batch(self, step: int) -> Process:
        arrivals = deque[SimulatedSignal](SimulatedSignal() for _ in self._done)
        self.clock.start(self._score_batch(step, arrivals))
        yield self._engines
        started = self.clock.now
        for share, signal in zip(self._done, tuple(arrivals), strict=True):
            yield max(0.0, started + share * self._seconds["sample"] - self.clock.now)
            self.clock.fire(signal)
        self.clock.release(self._engines)

    def _score_batch(self, step: int, arrivals: deque[SimulatedSignal]) -> Process:
        """Score a batch, one call at a time, each on all groups that arrived since the last."""
        groups = len(arrivals)
        while arrivals:
            yield arrivals[0]
            yield 0.0  # groups that arrive together go into one call
            count = 0
            while arrivals and arrivals[0].fired:
                arrivals.popleft()
                count += 1
            for stage, workers in (("support", self._learners), ("score", self._teacher)):
                if self._seconds[stage]:
                    yield workers
                    yield self._seconds[stage] * count / groups
                    self.clock.release(workers)
        self.clock.fire(self._scored[step])

    def _train(self) -> Process:
        for step in range(STEPS):
            yield self._scored[step]
            yield self._learners
            yield self._seconds["learn"] + self._seconds["driver"]
            self.clock.release(self._learners)
            if self._waits:
                yield self._engines
            yield self._seconds["publish"]
            if self._waits:
                self.clock.release(self._engines)
            self.published.append(self.clock.now)
            if step + self._ahead + 1 < STEPS:
                self.clock.start(self._sample_batch(step + self._ahead + 1))


def overlapped_step_s(seconds: Mapping[str, float], done: Sequence[float], ahead: int, waits: bool) -> float:
    """Seconds from one publish to the next, after warm-up.

    Args:
        seconds: of each stage when it runs alone; `sample` and `score` of a whole batch.
        done: shares of `sample` at which its groups are done, rising.
        ahead: batches sampled ahead of the learners.
        waits: a publish waits for the responses that are being sampled.
    """
    groups = min(SIMULATED_GROUPS, len(done))
    thinned = [done[(i + 1) * len(done) // groups - 1] for i in range(groups)]
    ahead = min(ahead, STEPS - WARMUP_STEPS - 2)  # further ahead the times are the same
    run = SimulatedRun(seconds, thinned, ahead, waits)
    run.simulate()
    counted = run.published[WARMUP_STEPS : STEPS - ahead]  # the last steps have no batch beside them
    return (counted[-1] - counted[0]) / (len(counted) - 1)
