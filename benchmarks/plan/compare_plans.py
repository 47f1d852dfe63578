"""Planner benchmark: `python -m benchmarks.plan [--cases NAME ...] [--rounds 4] [--only-report]`

Runs small cases on real engines on this machine's cores: models with random weights to calibrate on, and the demo and
models of other sizes to predict (`measured_cases.py`). The page compares every prediction with its measurement, the
splits of two cores with each other, the planner's combination of stages with a simulation of the real driver
(`simulated_steps.py`), and its predictions for GPUs with published ones (`published_steps.py`). Named cases are run
again; without names, all cases without a result. The results file is also a calibration:
`demopsd plan CONFIG --gpus 2xcpu --calibrate benchmarks/results/plan-cpu.json`.
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
    parser.add_argument("--rounds", type=int, default=4, help="rounds after the first; the fastest counts")
    parser.add_argument("--only-report", action="store_true", help="run no case, only write the page")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of plan-cpu.json and plan-cpu.md")
    args = parser.parse_args()
    raw = args.out / "plan-cpu.json"
    results: Row = json.loads(raw.read_text()) if raw.exists() else {"cluster": asdict(this_machine()), "measured": []}
    done = {row["name"] for row in results["measured"]}
    for case in [] if args.only_report else CASES:
        if case.name in (args.cases or ()) or (args.cases is None and case.name not in done):
            with fenced():
                row = run(case, args.rounds)
            results["measured"] = [old for old in results["measured"] if old["name"] != case.name] + [row]
            results["measured"].sort(key=lambda row: [case.name for case in CASES].index(row["name"]))
            args.out.mkdir(parents=True, exist_ok=True)
            raw.write_text(json.dumps(results, indent=2) + "\n")
            print(case.name, {stage: round(value, 3) for stage, value in row["seconds"].items()}, flush=True)
    results |= {"simulated": list(simulations()), "published": list(published())}
    save(args.out, "plan-cpu", results, list(report(results)))


def this_machine() -> DeviceCluster:
    """Measure the rates of a core while all are busy: matrix products, and copies, which read and write every byte."""
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
        link_gb_per_s=moved / 2,  # a rank writes, another reads
        host_gb_per_s=moved,
        network_gb_per_s=1.0,
        shared=True,
    )
    return DeviceCluster(device, 1, cores)


def product_flops(dtype: torch.dtype) -> float:
    """Operations a second of a matrix product, on all cores."""
    matrix = torch.randn(PRODUCT, PRODUCT).to(dtype)
    return best_rate(lambda: matrix @ matrix, 2.0 * PRODUCT**3)


def best_rate(work: Callable[[], Any], amount: float, times: int = 12) -> float:
    """Rate of the fastest of several tries, as other processes may use the machine too."""

    def seconds() -> Iterator[float]:
        for _ in range(times):
            started = time.perf_counter()
            work()
            yield time.perf_counter() - started

    return amount / min(seconds())
