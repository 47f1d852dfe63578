"""Plan of a run before it starts: `demopsd plan CONFIG --gpus 8xh100 [--hours 12] [key=value ...]`

Prints memory by role, seconds by stage, the best split of the devices into rollout, teacher and learner workers, and
what does not fit and why. The model's weights are not needed: a folder with `config.json`, or the name of a known
model. Without `--calibrate` the efficiencies are assumptions. Exit code 0; 1 if the unchanged config does not fit; 2
for wrong input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from demopsd_dist.config import MINISCI, Config, load
from demopsd_dist.models.precision import LEAST_CAPABILITY, MatrixUnits, with_chosen_precision
from demopsd_dist.planning import plan_text
from demopsd_dist.planning.calibration import read_calibration
from demopsd_dist.planning.hardware import Device, DeviceCluster, parse_cluster
from demopsd_dist.planning.model_shape import ModelShape, shape_of
from demopsd_dist.planning.roofline import UNCALIBRATED
from demopsd_dist.planning.splits import rank_splits
from demopsd_dist.planning.step_time import plan_run
from demopsd_dist.planning.workload import Traffic, split_of, uses_gpus, workload_of
from demopsd_dist.util.errors import ConfigError
from demopsd_dist.util.fitted_lines import print_fitted, terminal_width
from launch._command_line import command_parser, exit_code_of, user_path

ASSUMED = Traffic()
INDENT = 13  # columns before the items of a plan
FASTER = 1.5  # times as many bfloat16 operations as float32: a CPU that bfloat16 pays on


def make_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = command_parser("plan", __doc__)
    parser.add_argument("config", help="a YAML file, for example configs/node_8gpu.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace those of the file")
    parser.add_argument("--gpus", required=True, metavar="8xh100", help="4x8xh100 for nodes; 2xcpu with --calibrate")
    parser.add_argument("--hours", type=float, help="print samples and steps of a run of this length")
    parser.add_argument("--price", type=float, help="price of one device for an hour, in your currency")
    parser.add_argument(
        "--calibrate", type=user_path, metavar="FILE.json", help="measurements, as benchmarks.plan writes them"
    )
    data = parser.add_argument_group("assumptions about the data")
    data.add_argument("--prompt-tokens", type=float, default=ASSUMED.prompt_tokens, metavar="N", help="mean length")
    data.add_argument(
        "--response-tokens", type=float, default=0.0, metavar="N", help="mean length; default: half of the maximum"
    )
    data.add_argument(
        "--right", type=float, default=ASSUMED.right_fraction, metavar="0.4", help="fraction of right responses"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_intermixed_args(argv)
    return exit_code_of(lambda: print_plan(arguments))


def print_plan(arguments: argparse.Namespace) -> int:
    """Print the configured plan and the best splits; the exit code."""
    config = load(arguments.config, arguments.overrides)
    efficiencies, measured = UNCALIBRATED, None
    if arguments.calibrate is not None:
        measured, efficiencies = read_calibration(arguments.calibrate)
    cluster = parse_cluster(arguments.gpus, {measured.device.name: measured.device} if measured else {})
    check_device_kind(config, cluster)
    check_ranges(arguments, config)
    shape = shape_of(config.model.path)
    config = with_planned_precision(config, shape, cluster.device)
    workload = workload_of(
        config,
        shape,
        Traffic(arguments.prompt_tokens, arguments.response_tokens, right_fraction=arguments.right),
    )
    configured = plan_run(workload, split_of(config, workload), cluster, efficiencies)
    absent = None if config.model.path == MINISCI or Path(config.model.path).exists() else config.model.path
    print_fitted(plan_text.heading(workload, cluster, efficiencies, absent), INDENT)
    print("\nAs configured:")
    print_fitted(plan_text.plan_lines(configured, cluster, arguments.hours, arguments.price), INDENT)
    if cluster.size > 1:
        plans = rank_splits(workload, cluster, efficiencies)
        print("\nSplits of these devices, the fastest first:")
        print_fitted(plan_text.split_table(plans, terminal_width()))
        if plans and not plans[0].shortfalls:
            print()
            print_fitted([f"Settings of the fastest split: {plan_text.command_line_overrides(plans[0], configured)}"])
            print_fitted(plan_text.policy_lines(plans, configured))
            print()
            print_fitted(plan_text.plan_lines(plans[0], cluster, arguments.hours, arguments.price), INDENT)
    return int(bool(configured.shortfalls))


def with_planned_precision(config: Config, shape: ModelShape, device: Device) -> Config:
    """Replace `model.precision=auto` by what a run on these devices would take."""
    pays = device.bfloat16_tflops > FASTER * device.float32_tflops
    units = MatrixUnits(cpu=device.name if pays else None, capability=None if device.shared else LEAST_CAPABILITY)
    return with_chosen_precision(config, shape.parameters, units)


def check_device_kind(config: Config, cluster: DeviceCluster) -> None:
    """Refuse to plan a CPU config for GPUs, or a GPU config for a CPU.

    Raises:
        ConfigError: config and `--gpus` name different kinds of devices.
    """
    if uses_gpus(config) == cluster.device.shared:
        configured, requested = ("GPUs", "a CPU") if uses_gpus(config) else ("CPU", f"{cluster.device.name}s")
        raise ConfigError(
            f"the config is for {configured} (gpus_per_worker of its roles), and --gpus names {requested}. "
            "Use another config."
        )


def check_ranges(arguments: argparse.Namespace, config: Config) -> None:
    """Check the numbers on the command line.

    Raises:
        ConfigError: a number is out of its range.
    """
    rollout, endless = config.rollout, float("inf")
    if arguments.hours is not None and not 0 < arguments.hours < endless:
        raise ConfigError(f"--hours {arguments.hours:g} must be above 0.")
    for name, value, highest in (
        ("--price", arguments.price, endless),
        ("--right", arguments.right, 1.0),
        ("--prompt-tokens", arguments.prompt_tokens, rollout.max_prompt_tokens),
        ("--response-tokens", arguments.response_tokens, rollout.max_response_tokens),
    ):
        if value is not None and not 0 <= value <= highest:
            raise ConfigError(f"{name} {value:g} must be from 0 to {highest:g}.")


if __name__ == "__main__":
    sys.exit(main())
