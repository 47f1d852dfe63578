"""Plan of one split: seconds of each stage, and of a step that combines the stages as the driver does."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from demopsd_dist.planning.forward_time import gather_s, learn_loads, score_loads, slowest_load, support_loads
from demopsd_dist.planning.hardware import GB, DeviceCluster
from demopsd_dist.planning.memory_by_role import Footprint, memory_footprints, shortfalls
from demopsd_dist.planning.overlap import overlapped_step_s
from demopsd_dist.planning.roofline import STAGES, Calibration, Load, Power
from demopsd_dist.planning.sampling_time import sampling_time
from demopsd_dist.planning.workload import Split, Workload

CROWDING = 0.05  # of a step, for each process beyond the cores: the splits of benchmarks.plan, ahead of the learners
PACK_PASSES = 3.0  # over the bytes of a bucket: read, written where the receivers find it, digested
LOAD_PASSES = 5.0  # digested, read, written into the model, packed for its kernels: read and written again
OBJECT_STORE_GB_PER_S = 5.0  # from node to node at best, through Ray's object store: assumed; launch.doctor measures it


@dataclass(frozen=True)
class RunPlan:
    """Prediction for one workload on one split of the devices."""

    workload: Workload
    split: Split
    seconds: Mapping[str, float]  # of each stage when it runs alone
    step_s: float
    memory: list[Footprint]
    shortfalls: list[str]

    def label(self) -> str:
        return self.split.label(self.workload.tensor_parallel)

    @property
    def samples_per_s(self) -> float:
        return self.workload.samples / self.step_s


def plan_run(workload: Workload, split: Split, cluster: DeviceCluster, calibration: Calibration) -> RunPlan:
    """Predict seconds, memory and what does not fit."""
    loads, done = stage_loads(workload, split, cluster, calibration)
    seconds = {stage: calibration.stages[stage].seconds(loads[stage]) for stage in STAGES}
    memory = memory_footprints(workload, split, cluster, calibration.memory)
    return RunPlan(
        workload,
        split,
        seconds,
        step_seconds(workload, split, cluster, seconds, done),
        memory,
        shortfalls(workload, split, cluster, memory),
    )


def stage_loads(
    workload: Workload, split: Split, cluster: DeviceCluster, calibration: Calibration
) -> tuple[dict[str, Load], tuple[float, ...]]:
    """Load of each stage's slowest worker, and the shares of the sampling time at which groups are done."""
    stages = calibration.stages
    engine, teacher, learner = (
        Power(cluster.device, _devices_per_worker(workers * threads, threads, cluster))
        for workers, threads in (
            (split.rollout, split.rollout_threads * workload.tensor_parallel),
            (split.teacher, split.teacher_threads),
            (split.learner, split.learner_threads),
        )
    )
    forwards = workload.with_single_device_engines
    sampling = sampling_time(workload, engine, split.rollout, stages["sample"])
    return {
        "sample": sampling.load,
        "support": slowest_load(support_loads(forwards, learner, split.learner, cluster), stages["support"]),
        "score": slowest_load(
            score_loads(forwards, teacher, split.teacher, cluster, split.teacher_shards), stages["score"]
        ),
        "learn": slowest_load(learn_loads(forwards, learner, split.learner, cluster), stages["learn"]),
        "publish": publish_load(workload, split, cluster),
        "driver": Load(calls=1, items=workload.samples),
    }, sampling.done


def publish_load(workload: Workload, split: Split, cluster: DeviceCluster) -> Load:
    """Load of a weight publish: the first learner packs the weights bucket by bucket, every receiver loads them.

    Packing and loading overlap from bucket to bucket, except for the first and the last; receivers load at the same
    time where each has processors of its own.
    """
    device = cluster.device
    size = float(workload.weights_bytes)
    gathered = gather_s(workload, split.learner, cluster)
    buckets = max(1.0, size / (workload.bucket_mib * 2**20))
    receivers = split.rollout + split.teacher
    if device.shared:  # cores are shared as well as memory
        at_once = max(1.0, (receivers + 1) / cluster.size)
        seconds = (PACK_PASSES + LOAD_PASSES) * size / (device.memory_gb_per_s * GB) * at_once
        return Load(seconds, sent_s=gathered, calls=1, layers=buckets, items=receivers)
    out_s = size / (device.host_gb_per_s * GB)
    sent_s = size / (OBJECT_STORE_GB_PER_S * GB) if cluster.nodes > 1 else 0.0
    return Load(out_s + out_s / buckets, sent_s=gathered + sent_s, calls=1, layers=buckets, items=receivers)


def _devices_per_worker(requested: int, threads: int, cluster: DeviceCluster) -> float:
    """Devices of one worker: its threads, or fewer where its role requests more than there are."""
    return threads * min(1.0, cluster.size / max(requested, 1))


def step_seconds(
    workload: Workload, split: Split, cluster: DeviceCluster, seconds: Mapping[str, float], done: Sequence[float]
) -> float:
    """Seconds from one publish to the next.

    Scoring runs beside sampling, and the learners wait only for its tail; with `ahead`, the next batch is sampled
    while they learn. On shared devices a step takes at least the device-seconds of all its stages over the devices.
    """
    if split.ahead:
        step_s = overlapped_step_s(seconds, done, split.ahead, workload.waits_on_publish)
    else:
        step_s = sum(seconds[stage] for stage in ("sample", "learn", "publish", "driver")) + scoring_tail_s(
            seconds, done
        )
    return max(step_s, _shared_devices_s(workload, split, cluster, seconds)) if split.shared else step_s


def _crowding(workload: Workload, split: Split, cluster: DeviceCluster) -> float:
    """Slowdown where more processes run at the same time than there are cores."""
    processes = split.rollout * workload.tensor_parallel + split.teacher + split.learner
    return 1 + CROWDING * max(0, processes - cluster.size) if split.ahead and cluster.device.shared else 1.0


def _shared_devices_s(workload: Workload, split: Split, cluster: DeviceCluster, seconds: Mapping[str, float]) -> float:
    """Device-seconds of a step over the number of devices. A stage on a shared GPU has all of it."""
    devices = dict.fromkeys(STAGES, float(cluster.size))
    if cluster.device.shared:
        devices |= {
            "sample": split.rollout * split.rollout_threads * workload.tensor_parallel,
            "support": split.learner * split.learner_threads,
            "score": split.teacher * split.teacher_threads,
            "learn": split.learner * split.learner_threads,
            "driver": 1,
        }
    total_s = sum(seconds[stage] * min(1.0, devices[stage] / cluster.size) for stage in STAGES)
    return total_s * _crowding(workload, split, cluster)


def scoring_tail_s(seconds: Mapping[str, float], done: Sequence[float]) -> float:
    """Seconds that support and scoring run on after the last response; each call scores all groups done by then."""
    if not done:
        return 0.0
    each = (seconds["support"] + seconds["score"]) / len(done)
    ends = [share * seconds["sample"] for share in done]
    now, scored = 0.0, 0
    while scored < len(done):
        now = max(now, ends[scored])
        ready = bisect_right(ends, now)
        now, scored = now + each * (ready - scored), ready
    return now - seconds["sample"]
