"""Training: `demopsd train configs/demo.yaml [key=value ...] [--dry-run | --resume | --resume-from PATH]`

Checks settings, model folder and data before anything heavy is imported or started. Exit code 0 when the run is done, 2
for wrong input, 130 when interrupted, 1 for any other failure. Interrupted once, it saves and can be resumed; twice, it
ends at once and can be resumed from its last checkpoint.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from demopsd_dist.config import Config, check_optimizer_package, load
from demopsd_dist.data.rewards import resolve_reward
from demopsd_dist.data.sources import SPLITS, LoadedData, load_data
from demopsd_dist.methods import check_objective
from demopsd_dist.models.model_folder import model_folder
from demopsd_dist.models.precision import resolve_precision
from demopsd_dist.run_record.log import RunLog
from demopsd_dist.run_record.run_inputs import input_digests
from demopsd_dist.run_record.sinks import check_sinks
from demopsd_dist.training.resume_point import RunStart, find_resume_point
from demopsd_dist.util.errors import ConfigError
from demopsd_dist.util.fitted_lines import print_fitted
from launch._command_line import ENGINES, command_parser, count_gpus, exit_code_of, require, user_path
from workers.cluster.placement import check_fits, table


def make_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = command_parser("train", __doc__)
    parser.add_argument("config", help="a YAML file, for example configs/demo.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="print the settings that differ from the defaults, an example of the data and the placement, and stop",
    )
    parser.add_argument("--full", action="store_true", help="in a dry run: print all settings")
    parser.add_argument("--show", action="store_true", help="print the examples of the data whole, not shortened")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="continue the newest run of this name")
    again.add_argument(
        "--resume-from", type=user_path, metavar="PATH", help="continue that run, or from that checkpoint"
    )
    parser.add_argument(
        "--allow-config-change", action="store_true", help="resume although settings change what is learned"
    )
    parser.add_argument("--profile", type=int, metavar="STEP", help="write a timeline of that step into the run folder")
    return parser


def main(argv: Sequence[str] | None = None, open_log: Callable[..., RunLog] = RunLog) -> int:
    arguments = make_parser().parse_intermixed_args(argv)
    return exit_code_of(lambda: check_and_train(arguments, open_log))


def check_machine(config: Config) -> None:
    """Check that the roles fit on this machine; a cluster to join is checked when it has been joined.

    Raises:
        ConfigError: they need more CPUs or GPUs.
    """
    if config.ray_address is None:
        check_fits(config, cpus=len(os.sched_getaffinity(0)), gpus=count_gpus())


def check_and_train(arguments: argparse.Namespace, open_log: Callable[..., RunLog] = RunLog) -> int:
    """Check settings, model and data; then train, or print the dry run. The exit code.

    Args:
        open_log: makes the log of the run; with one of its own a benchmark observes the stages, or disturbs them.
    """
    if arguments.full and not arguments.dry_run:
        raise ConfigError("--full prints all settings of a dry run. Add --dry-run, or leave it out.")
    profile = [] if arguments.profile is None else [f"profile.steps=[{arguments.profile}]"]
    config = load(arguments.config, [*arguments.overrides, *profile])
    resolve_reward(config.reward, config.limits)  # imports a user's own reward, in the dry run too
    check_objective(config)
    check_sinks(config)
    check_optimizer_package(config)
    folder = model_folder(config)
    config, precision = resolve_precision(config, folder)
    data = load_data(config.data)
    start, resumes = None, arguments.resume or arguments.resume_from is not None
    # in a dry run of a new run the model's files are not read
    inputs = input_digests(data.questions, folder) if resumes or not arguments.dry_run else {}
    if resumes:
        start = find_resume_point(config, inputs, arguments.resume_from, arguments.allow_config_change)
    if arguments.dry_run:
        print_dry_run(config, folder, precision, data, arguments, start)
        return 0
    check_machine(config)
    require(*ENGINES)
    from launch._processes import fenced

    with fenced():
        from launch._training_run import run

        if not run(config, folder, data, inputs, start, [precision], arguments.show, open_log):
            raise KeyboardInterrupt
    return 0


def print_dry_run(
    config: Config,
    folder: Path,
    precision: str,
    data: LoadedData,
    arguments: argparse.Namespace,
    start: RunStart | None,
) -> None:
    """Print settings, model, questions with an example of each split, and the placement of the roles.

    Args:
        folder: of the model.
        precision: line about the precision of student and teacher.
        start: the run to continue; None for a new one.

    Raises:
        ConfigError: the roles need more than this machine has; all else has been printed then.
    """
    from launch._data_shown import example_lines, own_answer_lines
    from launch._settings_shown import settings_lines
    from launch._task import NO_STEPS, build_task

    task, _ = build_task(config, folder, data.questions)
    print("\n".join(settings_lines(config, arguments.full)))
    print(f"# model: {folder}\n# {precision}")
    if config.steps == 0:
        print(f"# {NO_STEPS}")
    if start is not None:
        print("\n".join(f"# {line}" for line in start.lines(config)))
    print("# questions: " + ", ".join(f"{len(data.questions[split])} {split}" for split in SPLITS))
    examples = example_lines(config, task, data, arguments.show)
    notes = [*data.notes(), *own_answer_lines(task, data.splits), *examples]
    print_fitted([f"# {line}" for line in notes], mark="# ")
    check_machine(config)  # after the data, which can be looked at on a machine without the run's GPUs
    print("# placement of the roles:\n" + "\n".join(f"#{line}" for line in table(config).splitlines()))
    print("# nothing was started; the same command without --dry-run trains")


if __name__ == "__main__":
    sys.exit(main())
