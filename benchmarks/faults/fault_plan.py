"""Plans of faults, drawn from a seed: the faults in each process of a run, and the file that is torn after it."""

from __future__ import annotations

import random
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from benchmarks.common.run_processes import ROLES

STAGES = ("sample", "score", "learn", "publish_weights", "checkpoint")
ENDINGS = (
    ("driver", "SIGKILL"),
    ("driver", "SIGINT"),
    ("group", "SIGTERM"),
    ("group", "SIGHUP"),
    ("gcs_server", "SIGKILL"),
    ("raylet", "SIGKILL"),
    ("disk", "full"),
)
"""Faults that end a run's process, each with its target and what is done to it."""
TORN = ("checkpoint", "metrics", "samples", "summary", "replay")
"""Kinds of files that are cut short between two processes of a run, as a crash of the machine leaves them."""
HANG_SHARE = 0.2  # of the faults of rollout workers: the process is stopped, not killed
START_S, DELAY_S = 25.0, 0.5  # longest time from the start of a stage to its fault
STEPS_APART = 3  # steps that are done between two faults: more than between two checkpoints, so that the run advances
CUT = "cut"
SHORT_CUT_S, LONG_CUT_S = (1.0, 8.0), (14.0, 22.0)  # shorter and longer than Ray's heartbeat allows on simulated hosts


@dataclass(frozen=True)
class DrawnFault:
    """A fault in a training process.

    Attributes:
        stage: the stage in which it is planted; `start_roles` is the start of the run, or of its resume.
        target: a role, `driver`, `group` (all processes of the run), `raylet`, `gcs_server`, or `disk`.
        action: name of a signal; `full` for the disk; `cut` for the network link of the target's host.
        delay_s: seconds from the start of the stage.
        pick: chooses among the target's processes, from 0 to 1.
        cut_s: time until a link that was cut is joined again, seconds.
    """

    stage: str
    target: str
    action: str
    delay_s: float
    pick: float
    cut_s: float = 0.0

    @property
    def ends_run(self) -> bool:
        """True if the process of the run ends by it."""
        return (self.target, self.action) in ENDINGS

    @property
    def signal(self) -> signal.Signals:
        return signal.Signals[self.action]

    def to_json(self) -> dict[str, Any]:
        """The fault as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class LifePlan:
    """Faults of one process of a run, in order, and the kind of file that is torn after its end (None: none)."""

    faults: Sequence[DrawnFault]
    torn: str | None


def draw_run(seed: int, lives: int, each: int, can_fill_disk: bool) -> list[LifePlan]:
    """Draw the lives of one run. The last has no fault: in it the run ends as it should.

    Args:
        lives: number of processes of the run.
        each: faults in a life before the one that ends it, or one fewer; each may be followed by one more during the
            recovery.
        can_fill_disk: the run writes to a volume of its own.
    """
    rng = random.Random(seed)
    endings = [ending for ending in ENDINGS if can_fill_disk or ending[0] != "disk"]
    rng.shuffle(endings)
    plans = []
    for index in range(lives - 1):
        faults: list[DrawnFault] = []
        if index and rng.random() < 0.35:
            target, action = rng.choice([*((role, "SIGKILL") for role in ROLES), *endings])
            faults.append(_fault(rng, "start_roles", target, action, START_S))
        for _ in range(rng.randint(each - 1, each)):
            faults += _survivable(rng)
        faults.append(_fault(rng, rng.choice(STAGES), *endings[index % len(endings)], DELAY_S))
        plans.append(LifePlan(faults, rng.choice(TORN) if rng.random() < 0.5 else None))
    return [*plans, LifePlan([], None)]


def draw_host_run(seed: int, lives: int, each: int) -> list[LifePlan]:
    """Draw the lives of a run over several hosts: links that are cut for a short or a long time, and killed workers, as
    many of each, in any order. The last life ends as it should, the others by the death of the driver, or because they
    are asked to stop.

    Args:
        lives: number of processes of the run.
        each: number of faults in a life before the one that ends it; some are followed by another during the recovery.
    """
    rng = random.Random(seed)
    plans = []
    for index in range(lives):
        faults: list[DrawnFault] = []
        kinds = [(SHORT_CUT_S, LONG_CUT_S, None)[i % 3] for i in range(each)]
        rng.shuffle(kinds)
        for kind in kinds:
            role, stage = rng.choice(ROLES), rng.choice(STAGES)
            faults.append(_cut(rng, stage, role, kind) if kind else _fault(rng, stage, role, "SIGKILL", DELAY_S))
            if role != "rollout" and kind is not SHORT_CUT_S and rng.random() < 1 / 4:  # during the recovery from it
                again = rng.choice(ROLES)
                short = rng.random() < 0.5
                faults.append(
                    _cut(rng, "recover", again, SHORT_CUT_S) if short else _fault(rng, "recover", again, "SIGKILL", 5.0)
                )
        if index < lives - 1:
            faults.append(_fault(rng, rng.choice(STAGES), "driver", rng.choice(("SIGKILL", "SIGINT")), DELAY_S))
        plans.append(LifePlan(faults, None))
    return plans


def _cut(rng: random.Random, stage: str, role: str, within_s: tuple[float, float]) -> DrawnFault:
    longest_s = 5.0 if stage == "recover" else DELAY_S
    return replace(_fault(rng, stage, role, CUT, longest_s), cut_s=round(rng.uniform(*within_s), 1))


def _survivable(rng: random.Random) -> list[DrawnFault]:
    """A fault that the run survives; one in six is followed by another during the recovery from it."""
    role = rng.choice(ROLES)
    action = "SIGSTOP" if role == "rollout" and rng.random() < HANG_SHARE else "SIGKILL"
    faults = [_fault(rng, rng.choice(STAGES), role, action, DELAY_S)]
    if role != "rollout" and rng.random() < 1 / 6:
        faults.append(_fault(rng, "recover", rng.choice(ROLES), "SIGKILL", 5.0))
    return faults


def _fault(rng: random.Random, stage: str, target: str, action: str, longest_s: float) -> DrawnFault:
    return DrawnFault(stage, target, action, round(rng.uniform(0, longest_s), 3), round(rng.random(), 3))
