"""Sampling with more workers: `python -m benchmarks.rollout [--workers 1 2] [--questions 64] [--rounds 3]`

Real vLLM engines of one thread each, on MiniSci questions. The numbers of workers take turns, so that other load on
the machine slows all of them alike. Tokens/s of the whole group and of each worker, and the ratio to one worker.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.common.results_files import RESULTS, save
from benchmarks.common.timed_runs import DEMO, task_of
from demopsd_dist.config import load
from demopsd_dist.models.model_folder import model_folder
from demopsd_dist.training.roles import Sampling
from launch._processes import fenced
from workers.actors import RolloutActors
from workers.cluster import session
from workers.rollout.group import RolloutGroup

Row = dict[str, Any]


def measure(workers: Sequence[int], questions: int, rounds: int) -> list[Row]:
    """Tokens/s of groups with these numbers of workers, which take turns; a row for each."""
    words = ["rollout.cpus_per_worker=0.4", f"data.minisci_test_size={questions}"]
    base = load(DEMO, words)
    task = task_of(base)
    rates: dict[int, list[float]] = {count: [] for count in workers}
    by_worker: dict[int, dict[str, float]] = {}
    with fenced(), ExitStack() as stack:
        session.join(base)
        groups: dict[int, RolloutGroup] = {}
        for count in workers:
            actors = RolloutActors(load(DEMO, [*words, f"rollout.num_workers={count}"]), model_folder(base))
            stack.callback(actors.stop)
            groups[count] = asyncio.run(actors.start())
        for turn in range(rounds + 1):
            for count, group in groups.items():
                sampling = Sampling(8, 1.0, 1.0, base.rollout.max_response_tokens, f"benchmark/{turn}")
                started = time.monotonic()
                sampled = asyncio.run(group.sample(task.test, sampling))
                tokens = sum(len(rollout.tokens_T) for siblings in sampled for rollout in siblings)
                by_worker[count] = group.metrics()
                if turn:  # the first is for warming up
                    rates[count].append(tokens / (time.monotonic() - started))
    one = statistics.median(rates[workers[0]])
    return [
        {
            "workers": count,
            "tokens_per_s": statistics.median(of_rounds),
            "rounds": of_rounds,
            "ratio": statistics.median(of_rounds) / one,
            "by_worker": by_worker[count],
        }
        for count, of_rounds in rates.items()
    ]


def report(rows: Sequence[Row], questions: int, rounds: int) -> list[str]:
    """Lines of the page."""
    lines = [
        "# Sampling with more workers",
        "",
        f"Two CPU cores, real vLLM engines, {questions} MiniSci questions x 8 responses a round; median of "
        f"{rounds} rounds, in turn.",
        "",
        "| workers | tokens/s | ratio | by worker, tokens/s |",
        "|---|---|---|---|",
    ]
    for row in rows:
        workers = ", ".join(f"{value:,.0f}" for value in row["by_worker"].values())
        lines.append(f"| {row['workers']} | {row['tokens_per_s']:,.0f} | {row['ratio']:.2f} | {workers} |")
    return lines


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of workers, in turn")
    parser.add_argument("--questions", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3, help="rounds after the first")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()
    rows = measure(args.workers, args.questions, args.rounds)
    save(args.out, "rollout-cpu", rows, report(rows, args.questions, args.rounds))


if __name__ == "__main__":
    main()
