"""Time of a step by the source of the support and by row layout: `python -m benchmarks.teacher [--rounds 3]`

Real engines on MiniSci, the demo's settings: the same questions are sampled, given a support, scored and learned from,
a few times over; medians of each stage, and ratios to the default. Bytes are those of the values that the teacher sends
for a response token. Variants run one after the other, each with actors of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from pathlib import Path

from benchmarks.common.results_files import RESULTS, save
from benchmarks.common.timed_runs import DEMO, task_of
from demopsd_dist.config import Config, load
from demopsd_dist.data.examples import examples_from_siblings, reward_group
from demopsd_dist.data.packing import pack
from demopsd_dist.methods import resolve_method
from demopsd_dist.models.model_folder import model_folder
from demopsd_dist.training.roles import Roles
from demopsd_dist.training.run import Task
from demopsd_dist.training.step_prompts import train_sampling
from launch._processes import fenced
from workers.actors import RayActors
from workers.cluster import session

STAGES = ("sample", "support", "score", "learn")
VARIANTS: dict[str, list[str]] = {
    "learner's support, merged": [],
    "learner's support, padded": ["model.tree_tokens=0"],
    "rollout's support, merged": ["demopsd.support=rollout"],
    "reference's support, merged": ["demopsd.support=reference"],
    "learner's support, merged, float16": ["teacher.payload=float16"],
}
Row = dict[str, float]


async def measure(config: Config, roles: Roles, task: Task, rounds: int) -> Row:
    """Seconds of each stage, medians over the rounds after the first."""
    await roles.weights.publish(0)
    seconds: dict[str, list[float]] = {stage: [] for stage in STAGES}
    bytes_per_token = 0.0
    for turn in range(rounds + 1):
        spent: Row = {}
        clock = time.monotonic()

        def lap(stage: str, spent: Row = spent) -> None:
            nonlocal clock
            now = time.monotonic()
            spent[stage], clock = now - clock, now

        groups = await roles.rollouts.sample(task.train[: config.rollout.prompts_per_step], train_sampling(config, 0))
        lap("sample")
        marked = [reward_group(group, task.reward) for group in groups]
        taught = examples_from_siblings(marked, task.prompts, exclude_own_success=True, seed="0")
        clock = time.monotonic()
        supports = await roles.learners.support(taught.examples)
        lap("support")
        scored = await roles.teacher.score(taught.examples, supports, resolve_method(config).forwards)
        lap("score")
        bytes_per_token = roles.teacher.metrics()["teacher/bytes_per_token"]
        sizes = (config.learner.micro_batch_tokens, config.model.tree_tokens)
        batch = pack(scored, taught.size, roles.learners.dp_size, *sizes)
        clock = time.monotonic()
        await roles.learners.step(batch)
        lap("learn")
        await roles.weights.publish(turn + 1)
        for stage in STAGES if turn else ():
            seconds[stage].append(spent[stage])
    row = {stage: statistics.median(values) for stage, values in seconds.items()}
    return row | {"all": sum(row.values()), "bytes_per_token": bytes_per_token}


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows: dict[str, Row] = {}
    with fenced():
        for name, words in VARIANTS.items():
            # At so small a rate all rounds have the same model, but for rounding.
            config = load(DEMO, [*words, "learner.learning_rate=1e-9"])
            if not rows:
                session.join(config)
                task = task_of(config)
            actors = RayActors(config, model_folder(config))
            try:
                rows[name] = asyncio.run(measure(config, asyncio.run(actors.start()), task, args.rounds))
            finally:
                actors.stop()
            print(name, {key: round(value, 2) for key, value in rows[name].items()}, flush=True)
    default = next(iter(rows.values()))
    lines = [
        "# A step by support and layout",
        "",
        f"The demo's settings on two CPU cores, real engines; seconds, medians of {args.rounds} rounds.",
        "",
        "| variant | sample | support | score | learn | all | ratio | bytes a response token |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        cells = " | ".join(f"{row[key]:.2f}" for key in (*STAGES, "all"))
        lines.append(f"| {name} | {cells} | {row['all'] / default['all']:.2f} | {row['bytes_per_token']:.0f} |")
    save(args.out, "teacher-cpu", rows, lines)


if __name__ == "__main__":
    main()
