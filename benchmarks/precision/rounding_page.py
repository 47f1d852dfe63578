"""Rounding in bfloat16: `python -m benchmarks.precision [--model FOLDER] [--questions 4] [--part teacher]`

Three measurements on a real model: disagreement, alpha, loss and gradient with a teacher in bfloat16 against one in
float32; the time of both teachers; and the differences between engine and learner in each precision. The bounds of
`demopsd_dist/config/precision_settings.py` come from the last. Each part alone replaces its own figures in the results.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.results_files import RESULTS, save, write
from benchmarks.precision.engine_rounding import engine_differences, precisions
from benchmarks.precision.sampled_examples import sampled_examples
from benchmarks.precision.teacher_rounding import differences, score, step_of, student_of, supports_of
from demopsd_dist.config import Config, load
from demopsd_dist.data.records import TrainingExample
from demopsd_dist.data.sources import load_data
from demopsd_dist.models.model_folder import model_folder
from demopsd_dist.models.precision import MatrixUnits
from demopsd_dist.models.text_config import text_config_of
from demopsd_dist.training.run import Task
from launch._processes import fenced
from launch._task import build_task
from workers.cluster import session

CONFIG = Path(__file__).parents[2] / "configs" / "smollm2.yaml"
CANARIES = 10
ROUNDS = 1
PARTS = ("teacher", "float32", "bfloat16")


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="models/SmolLM2-135M-Instruct")
    parser.add_argument("--questions", type=int, default=4, help="with two responses each")
    parser.add_argument("--tokens", type=int, default=24, help="longest response")
    parser.add_argument("--part", choices=PARTS, action="append", help="default: all")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    common = [f"model.path={arguments.model}", f"rollout.max_response_tokens={arguments.tokens}"]
    common += ["rollout.group_size=2", f"rollout.prompts_per_step={arguments.questions}"]

    def config_of(*words: str) -> Config:
        return load(CONFIG, [*common, "model.precision=float32", *words])

    config = config_of()
    folder = model_folder(config)
    task, _ = build_task(config, folder, load_data(config.data).questions)
    torch.set_num_threads(config.learner.threads)
    units = MatrixUnits.of_this_machine().cpu
    stem = page_name(units)
    recorded = arguments.out / f"{stem}.json"
    raw = json.loads(recorded.read_text(encoding="utf-8")) if recorded.is_file() else {}
    parts = arguments.part or PARTS
    if "teacher" in parts:
        raw["teacher"] = teacher_figures(config, folder, task)
        write(arguments.out, stem, raw)
    if engines := [name for name in PARTS[1:] if name in parts]:
        with fenced():
            session.join(config)
            for name in engines:
                own, prompts = config_of(f"model.precision={name}"), task.train[: arguments.questions]
                raw[name] = engine_differences(own, folder, prompts, CANARIES, vocabulary_of(folder))
                write(arguments.out, stem, raw)
    if "teacher" in raw:
        save(arguments.out, stem, raw, list(page(raw, arguments.model, units)))


def vocabulary_of(folder: Path) -> int:
    """Number of token ids of the model in a folder."""
    size: int = text_config_of(folder).vocab_size
    return size


def teacher_figures(config: Config, folder: Path, task: Task) -> dict[str, Any]:
    """Errors and times of a teacher in bfloat16, against one in float32."""
    student = student_of(folder)
    prompts = task.train[: config.rollout.prompts_per_step]
    examples: list[TrainingExample] = sampled_examples(student, task, prompts, config, config.rollout.group_size)
    supports = supports_of(student, examples, config)
    steps, seconds = {}, {}
    for precision in precisions():
        config.teacher.precision = precision
        scored, seconds[precision.value] = score(config, folder, examples, supports, ROUNDS)
        steps[precision.value] = step_of(student, scored, config)
    exact, rounded = (steps[precision.value] for precision in precisions())
    return {
        "examples": len(examples),
        "tokens": sum(example.response_length_tokens for example in examples),
        "seconds": seconds,
        "errors": differences(exact, rounded),
    }


def page_name(units: str | None) -> str:
    """Name of the page's files; CPUs that compute bfloat16 by different units have a page each.

    Example: `page_name("AVX512-BF16")` is `precision-cpu-avx512-bf16`.
    """
    return f"precision-cpu-{units.lower()}" if units else "precision-cpu"


def page(raw: dict[str, Any], model: str, units: str | None) -> Iterator[str]:
    """Lines of the page. `units` compute bfloat16 on the CPU; None where it is emulated."""
    teacher, errors = raw["teacher"], raw["teacher"]["errors"]
    hardware = f"with {units}" if units else "without units for bfloat16, which is emulated"
    yield from ("# Rounding in bfloat16", "")
    yield f"{Path(model).name} on two cores of a CPU ({platform.machine()}) {hardware};"
    yield f"{teacher['examples']} responses,"
    yield f"{teacher['tokens']} tokens, the student in float32 (`python -m benchmarks.precision`)."
    yield from ("", "## A teacher in bfloat16, against one in float32", "")
    yield from ("| quantity | mean | error of the mean | p50 | p95 | p99 | largest |", "|---|---|---|---|---|---|---|")
    for name in ("disagreement", "alpha"):
        values = (errors[f"{name}_{kind}"] for kind in ("mean", "mean_error", "p50", "p95", "p99", "max"))
        yield f"| {name} | " + " | ".join(f"{value:.2g}" for value in values) + " |"
    yield ""
    yield f"The loss is {errors['loss']:.4g} nats, and differs by {errors['loss_error']:.2g}."
    if "gradient_cosine" in errors:
        cosine, ratio = errors["gradient_cosine"], errors["gradient_norm_ratio"]
        yield f"The gradients have a cosine of {cosine:.5f} and norms of ratio {ratio:.4f}."
    yield ""
    slow, fast = teacher["seconds"]["float32"], teacher["seconds"]["bfloat16"]
    yield f"Scoring took {slow:.2f} s in float32 and {fast:.2f} s in bfloat16, {fast / slow:.2f} times as long,"
    yield "one after the other in one process."
    if any(part in raw for part in PARTS[1:]):
        yield from engine_table(raw)


def engine_table(raw: dict[str, Any]) -> Iterator[str]:
    """Lines of the table of engine and learner, for the precisions that were measured."""
    yield from ("", "## Engine and learner in the same precision, nats", "")
    yield "| precision | tokens | number | p50 | p90 | p95 | p99 | largest | median of a prompt |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for precision in (part for part in PARTS[1:] if part in raw):
        for kind, row in raw[precision].items():
            cells = " | ".join(f"{row[key]:.2g}" for key in ("p50", "p90", "p95", "p99", "max"))
            median = f"at most {row['median to']:.2g}" if "median to" in row else ""
            if "median from" in row:
                median = f"{row['median from']:.2g} to {row['median to']:.2g}"
            yield f"| {precision} | {kind} | {row['tokens']:.0f} | {cells} | {median} |"
