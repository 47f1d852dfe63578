"""Memory and time of teachers that share one copy of weights: `python -m benchmarks.teacher_shards [--model 360M]`

Teachers alone, on CPU, with random weights and several random responses to each question. The same responses are scored
by teachers with a copy each and by teachers that share one; two teachers compute the same numbers in both cases. Memory
is the peak resident size of a process while it scores, including 0.7 GiB of libraries. Each process holds one set of
weights, the EMA's.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.common.peak_memory import process_peak_gib, reset_peak
from benchmarks.common.results_files import RESULTS, save
from benchmarks.common.sized_models import MODELS, model_folder
from demopsd_dist.config import Config, load
from demopsd_dist.data.records import Logp, Prompt, Question, Rollout, ScoredExample, Tokens, TrainingExample
from demopsd_dist.methods import resolve_method
from demopsd_dist.planning.model_shape import shape_of
from demopsd_dist.util.errors import LostStateError
from launch._processes import fenced
from workers.actors import start_ranks
from workers.cluster import session
from workers.cluster.placement import core_bundles
from workers.cluster.resource_claim import ResourceClaim
from workers.teacher import fsdp
from workers.teacher.group import TeacherGroup
from workers.teacher.worker import TeacherWorker, environment

ROOT = Path(__file__).parents[1]
LAYOUTS = {
    "two with a copy each": (2, 1),
    "two that share one": (2, 2),
    "four that share one": (4, 4),
}
"""Numbers of workers and of shards."""
QUESTIONS, SIBLINGS, PROMPT_TOKENS, RESPONSE_TOKENS = 8, 4, 32, 32
BATCH_TOKENS = 4096


def random_examples(vocabulary: int) -> list[TrainingExample]:
    """Random responses; the teacher's context of each shows the previous response."""
    rng = np.random.default_rng(0)

    def tokens(length: int) -> Tokens:
        return rng.integers(0, vocabulary, length, dtype=np.int32)

    examples = []
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
            examples.append(TrainingExample(rollout, 1.0, 0.0, privileged))
    return examples


def touch_weights(worker: TeacherWorker) -> None:
    """Write all weights once, as a publish does: until then some are memory-mapped from the model's files. Then reset
    the measured peak of memory. Runs in the actor."""
    for model in worker._models.values():
        for parameter in fsdp.tensors_of(model).values():
            fsdp.local_rows(parameter).mul_(1.0)
    reset_peak(worker)


async def measure(config: Config, folder: Path, rounds: int) -> tuple[dict[str, float], list[ScoredExample]]:
    """Time of the fastest round after the first and peak memory of the largest process, with the scored examples."""
    claim = ResourceClaim([bundle for bundle in core_bundles(config) if bundle.role == "teacher"])
    group = claim.spawn_group(
        "teacher", TeacherWorker, lambda rank: (rank, config, folder), environment(config), LostStateError
    )
    try:
        await start_ranks(group, config.limits.start_s, "the models")
        await group.each(lambda worker, _: worker.run(touch_weights), within_s=60, what="a write")
        examples = random_examples(shape_of(str(folder)).vocabulary)
        supports = [item.rollout.tokens_T[:, None] for item in examples]
        teacher = TeacherGroup(group, config)
        seconds = []
        for _ in range(rounds + 1):
            started = time.monotonic()
            scored = await teacher.score(examples, supports, resolve_method(config).forwards)
            seconds.append(time.monotonic() - started)
        memory = await group.each(lambda worker, _: worker.run(process_peak_gib), within_s=60, what="its memory")
    finally:
        group.kill()
        claim.release()
    return {"score_s": min(seconds[1:]), "memory_gib": max(host for host, _ in memory)}, scored


def same_values(one: Sequence[ScoredExample], other: Sequence[ScoredExample]) -> bool:
    """True if both have the same log-probabilities, bit for bit."""

    def values(scored: Sequence[ScoredExample]) -> list[Logp]:
        pairs = [(item.reference_logp_TA, item.teacher_logp_TA) for item in scored]
        return [logp for pair in pairs for logp in pair if logp is not None]

    pairs = list(zip(values(one), values(other), strict=True))
    return bool(pairs) and all(np.array_equal(a, b) for a, b in pairs)


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="360M")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows: dict[str, dict[str, float]] = {}
    scores: list[list[ScoredExample]] = []
    with fenced(), model_folder(args.model) as folder:
        for name, (workers, size) in LAYOUTS.items():
            words = [
                f"model.path={folder}",
                "model.precision=float32",
                f"teacher.num_workers={workers}",
                f"teacher.shards={size}",
            ]
            words += [f"teacher.threads={2 // workers or 1}", f"teacher.batch_tokens={BATCH_TOKENS}"]
            words.append(f"teacher.cpus_per_worker={2 / workers}")
            config = load(ROOT / "configs" / "demo.yaml", words)
            if not rows:
                session.join(config)
            rows[name], scored = asyncio.run(measure(config, folder, args.rounds))
            scores.append(scored)
            print(name, rows[name], flush=True)
        weights_gib = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 2**30
    same = same_values(*scores[:2])
    lines = report(rows, args.model, weights_gib, args.rounds, same)
    save(args.out, "teacher-shards-cpu", {"model": args.model, "weights_gib": weights_gib, "rows": rows}, lines)


def report(rows: dict[str, dict[str, float]], model: str, weights_gib: float, rounds: int, same: bool) -> list[str]:
    """Lines of the page."""
    first = rows["two with a copy each"]
    lines = [
        "# Teachers with a copy each, or with a shared copy",
        "",
        f"A {model} model with random weights, {weights_gib:.2f} GiB in float32, on two CPU cores. {QUESTIONS} "
        f"questions of {PROMPT_TOKENS} tokens with {SIBLINGS} responses of {RESPONSE_TOKENS}, scored with and without "
        f"the solution in forwards of {BATCH_TOKENS} tokens; the fastest of {rounds} rounds. The log-probabilities of "
        "two teachers are "
        f"{'the same' if same else 'NOT THE SAME'}, bit for bit.",
        "",
        "| teachers | score, s | ratio | GiB each | ratio |",
        "|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['score_s']:.2f} | {row['score_s'] / first['score_s']:.2f} | {row['memory_gib']:.2f} | "
            f"{row['memory_gib'] / first['memory_gib']:.2f} |"
        )
    return lines


if __name__ == "__main__":
    main()
