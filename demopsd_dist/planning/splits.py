"""Which split of the devices does the most samples a second, of those whose roles fit into memory."""

from __future__ import annotations

from collections.abc import Iterator

from demopsd_dist.planning.assumed import Calibration
from demopsd_dist.planning.hardware import Fleet
from demopsd_dist.planning.job import Job, Split
from demopsd_dist.planning.steps import Plan, plan

AHEAD = (0, 1)


def candidates(job: Job, fleet: Fleet) -> Iterator[Split]:
    """On CPU the roles share the cores; on GPUs each device has one role, and every role has at least one."""
    for ahead in AHEAD:
        yield from _sharing(job, fleet, ahead) if fleet.device.shared else _apart(job, fleet, ahead)


def _sharing(job: Job, fleet: Fleet, ahead: int) -> Iterator[Split]:
    """One worker or one a core. Several threads of a worker wait for each other, and do so for long where other roles
    want the same cores: the teacher alone has some, if it mostly works when the engines are done. Replicas of it would
    only hold its weights again."""
    cores, teachers = fleet.size, int(job.teacher_copies > 0)
    if job.tensor_parallel > cores:
        return
    threads = {1, cores} if teachers and not ahead else {1}
    for rollout in sorted({1, cores // job.tensor_parallel}):
        for learner in sorted({1, cores}):
            for teacher_threads in sorted(threads):
                yield Split(rollout, teachers, learner, ahead, teacher_threads=teacher_threads, shared=True)


def _apart(job: Job, fleet: Fleet, ahead: int) -> Iterator[Split]:
    devices = fleet.size
    teachers = range(1, devices - 1) if job.teacher_copies else (0,)
    for teacher in teachers:
        for learner in range(1, devices - teacher):
            engines, left_over = divmod(devices - teacher - learner, job.tensor_parallel)
            if engines and not left_over:
                yield Split(engines, teacher, learner, ahead)


def ranked(job: Job, fleet: Fleet, calibration: Calibration) -> list[Plan]:
    """Plans of all splits, the fastest first; those that do not fit into memory come last."""
    plans = [plan(job, split, fleet, calibration) for split in candidates(job, fleet)]
    return sorted(plans, key=lambda made: (bool(made.shortfalls), -made.samples_per_s))
