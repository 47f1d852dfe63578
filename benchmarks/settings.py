"""Time of a step with other settings: `python -m benchmarks.settings CONFIG [key=value ...] --variant NAME [key=value]`

Trains a few steps with each variant's settings, one run after the other, and goes through all variants again in every
round, so that a machine that becomes slower slows all of them. All runs have the same questions in the same order. The
first step of a run, which warms up, is left out. The first variant is what the others are compared with.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common.results_files import RESULTS, save
from demopsd_dist.config import load
from demopsd_dist.util.errors import ConfigError, DemoPSDError
from launch._command_line import exit_code_of
from launch._processes import fenced

ROOT = Path(__file__).parents[1]
WARM_UP = 1
WITHOUT = ("evaluation.at_start=false", "evaluation.samples=1", "checkpoint.every_steps=0", "sinks.report=false")
STAGES = ("sample", "support", "score", "wait_for_rollouts", "learn", "publish_weights")
UTILISED = ("sample", "support", "score", "learn")
Step = dict[str, float]


@dataclass(frozen=True)
class TimedVariant:
    """Settings that are tried, over those of all runs."""

    name: str
    words: tuple[str, ...] = ()


def run(config: Path, words: Sequence[str]) -> list[Step]:
    """Train, and return the metrics of the steps after warm-up.

    Raises:
        DemoPSDError: the run failed; with the end of its output.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "launch.train", str(config), *words, f"output_dir={folder}", "name=timed"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise DemoPSDError(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-2000:]}")
        lines = (Path(folder) / "timed" / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "evaluation" not in row][WARM_UP:]


def measure(
    config: Path, words: Sequence[str], variants: Sequence[TimedVariant], rounds: int
) -> dict[str, list[list[Step]]]:
    """Metrics of the steps of each variant, by round."""
    results: dict[str, list[list[Step]]] = {variant.name: [] for variant in variants}
    for number in range(rounds):
        for variant in variants:
            results[variant.name].append(run(config, [*words, *variant.words]))
            step_s = median(step["perf/step_s"] for step in results[variant.name][-1])
            print(f"round {number + 1}: {variant.name} {step_s:.2f} s a step", flush=True)
    return results


def summary(rounds: Sequence[Sequence[Step]]) -> dict[str, Any]:
    """Medians over the steps of a variant: seconds of a step, in each round and in all, and of its stages, tokens a
    second, and the share of the peak rate that each stage reaches."""
    steps = [step for one in rounds for step in one]
    result: dict[str, Any] = {
        "step_s": median(step["perf/step_s"] for step in steps),
        "rounds_s": [median(step["perf/step_s"] for step in one) for one in rounds],
        "tokens_per_s": sum(step["rollout/tokens"] for step in steps) / sum(step["perf/step_s"] for step in steps),
        "steps": len(steps),
    }
    for stage in STAGES:
        result[f"{stage}_s"] = median(step.get(f"time/{stage}_s", 0.0) for step in steps)
    for stage in UTILISED:
        shares = [share for step in steps if (share := step.get(f"perf/{stage}_utilisation")) is not None]
        result[f"{stage}_utilisation"] = median(shares) if shares else None
    return result


def page(command: str, variants: Sequence[TimedVariant], results: dict[str, list[list[Step]]]) -> list[str]:
    """Lines of the page."""
    summaries = {name: summary(rounds) for name, rounds in results.items()}
    first = summaries[variants[0].name]
    lines = [
        "# A step with other settings",
        "",
        f"`{command}`",
        "",
        f"{len(first['rounds_s'])} rounds of one run a variant; medians over {first['steps']} steps of each, in "
        "seconds. The ratio is that of the medians, to the first variant, and in brackets in each round. Stages may "
        "overlap. A share is a stage's matrix products over its seconds and the peak rate measured at the start.",
        "",
        "| variant | settings | step | ratio | tokens/s | "
        + " | ".join(stage.replace("_", " ") for stage in STAGES)
        + " |",
        "|---|---|" + "---|" * (3 + len(STAGES)),
    ]
    for variant in variants:
        own = summaries[variant.name]
        ratios = [one / other for one, other in zip(own["rounds_s"], first["rounds_s"], strict=True)]
        ratio = f"{own['step_s'] / first['step_s']:.2f} ({', '.join(f'{value:.2f}' for value in ratios)})"
        settings = " ".join(f"`{word}`" for word in variant.words) or "–"
        stages = " | ".join(f"{own[f'{stage}_s']:.2f}" for stage in STAGES)
        step = f"{own['step_s']:.2f} | {ratio} | {own['tokens_per_s']:.1f}"
        lines.append(f"| {variant.name} | {settings} | {step} | {stages} |")
    lines += ["", "| variant | " + " | ".join(f"share of the peak, {stage}" for stage in UTILISED) + " |"]
    lines.append("|---|" + "---|" * len(UTILISED))
    for variant in variants:
        shares = [summaries[variant.name][f"{stage}_utilisation"] for stage in UTILISED]
        cells = " | ".join("–" if share is None else f"{share:.0%}" for share in shares)
        lines.append(f"| {variant.name} | {cells} |")
    return lines


def main() -> int:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("words", nargs="*", metavar="key=value", help="settings of all runs")
    parser.add_argument("--variant", nargs="+", action="append", required=True, metavar=("NAME", "key=value"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--name", default="settings-cpu", help="of the files of results")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    variants = [TimedVariant(name, tuple(words)) for name, *words in args.variant]

    def work() -> int:
        if len({variant.name for variant in variants}) < len(variants):
            raise ConfigError("Two variants have one name. Give each its own.")
        for variant in variants:  # a wrong setting is found before the first run
            if load(args.config, [*WITHOUT, *args.words, *variant.words]).steps <= WARM_UP:
                raise ConfigError(f"{variant.name} has no step after {WARM_UP} of warm-up. Set steps to more.")
        with fenced():
            results = measure(args.config, [*WITHOUT, *args.words], variants, args.rounds)
        save(
            args.out,
            args.name,
            results,
            page(f"python -m benchmarks.settings {shlex.join(sys.argv[1:])}", variants, results),
        )
        return 0

    return exit_code_of(work)


if __name__ == "__main__":
    sys.exit(main())
