"""A plan, for a reader: as configured, the best split, and what would not fit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from demopsd_dist.planning.default_efficiencies import STAGES, Calibration
from demopsd_dist.planning.hardware import DeviceCluster
from demopsd_dist.planning.memory_by_role import Footprint, checkpoint_gib, plain_logits_gib
from demopsd_dist.planning.step_time import RunPlan
from demopsd_dist.planning.workload import Workload

SHOWN_SPLITS = 5


def heading(job: Workload, fleet: DeviceCluster, calibration: Calibration) -> Iterator[str]:
    traffic = job.traffic
    shape = job.shape
    told = f"{shape.parameters / 1e9:.2f}e9 parameters" + (
        f", {shape.active / 1e9:.2f}e9 active" if shape.experts else ""
    )
    told += f", of which none is trained: adapters of {job.adapters / 1e6:.1f}e6" if job.adapters else ""
    yield f"model      {told}, {job.precision}"
    place = f"{fleet.nodes} x " if fleet.nodes > 1 else ""
    yield f"hardware   {place}{fleet.per_node} x {fleet.device.name}"
    yield (
        f"a step     {job.prompts} questions x {job.group_size} responses; assumed of the data: prompts of "
        f"{traffic.prompt_tokens:.0f} tokens, responses of {traffic.response_tokens:.0f}, solutions of "
        f"{traffic.solution_tokens:.0f}, {traffic.right_fraction:.0%} right"
    )
    yield f"figures    efficiencies {calibration.source}"


def chosen(made: RunPlan, fleet: DeviceCluster, hours: float | None, price: float | None) -> Iterator[str]:
    """One plan in full: time by stage, samples and cost, memory by role."""
    yield f"{made.told()}: {_rate(made)}"
    yield "  seconds    " + "   ".join(f"{stage} {_seconds(made.seconds[stage])}" for stage in STAGES)
    if hours is not None:
        samples = made.samples_per_s * hours * 3600
        line = f"  in {hours:g} h     {samples:,.0f} samples in {hours * 3600 / made.step_s:,.0f} steps"
        if price is not None:
            total = hours * fleet.size * price
            line += f"; {fleet.size * hours:,.0f} device-hours, {total:,.0f} at {price:g} each"
            line += f", {total / samples:.2g} a sample"
        yield line
    for one in made.memory:
        yield f"  {one.role:<10} {one.gib:6.1f} GiB a process: {_items(one)}"
    yield (
        f"             the loss without fusing would hold {plain_logits_gib(made.job, made.split.learner):.1f} GiB of "
        "logits in a learner"
    )
    yield f"  checkpoint {checkpoint_gib(made.job):6.3g} GiB on disk each"
    for reason in made.shortfalls:
        yield f"  DOES NOT FIT: {reason}"


def best(plans: Sequence[RunPlan]) -> Iterator[str]:
    """The fastest splits, and why the first that is faster than all of these does not fit."""
    yield f"{'split':<58} {'step, s':>9} {'samples/s':>10}"
    fitting = [made for made in plans if not made.shortfalls]
    for made in fitting[:SHOWN_SPLITS]:
        yield f"{made.told():<58} {made.step_s:>9.3g} {made.samples_per_s:>10.3g}"
    left_out = [made for made in plans if made.shortfalls]
    if not fitting:
        yield "none of the splits fits"
    if left_out:
        yield f"{len(left_out)} of {len(plans)} splits do not fit, for example {left_out[0].told()}:"
        yield f"  {left_out[0].shortfalls[0]}"


def settings(made: RunPlan, asked: RunPlan) -> str:
    """As words for the command line, over those of `asked`."""
    split = made.split
    words = [
        f"rollout.num_workers={split.rollout}",
        f"learner.num_workers={split.learner}",
        f"rollout.ahead={split.ahead}",
    ]
    if split.teacher:
        words.insert(1, f"teacher.num_workers={split.teacher}")
    for key, own, before in (
        ("rollout.tensor_parallel", made.job.tensor_parallel, asked.job.tensor_parallel),
        ("teacher.shards", split.teacher_shards, asked.split.teacher_shards),
    ):
        if own > 1 or before > 1:
            words.append(f"{key}={own}")
    for role, threads in (
        ("rollout", split.rollout_threads),
        ("teacher", split.teacher_threads),
        ("learner", split.learner_threads),
    ):
        if split.shared and (role != "teacher" or split.teacher):
            words.append(f"{role}.threads={threads}")
    return " ".join(words)


def _rate(made: RunPlan) -> str:
    tokens = made.samples_per_s * made.job.traffic.response_tokens
    return f"{_seconds(made.step_s)} s a step, {made.samples_per_s:.3g} samples/s, {tokens:,.0f} response tokens/s"


def _seconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _items(one: Footprint) -> str:
    items = {"process": one.base_gib, **one.held, **{name: one.factor * gib for name, gib in one.passing.items()}}
    return ", ".join(f"{name} {gib:.1f}" for name, gib in items.items() if gib >= 0.05)
