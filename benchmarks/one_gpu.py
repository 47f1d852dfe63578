"""Learner and teacher on one GPU: `python -m benchmarks.one_gpu [--cases NAME ...] [--rounds 3] [--only-report]`

Real Ray, DeepSpeed and publishing, on models of Qwen3's shapes with random weights. No engine runs: prompts and
responses are random tokens of one length, so sampling is not measured and responses to a question share only their
prompt. Each stage runs alone; beside its time is the time that `launch.plan` expects without a calibration.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common.results_files import RESULTS, save
from demopsd_dist.config import Config, load
from demopsd_dist.data.packing import pack
from demopsd_dist.data.records import BatchSize, Prompt, Question, Rollout, TrainingExample
from demopsd_dist.methods import resolve_method
from demopsd_dist.planning.hardware import DEVICES, DeviceCluster
from demopsd_dist.planning.model_shape import shape_of
from demopsd_dist.planning.roofline import UNCALIBRATED
from demopsd_dist.planning.step_time import plan_run
from demopsd_dist.planning.workload import Traffic, split_of, workload_of
from demopsd_dist.training.roles import Roles
from launch._processes import fenced
from workers.actor_group import ActorGroup
from workers.actors import LearnersAndTeacher
from workers.cluster import session

CONFIG = Path(__file__).parents[1] / "configs" / "one_gpu.yaml"
STAGES = ("support", "score", "learn", "publish")
PROMPT_TOKENS, SOLUTION_TOKENS, GROUP = 256, 512, 8
SHAPES = {  # layers, hidden, intermediate, heads; 8 heads for keys and values of 128 each, tied, as in Qwen3
    "0.6B": (28, 1024, 3072, 16),
    "1.7B": (28, 2048, 6144, 16),
}
Row = dict[str, Any]


@dataclass(frozen=True)
class GpuCase:
    """A measurement: a model's shape, overrides and the size of a step."""

    name: str
    model: str
    words: tuple[str, ...] = ()
    prompts: int = 8
    response_tokens: int = 1024

    def config(self, folder: Path) -> Config:
        """Config of the run, with the model in `folder`."""
        settings = [f"model.path={folder}", "teacher.gpus_per_worker=0.4", "learner.gpus_per_worker=0.6"]
        settings += [
            f"rollout.prompts_per_step={self.prompts}",
            f"rollout.group_size={GROUP}",
            "weights.max_logp_diff=9",
        ]
        settings += [f"rollout.max_response_tokens={self.response_tokens}", "learner.learning_rate=1e-9"]
        return load(CONFIG, [*settings, *self.words])


CASES = [
    GpuCase("0.6B", "0.6B"),
    GpuCase("0.6B, a row for each response", "0.6B", ("model.tree_tokens=0",)),
    GpuCase("0.6B, ZeRO-3", "0.6B", ("learner.zero_stage=3",)),
    GpuCase("0.6B, no recomputation", "0.6B", ("learner.activation_checkpointing=false",)),
    GpuCase("1.7B", "1.7B"),
]


@contextmanager
def random_qwen3(name: str) -> Iterator[Path]:
    """Temporary model folder of a Qwen3 with random weights. It has no tokenizer: no text is read here."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    layers, hidden, intermediate, heads = SHAPES[name]
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=151_936,
                hidden_size=hidden,
                intermediate_size=intermediate,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=8,
                head_dim=128,
                tie_word_embeddings=True,
            )
        )
    with tempfile.TemporaryDirectory(prefix="demopsd-model-") as folder:
        model.to(torch.bfloat16).save_pretrained(folder)
        del model
        torch.cuda.empty_cache()
        yield Path(folder)


def random_groups(case: GpuCase, seed: int = 0) -> list[TrainingExample]:
    """Groups of random responses that share a prompt; the teacher's prompt adds a solution."""
    draw = np.random.default_rng(seed)

    def tokens(count: int) -> np.ndarray:
        return draw.integers(100, 150_000, count).astype(np.int32)

    examples = []
    for index in range(case.prompts):
        prompt = Prompt(Question(f"drawn/{index}", "", "", ""), tokens(PROMPT_TOKENS))
        for sample in range(GROUP):
            length = case.response_tokens
            old_T = np.full(length, -9, np.int32)  # a version that does not exist: there is no engine to compare with
            logp_T = np.full(length, -12.0, np.float32)
            rollout = Rollout(prompt, sample, tokens(length), logp_T, "", False, old_T, worker=0)
            privileged = np.concatenate([prompt.tokens, tokens(SOLUTION_TOKENS)])
            examples.append(TrainingExample(rollout, float(sample % 2), 0.5 - sample % 2, privileged))
    return examples


async def measure(case: GpuCase, config: Config, folder: Path, rounds: int) -> Row:
    """Fastest seconds of each stage, peak memory and bytes published, with the planner's expectation."""
    actors = LearnersAndTeacher(config, folder)
    try:
        roles = await actors.start()
        await roles.weights.publish(0)
        laps = [await stage_seconds(config, roles, random_groups(case), turn) for turn in range(rounds + 1)]
        memory = {role: await peak_gpu_gib(group) for role, group in actors.groups.items()}
    finally:
        actors.stop()
    seconds = {stage: min(lap[stage] for lap in laps[1:]) for stage in STAGES}
    expectation = expected(case, config)
    sent = shape_of(config.model.path).parameters * 2  # bytes, in bfloat16
    return {"name": case.name, "seconds": seconds, "memory_gib": memory, "sent_bytes": sent} | expectation


async def stage_seconds(config: Config, roles: Roles, examples: list[TrainingExample], turn: int) -> dict[str, float]:
    """Run each stage once, and return its seconds."""
    clock = [time.perf_counter()]
    supports = await roles.learners.support(examples)
    clock.append(time.perf_counter())
    scored = await roles.teacher.score(examples, supports, resolve_method(config).forwards)
    clock.append(time.perf_counter())
    size = BatchSize(sum(example.response_length_tokens for example in examples), len(examples))
    batch = pack(scored, size, roles.learners.dp_size, config.learner.micro_batch_tokens, config.model.tree_tokens)
    begun = time.perf_counter()
    report = await roles.learners.step(batch)
    assert report.stepped
    clock.append(clock[-1] + time.perf_counter() - begun)
    begun = time.perf_counter()
    await roles.weights.publish(turn + 1)
    clock.append(clock[-1] + time.perf_counter() - begun)
    return dict(zip(STAGES, np.diff(clock).tolist(), strict=True))


async def peak_gpu_gib(group: ActorGroup) -> float:
    """Peak memory that torch allocated on the GPU, GiB: of the group's largest worker."""

    def allocated_gib(worker: Any) -> float:
        return torch.cuda.max_memory_allocated() / 2**30

    return max(
        await group.each(lambda worker, _: worker.run(allocated_gib), within_s=60, what="its peak of GPU memory")
    )


def expected(case: GpuCase, config: Config) -> Row:
    """The planner's stage times and memory, from the settings that a user would give it. Its device is this one, if it
    is in the planner's list."""
    name = torch.cuda.get_device_name().lower()
    device = next((device for kind, device in DEVICES.items() if kind in name), DEVICES["h100"])
    traffic = Traffic(PROMPT_TOKENS, case.response_tokens, response_spread=0.0, solution_tokens=SOLUTION_TOKENS)
    # The planner counts the responses that have a right sibling; here all of them have one.
    workload = workload_of(config, shape_of(config.model.path), replace(traffic, right_fraction=0.999))
    expected_plan = plan_run(workload, split_of(config, workload), DeviceCluster(device, 1, 1), UNCALIBRATED)
    memory = {
        footprint.role: sum(footprint.persistent.values()) + sum(footprint.transient.values())
        for footprint in expected_plan.memory
    }
    return {
        "expected_seconds": {stage: expected_plan.seconds[stage] for stage in STAGES},
        "expected_memory_gib": {role: memory[role] for role in ("learner", "teacher")},
    }


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", metavar="NAME", help="some of: " + "; ".join(case.name for case in CASES))
    parser.add_argument("--rounds", type=int, default=3, help="after the first; the fastest counts")
    parser.add_argument("--only-report", action="store_true", help="write the page of the recorded results")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    raw = args.out / "one-gpu.json"
    results: Row = json.loads(raw.read_text()) if raw.exists() else {"rows": []}
    if not args.only_report:
        results |= {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    for case in [] if args.only_report else CASES:
        if args.cases is None or case.name in args.cases:
            with fenced(), random_qwen3(case.model) as folder:
                config = case.config(folder)
                session.join(config)
                row = asyncio.run(measure(case, config, folder, args.rounds))
            results["rows"] = [old for old in results["rows"] if old["name"] != case.name] + [row]
            print(row, flush=True)
            save(args.out, "one-gpu", results, list(report(results)))
    save(args.out, "one-gpu", results, list(report(results)))


def report(results: Row) -> Iterator[str]:
    """Lines of the page."""
    cases = {case.name: case for case in CASES}
    yield from ("# Learner and teacher on one GPU", "")
    yield f"{results['device']}, torch {results['torch']}; bfloat16 student, float32 teacher with TF32 products. Random"
    yield f"weights and tokens: {PROMPT_TOKENS} a prompt, {SOLUTION_TOKENS} more for the teacher, groups of {GROUP}."
    yield "Seconds of a stage by itself, the fastest of several rounds; in brackets what `launch.plan` expects without"
    yield "a calibration. No engine ran: vLLM was not installed."
    yield ""
    columns = ["case", "response tokens", *STAGES, "learn tokens/s", "GB/s published", "learner GiB", "teacher GiB"]
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    for row in results["rows"]:
        case = cases[row["name"]]
        tokens = case.prompts * GROUP * case.response_tokens
        seconds, memory = row["seconds"], row["memory_gib"]
        cells = [f"{seconds[stage]:.2f} ({row['expected_seconds'][stage]:.2f})" for stage in STAGES]
        cells += [f"{tokens / seconds['learn']:,.0f}", f"{row['sent_bytes'] / seconds['publish'] / 1e9:.2f}"]
        cells += [f"{memory[role]:.1f} ({row['expected_memory_gib'][role]:.1f})" for role in ("learner", "teacher")]
        yield f"| {row['name']} | {tokens:,} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
