"""SmolLM2-135M-Instruct trained by each method: `python -m benchmarks.smollm_runs [run ...] [key=value ...]`

Runs of `configs/smollm2.yaml` (docs/models.md makes its two folders), one after the other: 20 steps with the settings
of the file, then ten with each other method, with adapters and with two ZeRO-3 ranks, and five on tasks of
reasoning-gym. Settings after the names hold for all runs, for a machine that is too slow for those of the file. The
page states accuracy, seconds and the peak memory of each role's processes. A run with a record is not repeated.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common.results_files import RESULTS, save
from benchmarks.common.run_processes import training_process
from benchmarks.endurance.usage import read_usage
from demopsd_dist.run_record.folder import RunFolder

Row = dict[str, Any]
NAME = "smollm2-cpu"
ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "smollm2.yaml"
TEN = ["steps=10", "evaluation.at_start=false"]
EASY = "max_terms=2&max_digits=1"
RUNS: dict[str, list[str]] = {
    "demopsd": ["steps=20"],
    "sdpo": ["method=sdpo", *TEN],
    "opsd": ["method=opsd", *TEN],
    "grpo": ["method=grpo", *TEN],
    "LoRA": ["model.lora_rank=16", "learner.learning_rate=1e-4", *TEN],
    "ZeRO-3": ["learner.num_workers=2", "learner.zero_stage=3", "learner.threads=1", *TEN],
    "gym": [
        f"data.train=gym:chain_sum?size=64&{EASY},leg_counting?size=64,letter_counting?size=64",
        f"data.test=gym:chain_sum?size=8&{EASY},leg_counting?size=8,letter_counting?size=8",
        "reward=gsm8k",
        "data.suffix=' Give the final number on the last line.'",
        "steps=5",
    ],
}
EVERY_S = 5.0
ROLES = ("driver", "rollout", "teacher", "learner")


def one_run(words: Sequence[str], folder: Path) -> Row:
    """Train once, and read the memory of its processes every few seconds.

    Returns:
        The run's summary and the metrics of its steps, or the end of its output if it failed; peak memory by role, MiB.
    """
    run, peak, began = RunFolder(folder / "run"), dict.fromkeys(ROLES, 0.0), time.monotonic()
    with training_process([str(CONFIG), *words, f"output_dir={folder}", "name=run"], folder / "log") as process:
        while process.poll() is None:
            time.sleep(EVERY_S)
            if process.poll() is None:
                memory = read_usage(process, run.path, 0, 0.0).memory_mib
                peak = {role: max(peak[role], memory.get(role, 0.0)) for role in ROLES}
    if process.returncode:
        return {"words": list(words), "failed": (folder / "log").read_text(errors="replace")[-4000:]}
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    steps = [line for line in lines if "evaluation" not in line]
    return {
        "words": list(words),
        "summary": json.loads((run.path / "summary.json").read_text()),
        "steps": steps,
        "finite": all(math.isfinite(value) for step in steps for value in step.values() if isinstance(value, float)),
        "peak_mib": {role: round(value) for role, value in peak.items()},
        "seconds": round(time.monotonic() - began),
    }


def report(rows: dict[str, Row]) -> list[str]:
    """Lines of the page."""
    common = next(iter(rows.values()))["common"]
    lines = [
        "# SmolLM2-135M-Instruct on two CPU cores",
        "",
        f"`python -m benchmarks.smollm_runs{''.join(f' {word}' for word in common)}`: `configs/smollm2.yaml`"
        + (f" with {', '.join(f'`{word}`' for word in common)}" if common else "")
        + ". Memory is the peak that a role's processes hold alone; the stages of a step take turns on the two cores.",
        "",
        "| run | settings | steps | all finite | accuracy before | after | loss, first and last step | mean alpha "
        "| s a step | driver, MiB | rollout | teacher | learner |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        own = " ".join(f"`{word}`" for word in row["words"] if word not in common)
        if "failed" in row:
            lines.append(f"| {name} | {own} | failed: {row['failed'].strip().splitlines()[-1]} |" + " |" * 10)
            continue
        summary, steps = row["summary"], row["steps"]
        before = summary.get("accuracy_before")
        losses = [step["learner/loss"] for step in steps if "learner/loss" in step]
        alpha = summary.get("alpha_mean")
        cells = [
            name,
            own,
            len(steps),
            "yes" if row["finite"] else "**no**",
            "–" if before is None else f"{before['average']:.1%}",
            f"{summary['accuracy_after']['average']:.1%}",
            f"{losses[0]:.4f}, {losses[-1]:.4f}" if losses else "–",
            "–" if alpha is None else f"{alpha:.3f}",
            f"{sum(step['perf/step_s'] for step in steps) / len(steps):.1f}",
            *(f"{row['peak_mib'][role]:,}" for role in ROLES),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    first = next((row for row in rows.values() if "summary" in row), None)
    if first is not None:
        questions = first["summary"]["evaluation"]["test"]
        lines += ["", f"Evaluation: {questions.get('questions', '?')} questions; a few points are noise."]
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Command line of the benchmark. The exit code is 1 where a run failed or a metric is not finite."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", metavar="run|key=value", help=f"runs, of {', '.join(RUNS)}; settings")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--keep", type=Path, help="folder in which the run folders stay")
    arguments = parser.parse_args(argv)
    common = [word for word in arguments.words if "=" in word]
    names = [word for word in arguments.words if "=" not in word] or list(RUNS)
    if unknown := [name for name in names if name not in RUNS]:
        parser.error(f"no such run: {', '.join(unknown)}; there are {', '.join(RUNS)}")
    raw = arguments.out / f"{NAME}.json"
    rows: dict[str, Row] = json.loads(raw.read_text()) if raw.exists() else {}
    for name in names:
        if name in rows and "failed" not in rows[name] and rows[name]["common"] == common:
            continue
        with tempfile.TemporaryDirectory(prefix="demopsd-smollm-") as temporary:
            folder = arguments.keep / name if arguments.keep else Path(temporary)
            folder.mkdir(parents=True, exist_ok=True)
            rows[name] = one_run([*common, *RUNS[name]], folder) | {"common": common}
        save(arguments.out, NAME, rows, report({known: rows[known] for known in RUNS if known in rows}))
    return 0 if all(row.get("finite") for row in rows.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
