"""A step: the stages put together as the driver does, with prompts ahead of the learners or without."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from demopsd_dist.planning.default_efficiencies import STAGES, Calibration
from demopsd_dist.planning.forward_time import heaviest, learn_loads, score_loads, support_loads
from demopsd_dist.planning.hardware import DeviceCluster
from demopsd_dist.planning.memory_by_role import Footprint, footprints, shortfalls
from demopsd_dist.planning.overlap import overlapped_step_s
from demopsd_dist.planning.publish_time import publish_load
from demopsd_dist.planning.roofline import Load, Power
from demopsd_dist.planning.sampling_time import sampled
from demopsd_dist.planning.workload import Split, Workload

CROWDING = 0.05  # of a step, for each process beyond the cores: the splits of benchmarks.plan, ahead of the learners


@dataclass(frozen=True)
class RunPlan:
    job: Workload
    split: Split
    seconds: Mapping[str, float]  # by stage, each by itself
    done: tuple[float, ...]  # shares of `sample` at which groups are done
    step_s: float
    memory: list[Footprint]
    shortfalls: list[str]

    def told(self) -> str:
        return self.split.told(self.job.tensor_parallel)

    @property
    def samples_per_s(self) -> float:
        return self.job.samples / self.step_s

    @property
    def response_tokens(self) -> float:
        return self.job.samples * self.job.traffic.response_tokens


def plan(job: Workload, split: Split, fleet: DeviceCluster, calibration: Calibration) -> RunPlan:
    loads, done = loads_of(job, split, fleet, calibration)
    seconds = {stage: calibration.stages[stage].seconds(loads[stage]) for stage in STAGES}
    memory = footprints(job, split, fleet, calibration.memory)
    return RunPlan(
        job,
        split,
        seconds,
        done,
        step_seconds(job, split, fleet, seconds, done),
        memory,
        shortfalls(job, split, fleet, memory),
    )


def loads_of(
    job: Workload, split: Split, fleet: DeviceCluster, calibration: Calibration
) -> tuple[dict[str, Load], tuple[float, ...]]:
    """Each stage's load: of its slowest worker."""
    stages = calibration.stages
    engine, teacher, learner = (
        Power(fleet.device, _own(workers * threads, threads, fleet))
        for workers, threads in (
            (split.rollout, split.rollout_threads * job.tensor_parallel),
            (split.teacher, split.teacher_threads),
            (split.learner, split.learner_threads),
        )
    )
    others = job.of_narrow_engines
    drawn = sampled(job, engine, split.rollout, stages["sample"])
    return {
        "sample": drawn.load,
        "support": heaviest(support_loads(others, learner, split.learner, fleet), stages["support"]),
        "score": heaviest(score_loads(others, teacher, split.teacher, fleet, split.teacher_shards), stages["score"]),
        "learn": heaviest(learn_loads(others, learner, split.learner, fleet), stages["learn"]),
        "publish": publish_load(job, split, fleet),
        "driver": Load(calls=1, items=job.samples),
    }, drawn.done


def _own(asked: int, threads: int, fleet: DeviceCluster) -> float:
    """What a worker has of the devices: its threads, or less where its role asks for more than there are."""
    return threads * min(1.0, fleet.size / max(asked, 1))


def step_seconds(
    job: Workload, split: Split, fleet: DeviceCluster, seconds: Mapping[str, float], done: Sequence[float]
) -> float:
    """From one publish to the next.

    Scoring runs beside sampling, and its tail alone is waited for; ahead of the learners, the next batch is sampled
    while they learn. On shared devices no step is shorter than all that is done in it, on all devices together.
    """
    if split.ahead:
        step_s = overlapped_step_s(seconds, done, split.ahead, job.waits_on_publish)
    else:
        step_s = sum(seconds[stage] for stage in ("sample", "learn", "publish", "driver")) + tail_seconds(seconds, done)
    return max(step_s, _done_together_s(job, split, fleet, seconds)) if split.shared else step_s


def _crowding(job: Workload, split: Split, fleet: DeviceCluster) -> float:
    """How much longer all takes where more processes are at work than there are cores."""
    at_work = split.rollout * job.tensor_parallel + split.teacher + split.learner
    return 1 + CROWDING * max(0, at_work - fleet.size) if split.ahead and fleet.device.shared else 1.0


def _done_together_s(job: Workload, split: Split, fleet: DeviceCluster, seconds: Mapping[str, float]) -> float:
    """Device-seconds of a step over the number of devices. On a GPU whoever is at work has all of it."""
    devices = dict.fromkeys(STAGES, float(fleet.size))
    if fleet.device.shared:
        devices |= {
            "sample": split.rollout * split.rollout_threads * job.tensor_parallel,
            "support": split.learner * split.learner_threads,
            "score": split.teacher * split.teacher_threads,
            "learn": split.learner * split.learner_threads,
            "driver": 1,
        }
    together_s = sum(seconds[stage] * min(1.0, devices[stage] / fleet.size) for stage in STAGES)
    return together_s * _crowding(job, split, fleet)


def tail_seconds(seconds: Mapping[str, float], done: Sequence[float]) -> float:
    """How long scoring goes on after the last response. Whatever is there when it has hands free, it takes at once; the
    learners name the support before."""
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
