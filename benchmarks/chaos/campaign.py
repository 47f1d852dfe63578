"""Runs with random faults, and their audit: `python -m benchmarks.chaos [--faults 50] [--seeds 20] [--real 15]`

Each seed is a run of the real driver on simulated engines through random faults: workers that crash, hang, are slow,
answer twice, late, to another prompt or without numbers; learners and teachers that die; checkpoints cut in half; the
driver killed and resumed. The audit then checks that every sample was trained once or dropped for a reason, and that
every step trains on the same samples as in an undisturbed run. `--real N` plants N faults in real engines instead, and
reports the time that each recovery took.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.chaos.real_faults import choose_faults, run_with_planted_faults
from benchmarks.chaos.simulated_faults import FaultRun, fault_task, run_with_faults
from benchmarks.common.results_files import RESULTS, save
from benchmarks.common.timed_runs import DEMO
from demopsd_dist.config import load
from launch._processes import fenced
from workers.cluster import session

Row = dict[str, Any]


def simulated_campaign(faults: int, seeds: Sequence[int]) -> Row:
    """A run with faults for each seed, beside one without."""
    task, steps = fault_task(), max(faults, 6)
    planted: Counter[str] = Counter()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        undisturbed = run_with_faults(0, seed=-1, task=task, output=Path(folder), steps=steps)
        for seed in seeds:
            result = run_with_faults(faults, seed, task, Path(folder), steps, ahead=seed % 2)
            planted += result.planted
            rows.append(row_of(result, undisturbed))
            print(f"seed {seed}: {rows[-1]}", flush=True)
    return {"steps": steps, "seeds": rows, "planted": dict(planted)}


def row_of(result: FaultRun, undisturbed: FaultRun) -> Row:
    """Figures of a run. `lost` and `doubled` count samples, `other_steps` the steps that trained on other samples than
    the undisturbed run."""
    audit_faults = {fault.description: len(fault.names) for fault in result.audit.faults}
    return {
        "seed": result.seed,
        "faults": result.planted.total(),
        "lives": len(result.audit.lives),
        "again": result.audit.resampled,
        "undone": result.audit.undone,
        "lost": audit_faults.get("samples are lost: neither trained nor dropped", 0),
        "doubled": audit_faults.get("samples were trained more than once", 0),
        "audit": audit_faults,  # such as a damaged checkpoint that no resume has read since
        "other_steps": sum(result.learned.get(step) != names for step, names in undisturbed.learned.items()),
        "seconds": round(result.seconds, 1),
    }


def real_campaign(count: int, seed: int) -> Row:
    """Effects and audit of `count` faults in real engines."""
    result = run_with_planted_faults(choose_faults(seed, count))
    effects = [
        {"fault": str(effect.fault), "step": effect.step, "lost_s": round(effect.lost_s, 1)}
        for effect in result.effects
    ]
    return {
        "effects": effects,
        "steps": result.audit.steps,
        "samples": result.audit.issued,
        "again": result.audit.resampled,
        "undone": result.audit.undone,
        "audit": [str(fault) for fault in result.audit.faults],
    }


def report(results: Row) -> list[str]:
    """Lines of the page."""
    lines = ["# Chaos", ""]
    if "simulated" in results:
        lines += [*_simulated_lines(results["simulated"]), ""]
    if "real" in results:
        lines += [*_real_lines(results["real"]), ""]
    return lines


def _simulated_lines(results: Row) -> list[str]:
    rows = results["seeds"]
    total = {key: sum(row[key] for row in rows) for key in ("faults", "lost", "doubled", "other_steps")}
    keys = ("seed", "faults", "lives", "again", "undone", "lost", "doubled", "other_steps", "seconds")
    return [
        f"**Simulated engines**, real driver, supervision, ledger and checkpoints: {total['faults']:,} random "
        f"faults in {len(rows)} runs of {results['steps']} steps: {total['lost']} samples lost, "
        f"{total['doubled']} doubled, {total['other_steps']} steps that trained on other samples than an "
        "undisturbed run, no hang.",
        "",
        "Faults: " + ", ".join(f"{count} {kind}" for kind, count in sorted(results["planted"].items())),
        "",
        "| seed | faults | lives | samples requested again | undone | lost | doubled | other steps | s |",
        "|---|---|---|---|---|---|---|---|---|",
        *("| " + " | ".join(str(row[key]) for key in keys) + " |" for row in rows),
    ]


def _real_lines(results: Row) -> list[str]:
    effects = results["effects"]
    return [
        f"**Real engines** (Ray, vLLM, DeepSpeed on two CPU cores): {len(effects)} faults in {results['steps']} "
        f"steps of {results['samples']:,} samples, {results['again']} requested again, {results['undone']} undone; "
        f"faults in the audit: {'; '.join(results['audit']) or 'none'}. Seconds lost to a fault: until the next "
        "one, beyond the usual time of the steps gained by then (steps that are done again are not gained):",
        "",
        "| fault | after step | lost, s |",
        "|---|---|---|",
        *(f"| {effect['fault']} | {effect['step']} | {effect['lost_s']} |" for effect in effects),
    ]


def main() -> int:
    """Command line of the benchmark. The exit code is 1 where an audit found a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=50, help="faults of each simulated run, at most")
    parser.add_argument("--seeds", type=int, default=20, help="number of simulated runs")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--real", type=int, metavar="N", help="plant N faults in real engines instead")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args()
    raw = arguments.out / "chaos-cpu.json"
    results: Row = json.loads(raw.read_text()) if raw.exists() else {}
    if arguments.real:
        with fenced():
            session.join(load(DEMO))
            results["real"] = real_campaign(arguments.real, arguments.seed)
            sound = not results["real"]["audit"]
    else:
        seeds = [arguments.seed + i for i in range(arguments.seeds)]
        results["simulated"] = simulated_campaign(arguments.faults, seeds)
        sound = not any(row["audit"] or row["other_steps"] for row in results["simulated"]["seeds"])
    save(arguments.out, "chaos-cpu", results, report(results))
    return 0 if sound else 1
