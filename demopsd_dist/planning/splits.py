"""Candidate splits of the devices into rollout, teacher and learner workers, ranked by samples per second."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from demopsd_dist.planning.hardware import DeviceCluster
from demopsd_dist.planning.memory_by_role import memory_footprints
from demopsd_dist.planning.roofline import Calibration
from demopsd_dist.planning.step_time import RunPlan, plan_run
from demopsd_dist.planning.workload import Split, Workload

AHEAD = (0, 1)
MemoryCoefficients = Mapping[str, tuple[float, float]]  # calibrated memory by role: base_gib and factor


def candidate_splits(workload: Workload, cluster: DeviceCluster, memory: MemoryCoefficients) -> Iterator[Split]:
    """Splits for one engine size. On CPU the roles share the cores; on GPUs each device has one role, and every
    role has at least one device."""
    for ahead in AHEAD[:1] if workload.engines_sleep else AHEAD:
        if cluster.device.shared:
            yield from _splits_on_shared_cores(workload, cluster, ahead)
        else:
            yield from _splits_on_gpus(workload, cluster, ahead, memory)


def _splits_on_shared_cores(workload: Workload, cluster: DeviceCluster, ahead: int) -> Iterator[Split]:
    """Splits with one worker of a role, or one a core.

    Threads of a worker wait for each other, and much longer where other roles compete for the same cores. Only the
    teacher gets several, where it mostly works after the engines are done. Replicas of it would only hold its weights
    again.
    """
    cores, teachers = cluster.size, int(workload.teacher_copies > 0)
    if workload.tensor_parallel > cores:
        return
    threads = {1, cores} if teachers and not ahead else {1}
    for rollout in sorted({1, cores // workload.tensor_parallel}):
        for learner in sorted({1, cores}):
            for teacher_threads in sorted(threads):
                yield Split(rollout, teachers, learner, ahead, teacher_threads=teacher_threads, shared=True)


def _splits_on_gpus(
    workload: Workload, cluster: DeviceCluster, ahead: int, memory: MemoryCoefficients
) -> Iterator[Split]:
    """Splits that use every GPU."""
    devices = cluster.size
    teachers = range(1, devices - 1) if workload.teacher_copies else (0,)
    for teacher in teachers:
        shards = _fewest_shards(workload, cluster, teacher, memory) if teacher else 1
        for learner in range(1, devices - teacher):
            engines, left_over = divmod(devices - teacher - learner, workload.tensor_parallel)
            if engines and not left_over:
                yield Split(engines, teacher, learner, ahead, teacher_shards=shards)


def _fewest_shards(workload: Workload, cluster: DeviceCluster, teachers: int, memory: MemoryCoefficients) -> int:
    """Fewest workers per teacher copy at which it fits into memory: a worker with a copy of its own gathers nothing."""
    divisors = [shards for shards in range(1, teachers + 1) if teachers % shards == 0]
    for shards in divisors:
        footprints = memory_footprints(workload, Split(1, teachers, 1, teacher_shards=shards), cluster, memory)
        if all(one.gib <= cluster.device.memory_gib for one in footprints if one.role == "teacher"):
            return shards
    return divisors[-1]


def engine_widths(workload: Workload, cluster: DeviceCluster) -> list[int]:
    """Numbers of processes of an engine: on CPU the configured one, on GPUs also powers of two within a node."""
    if cluster.device.shared:
        return [workload.tensor_parallel]
    powers = {2**i for i in range(cluster.per_node.bit_length()) if 2**i in workload.shape.tensor_parallel_sizes}
    return sorted({workload.tensor_parallel, *powers})


def rank_splits(workload: Workload, cluster: DeviceCluster, calibration: Calibration) -> list[RunPlan]:
    """Plans of all splits, the fastest first; splits that do not fit into memory come last."""
    plans = [
        plan_run(sized, split, cluster, calibration)
        for sized in (replace(workload, tensor_parallel=width) for width in engine_widths(workload, cluster))
        for split in candidate_splits(sized, cluster, calibration.memory)
    ]
    return sorted(plans, key=lambda plan: (bool(plan.shortfalls), -plan.samples_per_s))
