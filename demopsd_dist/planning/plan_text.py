"""Text of a plan: the assumptions, one plan in full, the table of the fastest splits, and settings to take one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from demopsd_dist.planning.hardware import DeviceCluster
from demopsd_dist.planning.memory_by_role import Footprint, checkpoint_gib, unfused_logits_gib
from demopsd_dist.planning.roofline import STAGES, Calibration
from demopsd_dist.planning.step_time import RunPlan
from demopsd_dist.planning.workload import Workload

SHOWN_SPLITS = 5


def heading(workload: Workload, cluster: DeviceCluster, calibration: Calibration) -> Iterator[str]:
    """Lines with the model, the hardware, and the assumptions of the plan."""
    traffic = workload.traffic
    shape = workload.shape
    size = f"{shape.parameters / 1e9:.2f}e9 parameters"
    if shape.experts:
        size += f", {shape.active / 1e9:.2f}e9 active"
    if workload.adapters:
        size += f", frozen; LoRA adapters of {workload.adapters / 1e6:.1f}e6"
    yield f"model      {size}, {workload.precision}"
    nodes = f"{cluster.nodes} x " if cluster.nodes > 1 else ""
    yield f"hardware   {nodes}{cluster.per_node} x {cluster.device.name}"
    yield (
        f"a step     {workload.prompts} questions x {workload.group_size} responses; assumed of the data: prompts of "
        f"{traffic.prompt_tokens:.0f} tokens, responses of {traffic.response_tokens:.0f}, solutions of "
        f"{traffic.solution_tokens:.0f}, {traffic.right_fraction:.0%} right"
    )
    yield f"estimates  efficiencies {calibration.source}"


def plan_lines(plan: RunPlan, cluster: DeviceCluster, hours: float | None, price: float | None) -> Iterator[str]:
    """Lines of one plan in full: time by stage, samples and cost, memory by role, and what does not fit."""
    yield f"{plan.label()}: {_rate(plan)}"
    yield "  seconds    " + "   ".join(f"{stage} {_seconds(plan.seconds[stage])}" for stage in STAGES)
    if hours is not None:
        samples = plan.samples_per_s * hours * 3600
        line = f"  in {hours:g} h     {samples:,.0f} samples in {hours * 3600 / plan.step_s:,.0f} steps"
        if price is not None:
            total = hours * cluster.size * price
            line += f"; {cluster.size * hours:,.0f} device-hours, {total:,.0f} at {price:g} each"
            line += f", {total / samples:.2g} a sample"
        yield line
    for one in plan.memory:
        yield f"  {one.role:<10} {one.gib:6.1f} GiB a process: {_items(one)}"
    yield (
        f"             without the fused loss: {unfused_logits_gib(plan.workload, plan.split.learner):.1f} GiB of "
        "logits in a learner"
    )
    yield f"  checkpoint {checkpoint_gib(plan.workload):6.3g} GiB on disk each"
    for reason in plan.shortfalls:
        yield f"  DOES NOT FIT: {reason}"


def split_table(plans: Sequence[RunPlan]) -> Iterator[str]:
    """Table of the fastest splits, and why the fastest split that does not fit does not."""
    yield f"{'split':<58} {'step, s':>9} {'samples/s':>10}"
    fitting = [plan for plan in plans if not plan.shortfalls]
    for plan in fitting[:SHOWN_SPLITS]:
        yield f"{plan.label():<58} {plan.step_s:>9.3g} {plan.samples_per_s:>10.3g}"
    too_large = [plan for plan in plans if plan.shortfalls]
    if not fitting:
        yield "none of the splits fits"
    if too_large:
        yield f"{len(too_large)} of {len(plans)} splits do not fit, for example {too_large[0].label()}:"
        yield f"  {too_large[0].shortfalls[0]}"


def override_words(plan: RunPlan, configured: RunPlan) -> str:
    """Overrides for the command line that change the configured split into the plan's."""
    split = plan.split
    words = [
        f"rollout.num_workers={split.rollout}",
        f"learner.num_workers={split.learner}",
        f"rollout.ahead={split.ahead}",
    ]
    if split.teacher:
        words.insert(1, f"teacher.num_workers={split.teacher}")
    for key, value, before in (
        ("rollout.tensor_parallel", plan.workload.tensor_parallel, configured.workload.tensor_parallel),
        ("teacher.shards", split.teacher_shards, configured.split.teacher_shards),
    ):
        if value > 1 or before > 1:
            words.append(f"{key}={value}")
    for role, threads in (
        ("rollout", split.rollout_threads),
        ("teacher", split.teacher_threads),
        ("learner", split.learner_threads),
    ):
        if split.shared and (role != "teacher" or split.teacher):
            words.append(f"{role}.threads={threads}")
    return " ".join(words)


def _rate(plan: RunPlan) -> str:
    tokens = plan.samples_per_s * plan.workload.traffic.response_tokens
    return f"{_seconds(plan.step_s)} s a step, {plan.samples_per_s:.3g} samples/s, {tokens:,.0f} response tokens/s"


def _seconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _items(one: Footprint) -> str:
    transient = {name: one.factor * gib for name, gib in one.transient.items()}
    items = {"process": one.base_gib, **one.persistent, **transient}
    return ", ".join(f"{name} {gib:.1f}" for name, gib in items.items() if gib >= 0.05)
