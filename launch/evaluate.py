"""Evaluation of a model: `demopsd evaluate MODEL DATA [key=value ...] [--config FILE] [--out FILE.json]`

MODEL is a Hugging Face model folder (the `student/` of a run is one) or `minisci`; DATA is any value of `data.test`.
Starts rollout workers only. Exit code 0 when done, 2 for wrong input, 130 when interrupted, 1 for any other
failure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from demopsd_dist.config import Config, load
from demopsd_dist.data.rewards import resolve_reward
from demopsd_dist.data.sources import load_split
from demopsd_dist.models.model_folder import model_folder
from demopsd_dist.models.precision import resolve_precision
from demopsd_dist.run_record.folder import replace_text
from demopsd_dist.util.errors import DataError, EngineStartError
from demopsd_dist.util.fitted_lines import print_fitted, terminal_width
from launch._command_line import command_parser, count_gpus, exit_code_of, require, user_path
from launch._processes import fenced
from workers.cluster.placement import check_fits, rollout_bundles

if TYPE_CHECKING:
    from demopsd_dist.training.evaluate import Evaluation
    from demopsd_dist.training.run import Task

DEFAULTS = Path(__file__).parents[1] / "configs" / "evaluate.yaml"


def make_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = command_parser("evaluate", __doc__)
    parser.add_argument("model", help="a Hugging Face model folder, or minisci")
    parser.add_argument("data", help="a data set, or minisci")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    parser.add_argument("--config", type=user_path, default=DEFAULTS, help="default: configs/evaluate.yaml")
    parser.add_argument("--out", type=user_path, help="write all results to this file, as JSON")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_intermixed_args(argv)
    return exit_code_of(lambda: evaluate_and_print(arguments))


def evaluate_and_print(arguments: argparse.Namespace) -> int:
    """Check the settings, evaluate and print the results; the exit code."""
    words = [f"model.path={arguments.model}", f"data.test={arguments.data}", *arguments.overrides]
    config = load(arguments.config, words)
    resolve_reward(config.reward, config.limits)  # imports a user's own reward, before anything starts
    folder = model_folder(config)
    config, precision = resolve_precision(config, folder)
    print_fitted([precision])
    loaded = load_split(config.data, "test")
    if not loaded.questions:
        raise DataError(f"{arguments.data} names no data set. Name a file, a hub id or minisci.")
    if loaded.refused:
        print_fitted([f"left out {loaded.refused.total()} of {loaded.records} records: {loaded.refusal_summary()}"])
    if config.ray_address is None:
        check_fits(config, cpus=len(os.sched_getaffinity(0)), gpus=count_gpus(), wanted=rollout_bundles(config))
    if arguments.out is not None:
        check_writable(arguments.out)
    require("ray", "vllm")
    with fenced():
        from launch._data_shown import own_answer_lines
        from launch._task import build_task, over_long

        task, skipped = build_task(config, folder, {"test": loaded.questions})
        if skipped["test"]:
            print(f"left out {skipped['test']} of {len(loaded.questions)} questions: {over_long(config, 'test')}")
        print_fitted(own_answer_lines(task, {"test": loaded}))
        results = asyncio.run(evaluate_with_ray(config, folder, task))
    print_fitted(format_result(results["test"], terminal_width()).splitlines())
    if arguments.out is not None:
        records = {split: asdict(result) for split, result in results.items()}
        text = json.dumps(records, indent=2) + "\n"
        if arguments.out.exists() and not arguments.out.is_file():
            arguments.out.write_text(text, encoding="utf-8")  # a device or a pipe
        else:
            replace_text(arguments.out.resolve(), text)
    return 0


def check_writable(path: Path) -> None:
    """Check, before an evaluation that may take hours, that its results can be written.

    Raises:
        DataError: the path is a folder, or its own folder is missing or cannot be written.
    """
    if path.is_dir():
        raise DataError(f"--out {path} is a folder. Name a file in it.")
    if path.exists() and not path.is_file():
        return
    path = path.resolve()
    if not path.parent.is_dir():
        raise DataError(f"--out {path}: there is no folder {path.parent}. Create it first.")
    if not os.access(path.parent, os.W_OK):
        raise DataError(f"--out {path}: the folder {path.parent} cannot be written. Name another file.")


async def evaluate_with_ray(config: Config, folder: Path, task: Task) -> dict[str, Evaluation]:
    """Start rollout workers and evaluate every split of the task that has prompts; results by split."""
    from demopsd_dist.training.evaluate import evaluate
    from demopsd_dist.training.evaluation_splits import evaluation_splits
    from workers.actors import RolloutActors
    from workers.cluster import session

    session.join(config, wanted=rollout_bundles(config))  # left, within a bound, by `fenced`
    actors = RolloutActors(config, folder)
    try:
        try:
            rollouts = await actors.start()
        except EngineStartError as error:
            print(error.full_text, file=sys.stderr)  # an evaluation has no run folder for the text
            raise
        return {
            split.name: await evaluate(rollouts, split.prompts, split.sampling, task.reward, split.form)
            for split in evaluation_splits(config, task)
        }
    finally:
        actors.stop()


def format_result(result: Evaluation, width: int | None = None) -> str:
    """A result as a table for the terminal: each accuracy with its interval, and by field.

    Args:
        width: columns; fields for which there is no room follow in a table of their own. None for one table.
    """
    k, fields = result.samples, list(result.mean.by_field)
    rows = [(f"mean@{k}", result.mean), (f"maj@{k}", result.majority)]
    rows += [(f"pass@{size}", accuracy) for size, accuracy in result.passes.items() if size > 1]
    rows += [(f"best@{k} (verl)", result.best)]
    lines = [f"{result.questions} questions, {k} responses each"]
    room = len(fields) if width is None else max((width - 42) // 12, 0)
    lines.append(f"{'':<16}{'all':>8}{'95 % interval':>18}" + "".join(f"{name[:11]:>12}" for name in fields[:room]))
    for label, accuracy in rows:
        interval = f"{accuracy.low:.1%} – {accuracy.high:.1%}"
        by_field = "".join(f"{accuracy.by_field[name]:>12.1%}" for name in fields[:room])
        lines.append(f"{label:<16}{accuracy.average:>8.1%}{interval:>18}{by_field}")
    size = max(((width or 0) - 16) // 12, 1)
    for start in range(room, len(fields), size):
        names = fields[start : start + size]
        lines.append(f"{'':<16}" + "".join(f"{name[:11]:>12}" for name in names))
        for label, accuracy in rows:
            lines.append(f"{label:<16}" + "".join(f"{accuracy.by_field[name]:>12.1%}" for name in names))
    lines += [
        f"response tokens {result.response_tokens_mean:.1f}   truncated {result.truncated_fraction:.1%}   "
        f"no answer {result.unparsed_fraction:.1%}   entropy {result.entropy_nats:.3f} nats a token",
        "hints of an unseen solution: "
        + "   ".join(f"{name.replace('_', ' ')} {share:.1%}" for name, share in result.behaviour.items()),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
