"""What a step costs by whose tokens are the support, and by layout: `python -m benchmarks.teacher [--rounds 3]`

Real engines on MiniSci, the demo's settings: the same questions are sampled, given a support, scored and learned from,
a few times over; medians of each stage, ratios to the default. Bytes are those of the values that the teacher sends, a
response token. Variants run one after the other, each with a roles of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from pathlib import Path

from benchmarks.common.results_files import RESULTS, save
from demopsd_dist.config import Config, load
from demopsd_dist.data.examples import examples_from_siblings, reward_group
from demopsd_dist.data.packing import pack
from demopsd_dist.data.sources import load_data
from demopsd_dist.methods import resolve_method
from demopsd_dist.models.model_folder import model_folder
from demopsd_dist.training.roles import Roles
from demopsd_dist.training.run import Task
from demopsd_dist.training.step_prompts import train_sampling
from launch._processes import fenced
from launch._task import build_task
from workers.actors import RayActors
from workers.cluster import session

ROOT = Path(__file__).parents[1]
STAGES = ("sample", "support", "score", "learn")
VARIANTS: dict[str, list[str]] = {
    "learner's support, merged": [],
    "learner's support, padded": ["model.tree_tokens=0"],
    "rollout's support, merged": ["demopsd.support=rollout"],
    "reference's support, merged": ["demopsd.support=reference"],
    "learner's support, merged, float16": ["teacher.payload=float16"],
}
Row = dict[str, float]


async def measured(config: Config, roles: Roles, task: Task, rounds: int) -> Row:
    """Medians over the rounds after the first."""
    await roles.weights.publish(0)
    found: dict[str, list[float]] = {stage: [] for stage in STAGES}
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
        bytes_per_token = roles.teacher.figures()["teacher/bytes_per_token"]
        sizes = (config.learner.micro_batch_tokens, config.model.tree_tokens)
        batch = pack(scored, taught.size, roles.learners.dp_size, *sizes)
        clock = time.monotonic()
        await roles.learners.step(batch)
        lap("learn")
        await roles.weights.publish(turn + 1)
        for stage in STAGES if turn else ():
            found[stage].append(spent[stage])
    row = {stage: statistics.median(values) for stage, values in found.items()}
    return row | {"all": sum(row.values()), "bytes_per_token": bytes_per_token}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows: dict[str, Row] = {}
    with fenced():
        for name, words in VARIANTS.items():
            # So small a rate that all rounds are of the same model, but for rounding.
            config = load(ROOT / "configs" / "demo.yaml", [*words, "learner.learning_rate=1e-9"])
            if not rows:
                session.join(config)
                task = build_task(config, model_folder(config), load_data(config.data).questions)[0]
            actors = RayActors(config, model_folder(config))
            try:
                rows[name] = asyncio.run(measured(config, asyncio.run(actors.start()), task, args.rounds))
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
