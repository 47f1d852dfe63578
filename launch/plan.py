"""Before paying: `python -m launch.plan CONFIG --gpus 8xh100 [--hours 12] [--calibrate FILE.json] [key=value ...]`

Memory by role, seconds by stage, the best split of the devices into rollout, teacher and learner, and what would not
fit and why. The model's weights are not needed: a folder with `config.json`, or the name of a known model.
Without `--calibrate` the efficiencies are assumptions. Exit code 0, 1 where the config as it is does not fit, 2 for
wrong input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from demopsd_dist.config import Config, load
from demopsd_dist.planning import calibration, plan_text
from demopsd_dist.planning.default_efficiencies import UNCALIBRATED
from demopsd_dist.planning.hardware import DeviceCluster, fleet_of
from demopsd_dist.planning.model_shape import shape_of
from demopsd_dist.planning.splits import ranked
from demopsd_dist.planning.step_time import plan
from demopsd_dist.planning.workload import Traffic, job_of, on_gpus, split_of
from demopsd_dist.util.errors import ConfigError
from launch._command_line import exit_code_of

ASSUMED = Traffic()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m launch.plan", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="a YAML file, for example configs/node_8gpu.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings over those of the file")
    parser.add_argument("--gpus", required=True, metavar="8xh100", help="4x8xh100 for nodes; 2xcpu with --calibrate")
    parser.add_argument("--hours", type=float, help="tell what comes of so long a run")
    parser.add_argument("--price", type=float, help="of a device for an hour, in your currency")
    parser.add_argument(
        "--calibrate", type=Path, metavar="FILE.json", help="measurements, as benchmarks.plan writes them"
    )
    of_data = parser.add_argument_group("what is assumed of the data")
    of_data.add_argument("--prompt-tokens", type=float, default=ASSUMED.prompt_tokens, metavar="N")
    of_data.add_argument(
        "--response-tokens", type=float, default=0.0, metavar="N", help="default: half of what is allowed"
    )
    of_data.add_argument("--right", type=float, default=ASSUMED.right_fraction, metavar="0.4", help="of the responses")
    arguments = parser.parse_intermixed_args(argv)
    return exit_code_of(lambda: planned(arguments))


def planned(arguments: argparse.Namespace) -> int:
    config = load(arguments.config, arguments.overrides)
    figures, measured = UNCALIBRATED, None
    if arguments.calibrate is not None:
        measured, figures = calibration.read(arguments.calibrate)
    fleet = fleet_of(arguments.gpus, {measured.device.name: measured.device} if measured else {})
    refuse_other_place(config, fleet)
    refuse_out_of_range(arguments, config)
    job = job_of(
        config,
        shape_of(config.model.path),
        Traffic(arguments.prompt_tokens, arguments.response_tokens, right_fraction=arguments.right),
    )
    made = plan(job, split_of(config, job), fleet, figures)
    print("\n".join(plan_text.heading(job, fleet, figures)))
    print("\nAs configured:")
    print("\n".join(plan_text.chosen(made, fleet, arguments.hours, arguments.price)))
    if fleet.size > 1:
        plans = ranked(job, fleet, figures)
        print("\nSplits of these devices, the fastest first:")
        print("\n".join(plan_text.best(plans)))
        if plans and not plans[0].shortfalls:
            print(f"\nTake the first with: {plan_text.settings(plans[0], made)}\n")
            print("\n".join(plan_text.chosen(plans[0], fleet, arguments.hours, arguments.price)))
    return int(bool(made.shortfalls))


def refuse_other_place(config: Config, fleet: DeviceCluster) -> None:
    """
    Raises:
        ConfigError: a config for CPU and GPUs to plan for, or the other way round.
    """
    if on_gpus(config) == fleet.device.shared:
        here, there = ("GPUs", "a CPU") if on_gpus(config) else ("CPU", f"{fleet.device.name}s")
        raise ConfigError(
            f"the config is for {here} (gpus_per_worker of its roles), and --gpus names {there}. Take another config."
        )


def refuse_out_of_range(arguments: argparse.Namespace, config: Config) -> None:
    """
    Raises:
        ConfigError: a figure on the command line that cannot be.
    """
    rollout, endless = config.rollout, float("inf")
    for name, value, highest in (
        ("--hours", arguments.hours, endless),
        ("--price", arguments.price, endless),
        ("--right", arguments.right, 1.0),
        ("--prompt-tokens", arguments.prompt_tokens, rollout.max_prompt_tokens),
        ("--response-tokens", arguments.response_tokens, rollout.max_response_tokens),
    ):
        if value is not None and not 0 <= value <= highest:
            raise ConfigError(f"{name} {value:g} must be from 0 to {highest:g}.")


if __name__ == "__main__":
    sys.exit(main())
