"""Train: `python -m launch.train configs/demo.yaml [key=value ...] [--dry-run]`

Everything that can be wrong in settings, model folder and data is found before anything heavy is imported or started.
Exit code 0 when the run is done, 2 for wrong input, 130 when interrupted, 1 for any other failure.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from demopsd_dist.config import Config, load, to_yaml
from demopsd_dist.data.rewards import reward_of
from demopsd_dist.data.sources import SPLITS, Data, load_data, sources
from demopsd_dist.model_folder import model_folder
from demopsd_dist.sinks import check_sinks, open_sinks
from launch.command import count_gpus, exit_code_of
from workers.placement import check_fits, summary_of_roles, table


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m launch.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="a YAML file, for example configs/demo.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings over those of the file")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved settings and who runs where; stop")
    arguments = parser.parse_intermixed_args(argv)
    return exit_code_of(lambda: checked(arguments))


def checked(arguments: argparse.Namespace) -> int:
    """Look at everything, then run it or say what would run."""
    config = load(arguments.config, arguments.overrides)
    reward_of(config.reward)  # a user's own is imported here, in the dry run too
    check_sinks(config)
    folder = model_folder(config)
    data = load_data(config.data)
    if config.ray_address is None:
        check_fits(config, cpus=len(os.sched_getaffinity(0)), gpus=count_gpus())
    if arguments.dry_run:
        print(to_yaml(config), end="")
        print(f"# model: {folder}")
        print("# questions: " + ", ".join(f"{len(data.questions[split])} {split}" for split in SPLITS))
        print("".join(f"# {line}\n" for line in data.notes()), end="")
        print("# who runs where:\n" + "\n".join(f"#{line}" for line in table(config).splitlines()))
        return 0
    return run(config, folder, data)


def run(config: Config, folder: Path, data: Data) -> int:
    """Start the cluster and the roles, train, write the summary."""
    from launch.processes import fenced

    with fenced():
        from demopsd_dist.checkpoint import RunFolder
        from demopsd_dist.report import write_report
        from demopsd_dist.runlog import RunLog
        from launch.task import build_task, over_long

        started = time.monotonic()
        questions = data.questions
        task, skipped = build_task(config, folder, questions)
        run_folder = RunFolder.create(config)
        with RunLog(run_folder, config.steps, sinks=open_sinks(config, run_folder)) as log:
            log.skipped = {str(split): count for split, count in skipped.items()}
            log.note(f"run folder {run_folder.path}   seed {config.seed}   model {config.model.path}")
            read = [
                f"{split} {source} ({len(questions[split])})"
                for split, source in sources(config.data).items()
                if source
            ]
            log.note("data       " + "   ".join(read))
            for line in data.notes():
                log.note(line)
            for split, count in skipped.items():
                if count:
                    log.note(
                        f"left out {count} of {len(questions[split])} {split} questions: {over_long(config, split)}"
                    )
            try:
                summary = asyncio.run(train_with_ray(config, folder, task, log, started))
            except KeyboardInterrupt:
                log.note(
                    f"{len(log.steps)} of {config.steps} steps are in {run_folder.metrics}; no student was written"
                )
                raise
            run_folder.write_summary(summary | data.figures())
            log.note(f"student in {run_folder.student}   figures in {run_folder.path / 'summary.json'}")
            if config.sinks.report:
                log.note(f"report in {write_report([run_folder.path], run_folder.report)}: open it in a browser")
            log.note(closing_line(summary))
            if summary.get("active_fraction") == 0:
                log.note("warning: no step had anything to learn from; the student is the model that was given")
    return 0


async def train_with_ray(config, folder, task, log, started: float) -> dict:
    from demopsd_dist.driver import RunState, train
    from launch.task import provenance
    from workers import cluster
    from workers.crew import RayCrew

    with log.timed("start_roles"):
        cluster.join(config)  # left, within a bound, by `fenced`
        crew_actors = RayCrew(config, folder)
        crew = await crew_actors.start()
    ready_s = time.monotonic() - started
    log.note(f"roles ready after {ready_s:.0f} s: {summary_of_roles(config)}; weights by {crew_actors.transport}")
    try:
        await train(config, crew, task, log, RunState())
        with log.timed("export"):
            await crew.learners.export(log.folder.student)
        forwards = await crew_actors.forwards_run()
    finally:
        crew_actors.stop()
    return {
        **log.summary(),
        "wall_s": round(time.monotonic() - started, 1),
        "method": config.method.value,
        "forwards": forwards,
        "model": config.model.path,
        "data": sources(config.data),
        **provenance(config),
    }


def closing_line(summary: dict) -> str:
    if "accuracy_after" not in summary:
        return f"done in {summary['wall_s']:.0f} s"
    if "accuracy_before" not in summary:
        return f"accuracy {summary['accuracy_after']['average']:.1%}   in {summary['wall_s']:.0f} s"
    before, after = summary["accuracy_before"], summary["accuracy_after"]
    line = f"accuracy {before['average']:.1%} -> {after['average']:.1%}"
    if "ood" in before:
        line += f"   out of distribution {before['ood']:.1%} -> {after['ood']:.1%}"
    line += f"   entropy {summary['entropy_before']:.3f} -> {summary['entropy_after']:.3f}"
    return f"{line}   in {summary['wall_s']:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
