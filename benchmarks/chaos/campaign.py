"""What the guarantees are worth: `python -m benchmarks.chaos [--faults 50] [--seeds 20] [--real 15]`

Each seed is a run of the real driver with simulated engines through so many random faults: workers that crash, hang,
are slow, answer twice, late, to another prompt or with no numbers; learners and teachers that die; checkpoints torn in
two; the driver killed and resumed. Then the audit: every sample trained once or dropped for a reason, and every step
the one that an undisturbed run makes. `--real N` strikes N times at real engines instead, and tells how long each
recovery took.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.chaos.real_faults import every_blow, under_fire
from benchmarks.chaos.simulated_faults import DEMO, WORDS, Outcome, survive
from benchmarks.common.results_files import RESULTS, save
from demopsd_dist.config import load
from demopsd_dist.data.sources import load_data
from demopsd_dist.models.model_folder import model_folder
from demopsd_dist.training.run import Task
from launch._processes import fenced
from launch._task import build_task
from workers.cluster import session

Row = dict[str, Any]


def task_of_chaos() -> Task:
    config = load(DEMO, WORDS)
    return build_task(config, model_folder(config), load_data(config.data).questions)[0]


def simulated(faults: int, seeds: list[int]) -> Row:
    task, steps = task_of_chaos(), max(faults, 6)
    struck: Counter[str] = Counter()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        calm = survive(0, seed=-1, task=task, output=Path(folder), steps=steps)
        for seed in seeds:
            found = survive(faults, seed, task, Path(folder), steps, ahead=seed % 2)
            struck += found.struck
            rows.append(told(found, calm))
            print(f"seed {seed}: {rows[-1]}", flush=True)
    return {"steps": steps, "seeds": rows, "struck": dict(struck)}


def told(found: Outcome, calm: Outcome) -> Row:
    """`lost` and `doubled` are samples; `other_steps` are those that did not learn what the undisturbed run learned."""
    faults = {fault.what: len(fault.names) for fault in found.account.faults}
    return {
        "seed": found.seed,
        "faults": found.struck.total(),
        "lives": len(found.account.lives),
        "again": found.account.again,
        "undone": found.account.undone,
        "lost": faults.get("samples are lost: neither trained nor dropped", 0),
        "doubled": faults.get("samples were trained more than once", 0),
        "audit": faults,  # a checkpoint that was torn and that no resume met is one
        "other_steps": sum(found.learned.get(step) != names for step, names in calm.learned.items()),
        "seconds": round(found.seconds, 1),
    }


def real(count: int, seed: int) -> Row:
    found = under_fire(every_blow(seed, count))
    felt = [{"blow": str(one.blow), "step": one.step, "lost_s": round(one.lost_s, 1)} for one in found.felt]
    return {
        "felt": felt,
        "steps": found.account.steps,
        "samples": found.account.issued,
        "again": found.account.again,
        "undone": found.account.undone,
        "audit": [str(fault) for fault in found.account.faults],
    }


def report(found: Row) -> list[str]:
    lines = ["# Chaos", ""]
    if "simulated" in found:
        rows = found["simulated"]["seeds"]
        total = {key: sum(row[key] for row in rows) for key in ("faults", "lost", "doubled", "other_steps")}
        lines += [
            f"**Simulated engines**, real driver, supervision, ledger and checkpoints: {total['faults']:,} random "
            f"faults in {len(rows)} runs of {found['simulated']['steps']} steps: {total['lost']} samples lost, "
            f"{total['doubled']} doubled, {total['other_steps']} steps that learned something else than an undisturbed "
            "run, no hang.",
            "",
            "Faults: " + ", ".join(f"{count} {kind}" for kind, count in sorted(found["simulated"]["struck"].items())),
            "",
            "| seed | faults | lives | samples asked again | undone | lost | doubled | other steps | s |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        keys = ("seed", "faults", "lives", "again", "undone", "lost", "doubled", "other_steps", "seconds")
        lines += ["| " + " | ".join(str(row[key]) for key in keys) + " |" for row in rows]
        lines.append("")
    if "real" in found:
        row = found["real"]
        lines += [
            f"**Real engines** (Ray, vLLM, DeepSpeed on two CPU cores): {len(row['felt'])} blows in {row['steps']} "
            f"steps of {row['samples']:,} samples, {row['again']} asked again, {row['undone']} undone; faults in the "
            f"account: {'; '.join(row['audit']) or 'none'}. Seconds lost to a blow: until the next "
            "one, beyond what the steps gained by then usually take (steps that are done again are not gained):",
            "",
            "| blow | after step | lost, s |",
            "|---|---|---|",
        ]
        lines += [f"| {one['blow']} | {one['step']} | {one['lost_s']} |" for one in row["felt"]]
        lines.append("")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=50, help="in each simulated run")
    parser.add_argument("--seeds", type=int, default=20, help="how many simulated runs")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--real", type=int, metavar="N", help="N blows at real engines instead")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    raw = arguments.out / "chaos-cpu.json"
    found: Row = json.loads(raw.read_text()) if raw.exists() else {}
    if arguments.real:
        with fenced():
            session.join(load(DEMO))
            found["real"] = real(arguments.real, arguments.seed)
            sound = not found["real"]["audit"]
    else:
        seeds = [arguments.seed + i for i in range(arguments.seeds)]
        found["simulated"] = simulated(arguments.faults, seeds)
        sound = not any(row["audit"] or row["other_steps"] for row in found["simulated"]["seeds"])
    save(arguments.out, "chaos-cpu", found, report(found))
    return 0 if sound else 1
