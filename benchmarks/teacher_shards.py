"""What teachers that share a copy of their weights save and cost: `python -m benchmarks.teacher_shards [--model 360M]`

Teachers alone, on CPU, with random weights and random responses of which each question has several. The same responses
are scored by teachers with a copy each and by some that share one: as many find the same numbers. Memory is the most
that a process has had resident while it scored, its libraries (0.7 GiB) included; it has one copy, the EMA.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.common.peak_memory import held, held_from_now
from benchmarks.common.results_files import RESULTS, save
from benchmarks.common.sized_models import MODELS, model_folder
from demopsd_dist.config import Config, load
from demopsd_dist.data.records import Logp, Prompt, Question, Rollout, ScoredExample, Tokens, TrainingExample
from demopsd_dist.methods import resolve_method
from demopsd_dist.planning.model_shape import shape_of
from launch._processes import fenced
from workers.actor_group import ResourceClaim
from workers.actors import TeacherGroup, start_ranks
from workers.cluster import session
from workers.cluster.placement import core_bundles
from workers.teacher import fsdp
from workers.teacher.worker import TeacherWorker, environment

ROOT = Path(__file__).parents[1]
LAYOUTS = {
    "two with a copy each": (2, 1),
    "two that share one": (2, 2),
    "four that share one": (4, 4),
}  # workers, shards
QUESTIONS, SIBLINGS, PROMPT_TOKENS, RESPONSE_TOKENS = 8, 4, 32, 32
BATCH_TOKENS = 4096


def examples(vocabulary: int) -> list[TrainingExample]:
    """Random responses, each taught by the one before."""
    rng = np.random.default_rng(0)

    def tokens(length: int) -> Tokens:
        return rng.integers(0, vocabulary, length, dtype=np.int32)

    found = []
    for number in range(QUESTIONS):
        prompt = Prompt(Question(id=f"q{number}", text="", answer="", field=""), tokens(PROMPT_TOKENS))
        responses = [tokens(RESPONSE_TOKENS) for _ in range(SIBLINGS)]
        for sample, response in enumerate(responses):
            rollout = Rollout(
                prompt=prompt,
                sample=sample,
                tokens_T=response,
                logp_T=np.zeros(RESPONSE_TOKENS, np.float32),
                text="",
                truncated=False,
                version_T=np.zeros(RESPONSE_TOKENS, np.int32),
                worker=0,
            )
            privileged = np.concatenate([prompt.tokens, responses[sample - 1]])
            found.append(TrainingExample(rollout, 1.0, 0.0, privileged))
    return found


def written(worker: TeacherWorker) -> None:
    """Runs in the actor: all weights written once, as by a publish. Before that some are mapped from the model's
    files. Memory counts from here."""
    for model in worker._models.values():
        for parameter in fsdp.parameters_of(model).values():
            fsdp.held(parameter).mul_(1.0)
    held_from_now(worker)


async def measured(config: Config, folder: Path, rounds: int) -> tuple[dict[str, float], list[ScoredExample]]:
    placement = ResourceClaim([bundle for bundle in core_bundles(config) if bundle.role == "teacher"])
    group = placement.start("teacher", TeacherWorker, lambda rank: (rank, config, folder), environment(config))
    try:
        await start_ranks(group, config.limits.start_s, "the models")
        await group.each(lambda worker, _: worker.__ray_call__.remote(written), within_s=60, what="a write")
        of = examples(shape_of(str(folder)).vocabulary)
        supports = [item.rollout.tokens_T[:, None] for item in of]
        teacher = TeacherGroup(group, config)
        seconds = []
        for _ in range(rounds + 1):
            started = time.monotonic()
            scored = await teacher.score(of, supports, resolve_method(config).forwards)
            seconds.append(time.monotonic() - started)
        memory = await group.each(lambda worker, _: worker.__ray_call__.remote(held), within_s=60, what="its memory")
    finally:
        group.kill()
        placement.release()
    return {"score_s": min(seconds[1:]), "memory_gib": max(host for host, _ in memory)}, scored


def same(one: Sequence[ScoredExample], other: Sequence[ScoredExample]) -> bool:
    def values(scored: Sequence[ScoredExample]) -> list[Logp]:
        both = [(item.reference_logp_TA, item.teacher_logp_TA) for item in scored]
        return [part for parts in both for part in parts if part is not None]

    pairs = list(zip(values(one), values(other), strict=True))
    return bool(pairs) and all(np.array_equal(a, b) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="360M")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows: dict[str, dict[str, float]] = {}
    found: list[list[ScoredExample]] = []
    with fenced(), model_folder(args.model) as folder:
        for name, (workers, size) in LAYOUTS.items():
            words = [f"model.path={folder}", f"teacher.num_workers={workers}", f"teacher.shards={size}"]
            words += [f"teacher.threads={2 // workers or 1}", f"teacher.batch_tokens={BATCH_TOKENS}"]
            words.append(f"teacher.cpus_per_worker={2 / workers}")
            config = load(ROOT / "configs" / "demo.yaml", words)
            if not rows:
                session.join(config)
            rows[name], scored = asyncio.run(measured(config, folder, args.rounds))
            found.append(scored)
            print(name, rows[name], flush=True)
        weights_gib = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 2**30
    whole = rows["two with a copy each"]
    lines = [
        "# Teachers with a copy each, or with one together",
        "",
        f"{args.model} of random weights, {weights_gib:.2f} GiB in float32, on two CPU cores. {QUESTIONS} questions of "
        f"{PROMPT_TOKENS} tokens with {SIBLINGS} responses of {RESPONSE_TOKENS}, scored twice in forwards of "
        f"{BATCH_TOKENS} tokens; the fastest of {args.rounds} rounds. The numbers that two find are "
        f"{'the same' if same(*found[:2]) else 'NOT THE SAME'}, bit for bit.",
        "",
        "| teachers | score, s | ratio | GiB each | ratio |",
        "|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['score_s']:.2f} | {row['score_s'] / whole['score_s']:.2f} | {row['memory_gib']:.2f} | "
            f"{row['memory_gib'] / whole['memory_gib']:.2f} |"
        )
    save(args.out, "teacher-shards-cpu", {"model": args.model, "weights_gib": weights_gib, "rows": rows}, lines)


if __name__ == "__main__":
    main()
