"""Page of the campaign's results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.common.host_cluster import HEARTBEAT_S
from benchmarks.common.run_processes import ROLES
from benchmarks.faults.fault_plan import CUT, LONG_CUT_S, SHORT_CUT_S

HOSTS = "hosts"  # `kind` of a run over simulated hosts; others have none
Row = dict[str, Any]


def report(runs: Sequence[Row]) -> list[str]:
    """Lines of the page: counts over all runs, faults by target and stage, messages by cause, a row for each run."""
    lives = [life for run in runs for life in run["lives"]]
    faults = [fault for life in lives for fault in life["faults"] if fault["planted"]]
    torn = [life["torn"] for life in lives if life["torn"]]
    struck = Counter(f"{fault['action']} of {fault['target']}" for fault in faults)
    stages = Counter(fault["stage"] for fault in faults)
    causes: Counter[str] = Counter()
    for life in lives:
        causes.update(life["causes"])
    wrong = [(run["seed"], index, life) for run in runs for index, life in enumerate(run["lives"], 1) if life["wrong"]]
    found = [f"run {run['seed']}: {text}" for run in runs for text in run["audit"]]
    left = [f"run {run['seed']}: {', '.join(run['left'])}" for run in runs if run["left"]]
    hours = sum(run["seconds"] for run in runs) / 3600
    total = {key: sum(run[key] for run in runs) for key in ("steps", "samples", "again", "undone")}
    return [
        "# Faults in whole runs",
        "",
        f"{len(faults)} faults and {len(torn)} torn files in {len(lives)} processes of {len(runs)} runs on real "
        "engines (Ray, vLLM, DeepSpeed on two CPU cores; the model of 0.86M parameters), in "
        f"{hours:.1f} hours: `python -m benchmarks.faults`. "
        f"{total['steps']:,} steps of {total['samples']:,} samples stand, {total['undone']:,} "
        f"samples were undone and done again, {total['again']:,} requested again.",
        "",
        f"- Audit (samples lost or doubled, steps missing, checkpoints damaged): {'; '.join(found) or 'no fault'}.",
        f"- Lives that hung: {sum(life['hung'] for life in lives)}; that left a process: "
        f"{sum(bool(life['left']) for life in lives)}.",
        f"- Shared memory or temporary files left after a run: {'; '.join(left) or 'none'}.",
        f"- Messages without a known cause: {sum(len(life['unknown']) for life in lives)}.",
        *(f"- **Wrong** in run {seed}, life {index}: {life['wrong']}" for seed, index, life in wrong),
        "",
        "| fault | number |",
        "|---|---|",
        *(f"| {kind} | {count} |" for kind, count in struck.most_common()),
        *(f"| torn file: {kind} | {count} |" for kind, count in Counter(map(kind_of, torn)).most_common()),
        "",
        "| stage | faults |",
        "|---|---|",
        *(f"| {stage} | {count} |" for stage, count in stages.most_common()),
        "",
        "| cause that messages name | messages |",
        "|---|---|",
        *(f"| {cause} | {count} |" for cause, count in causes.most_common()),
        "",
        *hosts_report([run for run in runs if run.get("kind") == HOSTS]),
        "| run | over | lives | faults | torn files | steps | samples | undone | s |",
        "|---|---|---|---|---|---|---|---|---|",
        *(_row(run) for run in runs),
    ]


def hosts_report(runs: Sequence[Row]) -> list[str]:
    """Lines about links that were cut: by length and role, and what became of the host."""
    faults = [fault for run in runs for life in run["lives"] for fault in life["faults"] if fault["planted"]]
    cuts = [fault for fault in faults if fault["action"] == CUT]
    if not cuts:
        return []
    rows = []
    for length, within_s in (("shorter", SHORT_CUT_S), ("longer", LONG_CUT_S)):
        for role in ROLES:
            struck = [cut for cut in cuts if cut["target"] == role and within_s[0] <= cut["cut_s"] <= within_s[1]]
            lost = [cut["ray_ended_after_s"] for cut in struck if "ray_ended_after_s" in cut]
            after = f"{min(lost):.0f} to {max(lost):.0f} s" if lost else "–"
            cells = [role, f"{length}, {within_s[0]:g} to {within_s[1]:g} s", len(struck), len(lost), after]
            rows.append("| " + " | ".join(map(str, cells)) + " |")
    alone = [name for run in runs for name in run["lost_without_a_cut"]]
    return [
        f"**Cut links.** {len(runs)} of the runs were over five simulated hosts (network namespaces of one machine): "
        "the driver with Ray's head on the first, learners, teacher and rollout worker on others, one free; the run "
        "folder on storage that no cut reaches. "
        f"{len(cuts)} times the link of a worker's host was cut during a stage, and joined again after a time that is "
        f"shorter or longer than Ray's heartbeat allows (at most {HEARTBEAT_S:g} s here). A host that Ray had given up "
        "could not come back: its raylet ended itself, and its workers with it, and Ray was started there anew, which "
        "an operator or a service manager does in a real cluster. "
        f"Hosts that Ray gave up without a cut: {len(alone)}.",
        "",
        "| host of a | cut | number | given up | its Ray ended after the cut |",
        "|---|---|---|---|---|",
        *rows,
        "",
    ]


def kind_of(path: str) -> str:
    """Kind of a torn file: the first part of its path in the run folder."""
    return path.partition("/")[0]


def _row(run: Row) -> str:
    planted = sum(fault["planted"] for life in run["lives"] for fault in life["faults"])
    torn = sum(life["torn"] is not None for life in run["lives"])
    cells = [run["seed"], "five hosts" if run.get("kind") == HOSTS else "one machine", len(run["lives"]), planted, torn]
    cells += [run["steps"], run["samples"], run["undone"], run["seconds"]]
    return "| " + " | ".join(map(str, cells)) + " |"
