"""Sampling with more workers: `python -m benchmarks.rollout [--workers 1 2] [--questions 64] [--rounds 3]`

Real vLLM engines of one thread each, on MiniSci questions; rounds turn about, so that
another's work on the machine falls on all alike. Tokens/s of the whole group, by worker, and the ratio to one worker.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.common.results_files import RESULTS, save
from demopsd_dist.config import load
from demopsd_dist.data.sources import load_data
from demopsd_dist.models.model_folder import model_folder
from demopsd_dist.training.roles import Sampling
from launch._processes import fenced
from launch._task import build_task
from workers.actors import RolloutActors
from workers.cluster import session
from workers.rollout.dispatch import RolloutGroup

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    words = ["rollout.cpus_per_worker=0.4", f"data.minisci_test_size={args.questions}"]
    base = load(ROOT / "configs" / "demo.yaml", words)
    task = build_task(base, model_folder(base), load_data(base.data).questions)[0]
    speeds: dict[int, list[float]] = {count: [] for count in args.workers}
    by_worker: dict[int, dict[str, float]] = {}
    with fenced(), ExitStack() as stack:
        session.join(base)
        groups: dict[int, RolloutGroup] = {}
        for count in args.workers:
            actors = RolloutActors(
                load(ROOT / "configs" / "demo.yaml", [*words, f"rollout.num_workers={count}"]), model_folder(base)
            )
            stack.callback(actors.stop)
            groups[count] = asyncio.run(actors.start())
        for turn in range(args.rounds + 1):
            for count, group in groups.items():
                sampling = Sampling(8, 1.0, 1.0, base.rollout.max_response_tokens, f"benchmark/{turn}")
                started = time.monotonic()
                found = asyncio.run(group.sample(task.test, sampling))
                tokens = sum(len(rollout.tokens_T) for siblings in found for rollout in siblings)
                by_worker[count] = group.figures()
                if turn:  # the first is for warming up
                    speeds[count].append(tokens / (time.monotonic() - started))
    one = statistics.median(speeds[args.workers[0]])
    rows: list[dict[str, Any]] = [
        {
            "workers": count,
            "tokens_per_s": statistics.median(found),
            "rounds": found,
            "ratio": statistics.median(found) / one,
            "by_worker": by_worker[count],
        }
        for count, found in speeds.items()
    ]
    lines = [
        "# Sampling with more workers",
        "",
        f"Two CPU cores, real vLLM engines, {args.questions} MiniSci questions x 8 responses a round; median of "
        f"{args.rounds} rounds, turn about.",
        "",
        "| workers | tokens/s | ratio | by worker, tokens/s |",
        "|---|---|---|---|",
    ]
    for row in rows:
        workers = ", ".join(f"{value:,.0f}" for value in row["by_worker"].values())
        lines.append(f"| {row['workers']} | {row['tokens_per_s']:,.0f} | {row['ratio']:.2f} | {workers} |")
    save(args.out, "rollout-cpu", rows, lines)


if __name__ == "__main__":
    main()
