"""Text that `launch.plan` prints: assumptions, one plan in full, the fastest splits (divisions of the devices among
rollout, teacher and learner), and the settings that select one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from demopsd_dist.planning.hardware import DeviceCluster
from demopsd_dist.planning.memory_by_role import Footprint, checkpoint_gib, fitting_memory, unfused_logits_gib
from demopsd_dist.planning.roofline import STAGES, Calibration
from demopsd_dist.planning.step_time import RunPlan
from demopsd_dist.planning.workload import Workload
from demopsd_dist.util.fitted_lines import fitted

SHOWN_SPLITS = 5
NUMBER_COLUMNS = 21  # of the table of splits
KNOWN_ERROR = (
    "on two CPU cores, calibrated, steps were predicted within 21 % and memory within 14 %; published step times on "
    "GPUs were 1.76 to 2.89 times shorter than predicted, so compare splits rather than seconds (docs/planning.md)"
)
"""Errors of earlier predictions against measurements; a test compares the figures with the page."""


def heading(
    workload: Workload, cluster: DeviceCluster, calibration: Calibration, absent_model: str | None = None
) -> Iterator[str]:
    """Lines with the model, the hardware, and the assumptions of the plan.

    Args:
        absent_model: path of a model that is not there and whose shape is known by its name.
    """
    traffic = workload.traffic
    shape = workload.shape
    size = f"{shape.parameters / 1e9:.2f}e9 parameters"
    if shape.experts:
        size += f", {shape.active / 1e9:.2f}e9 active"
    if workload.adapters:
        size += f", frozen; LoRA adapters of {workload.adapters / 1e6:.1f}e6"
    teacher = f", teacher {workload.teacher_precision}" if workload.teacher_copies else ""
    known = f" (known by its name: there is no {absent_model} here)" if absent_model else ""
    yield f"model      {size}, {workload.precision}{teacher}{known}"
    nodes = f"{cluster.nodes} x " if cluster.nodes > 1 else ""
    yield f"hardware   {nodes}{cluster.per_node} x {cluster.device.name}"
    yield (
        f"a step     {workload.prompts} questions x {workload.group_size} responses; assumed means: prompt "
        f"{traffic.prompt_tokens:.0f} tokens, response {traffic.response_tokens:.0f}, solution "
        f"{traffic.solution_tokens:.0f}; {traffic.right_fraction:.0%} of responses correct"
    )
    yield f"estimates  device efficiencies: {calibration.source}"
    yield f"known error: {KNOWN_ERROR}"


def plan_lines(plan: RunPlan, cluster: DeviceCluster, hours: float | None, price: float | None) -> Iterator[str]:
    """Lines of one plan in full: what does not fit, time by stage, samples and cost, memory by role."""
    yield f"{plan.label()}: {_rate(plan)}"
    for reason in plan.shortfalls:
        yield f"  DOES NOT FIT: {reason}"
    if not plan.shortfalls:
        yield f"  fits       {fitting_memory(plan.workload, plan.split, cluster, plan.memory)}"
    yield "  seconds    " + "   ".join(f"{stage} {_seconds(plan.seconds[stage])}" for stage in STAGES)
    if hours is not None:
        samples = plan.samples_per_s * hours * 3600
        line = f"  in {hours:g} h     {samples:,.0f} samples in {hours * 3600 / plan.step_s:,.0f} steps"
        if price is not None:
            total = hours * cluster.size * price
            line += f"; {cluster.size * hours:,.0f} device-hours, cost {total:,.0f} at {price:g} per device-hour"
            line += f", {total / samples:.2g} per sample"
        yield line
    for footprint in plan.memory:
        yield f"  {footprint.role:<10} {footprint.gib:6.1f} GiB a process: {_items(footprint)}"
    yield (
        "             for comparison: an unfused loss would hold "
        f"{unfused_logits_gib(plan.workload, plan.split.learner):.1f} GiB of logits in each learner"
    )
    yield f"  checkpoint {checkpoint_gib(plan.workload):6.3g} GiB on disk each"


def split_table(plans: Sequence[RunPlan], width: int | None = None) -> Iterator[str]:
    """Table of the fastest splits that fit in memory, and the first reason why the fastest of the others does not.

    Args:
        width: columns of the table; None for the widest label.
    """
    columns = min(58, (width or 80) - 1 - NUMBER_COLUMNS)
    yield f"{'split':<{columns}} {'step, s':>9} {'samples/s':>10}"
    fitting = [plan for plan in plans if not plan.shortfalls]
    for plan in fitting[:SHOWN_SPLITS]:
        first, *rest = fitted(plan.label(), columns)
        yield f"{first:<{columns}} {plan.step_s:>9.3g} {plan.samples_per_s:>10.3g}"
        yield from rest
    not_fitting = [plan for plan in plans if plan.shortfalls]
    if not fitting:
        yield "none of the splits fits"
    if not_fitting:
        yield f"{len(not_fitting)} of {len(plans)} splits do not fit, for example {not_fitting[0].label()}:"
        yield f"  {not_fitting[0].shortfalls[0]}"


def policy_lines(plans: Sequence[RunPlan], configured: RunPlan) -> Iterator[str]:
    """Line that says that the fastest split samples ahead of the learners although the config does not, with the
    fastest one that does not; none otherwise."""
    fastest, before = plans[0], configured.split.ahead
    if fastest.split.ahead <= before:
        return
    others = [plan for plan in plans if plan.split.ahead <= before and not plan.shortfalls]
    line = (
        f"It leaves on-policy training: with rollout.ahead={fastest.split.ahead} responses are sampled with weights "
        f"up to {fastest.split.ahead} version{'s' * (fastest.split.ahead > 1)} old"
        if before == 0
        else f"It samples further ahead than the config: rollout.ahead={fastest.split.ahead} instead of {before}"
    )
    if others:
        line += f"; the fastest with rollout.ahead={others[0].split.ahead}: {others[0].label()}: {_rate(others[0])}"
    yield line


def command_line_overrides(plan: RunPlan, configured: RunPlan) -> str:
    """Overrides for the command line that change the configured split into the plan's."""
    split = plan.split
    overrides = [
        f"rollout.num_workers={split.rollout}",
        f"learner.num_workers={split.learner}",
        f"rollout.ahead={split.ahead}",
    ]
    if split.teacher:
        overrides.insert(1, f"teacher.num_workers={split.teacher}")
    if configured.split.shared and not split.shared:  # fractions of a GPU, or CPU cores
        roles = ("rollout", *(["teacher"] if split.teacher else []), "learner")
        overrides += [f"{role}.gpus_per_worker=1" for role in roles]
        overrides += ["rollout.sleep=false"] * configured.workload.engines_sleep
    for key, value, before in (
        ("rollout.tensor_parallel", plan.workload.tensor_parallel, configured.workload.tensor_parallel),
        ("teacher.shards", split.teacher_shards, configured.split.teacher_shards),
    ):
        if value > 1 or before > 1:
            overrides.append(f"{key}={value}")
    for role, threads in (
        ("rollout", split.rollout_threads),
        ("teacher", split.teacher_threads),
        ("learner", split.learner_threads),
    ):
        if split.shared and (role != "teacher" or split.teacher):
            overrides.append(f"{role}.threads={threads}")
    return " ".join(overrides)


def _rate(plan: RunPlan) -> str:
    tokens = plan.samples_per_s * plan.workload.traffic.response_tokens
    return f"{_seconds(plan.step_s)} s a step, {plan.samples_per_s:.3g} samples/s, {tokens:,.0f} response tokens/s"


def _seconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _items(footprint: Footprint) -> str:
    transient = {name: footprint.factor * gib for name, gib in footprint.transient.items()}
    # "runtime": an empty process, or its CUDA context
    items = {"runtime": footprint.base_gib, **footprint.persistent, **transient}
    return ", ".join(f"{name} {gib:.1f}" for name, gib in items.items() if gib >= 0.05)
