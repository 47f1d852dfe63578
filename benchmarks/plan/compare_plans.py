"""The planner, checked: `python -m benchmarks.plan [--cases NAME ...] [--rounds 4] [--only-report]`

Runs small cases on real engines on this machine's cores: models with random weights to calibrate on, and the demo and
models of other sizes to predict (`plan_cases.py`). The report compares every prediction with what was measured, the
splits of two cores with each other, the planner's way of putting stages together with a simulation of the same driver
(`plan_simulated.py`), and its figures for GPUs with what others have published (`plan_published.py`). A case that is
named is run again; without names all that are not there yet are. The file of figures is one to calibrate from:
`python -m launch.plan CONFIG --gpus 2xcpu --calibrate benchmarks/results/plan-cpu.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.results_files import RESULTS, save
from benchmarks.plan.measured_cases import CASES, run
from benchmarks.plan.plan_page import report
from benchmarks.plan.published_steps import published
from benchmarks.plan.simulated_steps import simulations
from demopsd_dist.planning.hardware import GIB, Device, DeviceCluster
from launch._processes import fenced

Row = dict[str, Any]
PRODUCT = 1536  # rows and columns of the matrices
COPIED_BYTES = 256 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", metavar="NAME", help="some of: " + "; ".join(case.name for case in CASES))
    parser.add_argument("--rounds", type=int, default=4, help="after the first; the fastest counts")
    parser.add_argument("--only-report", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    raw = args.out / "plan-cpu.json"
    found: Row = json.loads(raw.read_text()) if raw.exists() else {"fleet": asdict(this_machine()), "measured": []}
    there = {row["name"] for row in found["measured"]}
    for case in [] if args.only_report else CASES:
        if case.name in (args.cases or ()) or (args.cases is None and case.name not in there):
            with fenced():
                row = run(case, args.rounds)
            found["measured"] = [old for old in found["measured"] if old["name"] != case.name] + [row]
            found["measured"].sort(key=lambda row: [case.name for case in CASES].index(row["name"]))
            args.out.mkdir(parents=True, exist_ok=True)
            raw.write_text(json.dumps(found, indent=2) + "\n")
            print(case.name, {stage: round(value, 3) for stage, value in row["seconds"].items()}, flush=True)
    found |= {"simulated": list(simulations()), "published": list(published())}
    save(args.out, "plan-cpu", found, list(report(found)))


def this_machine() -> DeviceCluster:
    """A core's rates, each core busy: products of matrices, and copies, of which every byte is read and written."""
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    tflops = {dtype: product_flops(dtype) / 1e12 / cores for dtype in (torch.float32, torch.bfloat16)}
    source, target = (torch.full((COPIED_BYTES,), i, dtype=torch.uint8) for i in range(2))
    moved = best_rate(lambda: target.copy_(source), 2.0 * COPIED_BYTES) / 1e9 / cores
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    device = Device(
        "cpu",
        memory_gib,
        bfloat16_tflops=tflops[torch.bfloat16],
        tf32_tflops=tflops[torch.float32],
        float32_tflops=tflops[torch.float32],
        memory_gb_per_s=moved,
        link_gb_per_s=moved / 2,  # ranks read what others wrote
        host_gb_per_s=moved,
        network_gb_per_s=1.0,
        shared=True,
    )
    return DeviceCluster(device, 1, cores)


def product_flops(dtype: torch.dtype) -> float:
    matrix = torch.randn(PRODUCT, PRODUCT).to(dtype)
    return best_rate(lambda: matrix @ matrix, 2.0 * PRODUCT**3)


def best_rate(work: Callable[[], Any], amount: float, times: int = 12) -> float:
    """Of several tries the fastest: others may be at work here."""

    def seconds() -> Iterator[float]:
        for _ in range(times):
            started = time.perf_counter()
            work()
            yield time.perf_counter() - started

    return amount / min(seconds())
