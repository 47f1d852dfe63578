"""Steps that overlap, played through: batches are sampled and scored while the learners learn from the one before.

A small discrete-event simulation. A process is a generator; it yields seconds to pass, a pair of hands to wait for, or
a `SimulatedSignal`. It is written after `driver.py`, `queue.py` and `scoring.py`, and `benchmarks/plan/compare_plans.py` holds it against them.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field

STEPS = 24
SETTLED = 8  # steps until those before and after are alike
SHOWN_GROUPS = 16  # that stand for all of a batch


@dataclass
class SimulatedWorkers:
    """One at a time; first come, first served."""

    taken: bool = False
    queue: deque[Process] = field(default_factory=deque)


@dataclass
class SimulatedSignal:
    given: bool = False
    waiting: list[Process] = field(default_factory=list)


Process = Generator["float | SimulatedWorkers | SimulatedSignal", None, None]


class SimulatedClock:
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
            self._on(process)

    def release(self, hands: SimulatedWorkers) -> None:
        if hands.queue:
            self.start(hands.queue.popleft())
        else:
            hands.taken = False

    def give(self, signal: SimulatedSignal) -> None:
        signal.given = True
        for process in signal.waiting:
            self.start(process)
        signal.waiting.clear()

    def _on(self, process: Process) -> None:
        """Let it go on until it has to wait."""
        for wanted in process:
            match wanted:
                case SimulatedWorkers() if not wanted.taken:
                    wanted.taken = True
                case SimulatedWorkers():
                    wanted.queue.append(process)
                    return
                case SimulatedSignal() if wanted.given:
                    pass
                case SimulatedSignal():
                    wanted.waiting.append(process)
                    return
                case _:
                    self.start(process, wanted)
                    return


class SimulatedRun:
    """A run's batches, its scoring and its loop, with a pair of hands for each role."""

    def __init__(self, seconds: Mapping[str, float], done: Sequence[float], ahead: int, waits: bool) -> None:
        self.clock = SimulatedClock()
        self._seconds, self._done, self._ahead, self._waits = seconds, done, ahead, waits
        self._engines, self._teacher, self._learners = SimulatedWorkers(), SimulatedWorkers(), SimulatedWorkers()
        self._scored = [SimulatedSignal() for _ in range(STEPS)]
        self.published: list[float] = []

    def play(self) -> None:
        for step in range(self._ahead + 1):
            self.clock.start(self._batch(step))
        self.clock.start(self._loop())
        self.clock.run()

    def _batch(self, step: int) -> Process:
        come = deque[SimulatedSignal](SimulatedSignal() for _ in self._done)
        self.clock.start(self._scoring(step, come))
        yield self._engines
        begun = self.clock.now
        for share, signal in zip(self._done, tuple(come), strict=True):
            yield max(0.0, begun + share * self._seconds["sample"] - self.clock.now)
            self.clock.give(signal)
        self.clock.release(self._engines)

    def _scoring(self, step: int, come: deque[SimulatedSignal]) -> Process:
        """One call at a time, each on all that has come since."""
        groups = len(come)
        while come:
            yield come[0]
            yield 0.0  # what comes together goes together
            taken = 0
            while come and come[0].given:
                come.popleft()
                taken += 1
            for stage, hands in (("support", self._learners), ("score", self._teacher)):
                if self._seconds[stage]:
                    yield hands
                    yield self._seconds[stage] * taken / groups
                    self.clock.release(hands)
        self.clock.give(self._scored[step])

    def _loop(self) -> Process:
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
                self.clock.start(self._batch(step + self._ahead + 1))


def overlapped_step_s(seconds: Mapping[str, float], done: Sequence[float], ahead: int, waits: bool) -> float:
    """From one publish to the next, once the run has got into its stride.

    Args:
        seconds: by stage, each by itself; `sample` and `score` of a whole batch.
        done: shares of `sample` at which its groups are done, rising.
        waits: a publish waits for the responses that are being sampled.
    """
    few = min(SHOWN_GROUPS, len(done))
    shown = [done[(i + 1) * len(done) // few - 1] for i in range(few)]
    run = SimulatedRun(seconds, shown, ahead, waits)
    run.play()
    counted = run.published[SETTLED : STEPS - ahead]  # the last have no batch beside them
    return (counted[-1] - counted[0]) / (len(counted) - 1)
