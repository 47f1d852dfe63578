"""Which split of the devices does the most samples a second, of those whose roles fit into memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from demopsd_dist.planning.default_efficiencies import Calibration
from demopsd_dist.planning.hardware import DeviceCluster
from demopsd_dist.planning.memory_by_role import footprints
from demopsd_dist.planning.step_time import RunPlan, plan
from demopsd_dist.planning.workload import Split, Workload

AHEAD = (0, 1)
Known = Mapping[str, tuple[float, float]]  # base_gib and factor of memory, by role


def candidates(job: Workload, fleet: DeviceCluster, memory: Known) -> Iterator[Split]:
    """On CPU the roles share the cores; on GPUs each device has one role, and every role has at least one."""
    for ahead in AHEAD[:1] if job.engines_sleep else AHEAD:
        yield from _sharing(job, fleet, ahead) if fleet.device.shared else _apart(job, fleet, ahead, memory)


def _sharing(job: Workload, fleet: DeviceCluster, ahead: int) -> Iterator[Split]:
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


def _apart(job: Workload, fleet: DeviceCluster, ahead: int, memory: Known) -> Iterator[Split]:
    devices = fleet.size
    teachers = range(1, devices - 1) if job.teacher_copies else (0,)
    for teacher in teachers:
        shards = _least_shards(job, fleet, teacher, memory) if teacher else 1
        for learner in range(1, devices - teacher):
            engines, left_over = divmod(devices - teacher - learner, job.tensor_parallel)
            if engines and not left_over:
                yield Split(engines, teacher, learner, ahead, teacher_shards=shards)


def _least_shards(job: Workload, fleet: DeviceCluster, teachers: int, memory: Known) -> int:
    """So many of the teachers share a copy as must for it to fit: who has one of its own waits for nobody."""
    divisors = [shards for shards in range(1, teachers + 1) if teachers % shards == 0]
    for shards in divisors:
        found = footprints(job, Split(1, teachers, 1, teacher_shards=shards), fleet, memory)
        if all(one.gib <= fleet.device.memory_gib for one in found if one.role == "teacher"):
            return shards
    return divisors[-1]


def widths(job: Workload, fleet: DeviceCluster) -> list[int]:
    """Numbers of processes of an engine: on CPU that of the job, on GPUs also powers of two within a node."""
    if fleet.device.shared:
        return [job.tensor_parallel]
    powers = {2**i for i in range(fleet.per_node.bit_length()) if 2**i in job.shape.ways_to_share}
    return sorted({job.tensor_parallel, *powers})


def ranked(job: Workload, fleet: DeviceCluster, calibration: Calibration) -> list[RunPlan]:
    """Plans of all splits, the fastest first; those that do not fit into memory come last."""
    plans = [
        plan(each, split, fleet, calibration)
        for each in (replace(job, tensor_parallel=width) for width in widths(job, fleet))
        for split in candidates(each, fleet, calibration.memory)
    ]
    return sorted(plans, key=lambda made: (bool(made.shortfalls), -made.samples_per_s))
