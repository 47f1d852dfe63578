"""Replay of a recorded step: `demopsd replay RUN --step N [--set key=value ...]`

Repeats a step of a run from the checkpoint before it and the recorded batch: support, teacher, loss, gradient and
update, by the same workers. Compares every tensor with the record and names the first that differs. `--set` then runs
the same tokens with other settings of the method (docs/replay.md).

Exit code 0 where all tensors are equal, 1 where something differs, 2 for wrong input, 130 when interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from demopsd_dist.config import Config, changes, check_optimizer_package, load
from demopsd_dist.data.packing import pack
from demopsd_dist.data.records import DigestRequest, ScoredExample, StepReport
from demopsd_dist.methods import resolve_method
from demopsd_dist.models.model_folder import model_folder
from demopsd_dist.models.precision import resolve_precision
from demopsd_dist.run_record import digests, replay_batch
from demopsd_dist.run_record.checkpoints import Checkpoint, Checkpoints
from demopsd_dist.run_record.digests import Digests
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.run_record.replay_batch import ReplayBatch
from demopsd_dist.util.errors import CheckpointError, ConfigError, DifferenceError, RunFolderError
from demopsd_dist.util.fitted_lines import print_fitted
from launch._command_line import command_parser, count_gpus, exit_code_of, require, user_path
from launch._processes import fenced
from workers.cluster.placement import check_fits, core_bundles

if TYPE_CHECKING:
    from demopsd_dist.training.roles import Roles

CHANGEABLE = ("demopsd.*", "sdpo.*", "opsd.*", "grpo.*", "teacher.trust_region_rate")
"""Settings that `--set` may change: they keep tokens and weights as recorded."""


def make_parser() -> argparse.ArgumentParser:
    """Arguments of the command."""
    parser = command_parser("replay", __doc__)
    parser.add_argument("run", type=user_path, help="a run folder")
    parser.add_argument("--step", type=int, required=True, metavar="N", help="the first is 1")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="another setting of the method")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    arguments = make_parser().parse_args(argv)
    return exit_code_of(lambda: replay(arguments.run, arguments.step, arguments.set))


def replay(path: Path, step: int, overrides: Sequence[str]) -> int:
    """Repeat the step and compare it with its record; with overrides, run it once more with them. The exit code."""
    folder, batch, checkpoint = read_step(path, step)
    config = recorded_config(batch, [])
    changed = recorded_config(batch, overrides)
    refuse_other_settings(changes(config, changed))
    model = model_folder(config)
    config, changed = (resolve_precision(one, model)[0] for one in (config, changed))
    for one in (config, changed):
        check_optimizer_package(one)
        if one.ray_address is None:
            check_fits(one, cpus=len(os.sched_getaffinity(0)), gpus=count_gpus(), wanted=core_bundles(one))
    require("ray", "deepspeed")
    print_fitted([heading(folder, batch, checkpoint), *(f"note: {line}" for line in caveats(config, batch))])
    with fenced():
        from workers.cluster import session

        session.join(config, wanted=core_bundles(config))  # disconnected at the end of the block, within a time limit
        with gradient_folder(folder) if overrides else nullcontext() as gradient:
            request = DigestRequest(write_gradient_to=gradient)
            scored, report = asyncio.run(step_again(config, model, batch, checkpoint, request))
            equal = print_comparison(batch.record.digests, digests.step_digests(scored, report))
            if overrides:
                request = DigestRequest(compare_gradient_with=gradient)
                _, changed_report = asyncio.run(step_again(changed, model, batch, checkpoint, request))
                print(
                    "\n".join(
                        ["", f"with {' '.join(overrides)}:", *metric_table(report.metrics, changed_report.metrics)]
                    )
                )
    return 0 if equal else 1


@contextmanager
def gradient_folder(folder: RunFolder) -> Iterator[Path]:
    """Temporary folder for a gradient inside the run folder, which all ranks share."""
    try:
        temporary = TemporaryDirectory(prefix=".gradient-", dir=folder.replay)
    except OSError as error:
        raise RunFolderError(f"{folder.replay}: --set needs space for a gradient there ({error.strerror}).") from None
    with temporary as path:
        yield Path(path).resolve()


def read_step(path: Path, step: int) -> tuple[RunFolder, ReplayBatch, Checkpoint | None]:
    """Run folder, recorded batch and checkpoint of a step; no checkpoint where the run began with it.

    Raises:
        ConfigError: `path` is no run folder.
        CheckpointError: the step cannot be replayed; names the steps that can.
        DifferenceError: the recorded batch or the checkpoint has changed since.
    """
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise ConfigError(f"{path} is no run folder: it has no {folder.config.name}.")
    checkpoints = Checkpoints(folder.checkpoints, keep=1)
    recorded = replay_batch.recorded_steps(folder.replay)
    replayable = [number for number in recorded if number == 1 or checkpoints.at(number - 1)]
    if step not in replayable:
        raise CheckpointError(
            f"step {step} of {path} cannot be replayed: "
            + (
                f"{obstacle(step, recorded)} Steps that can: {', '.join(map(str, replayable))}."
                if replayable
                else NO_BATCH
            )
        )
    batch = replay_batch.read(folder.replay, step)
    checkpoint = checkpoints.at(step - 1)
    if checkpoint is not None:
        if (damage := checkpoint.damage()) is not None:
            raise CheckpointError(
                f"{checkpoint.path}, which step {step} began from, is damaged: {damage}. "
                "Replay another step, or restore the folder from a copy."
            )
        if checkpoint.digest() != batch.record.checkpoint:
            raise DifferenceError(
                f"step {step} cannot be compared: {checkpoint.path}, which it began from, was written again after the "
                "step was recorded, so the weights may differ. Replay a step that was recorded after that."
            )
    return folder, batch, checkpoint


NO_BATCH = (
    "the run has recorded no batch. With checkpoint.replayable=true it records the batch of the first step and of the "
    "step after each checkpoint."
)


def obstacle(step: int, recorded: Sequence[int]) -> str:
    """Reason why a step cannot be replayed."""
    if step in recorded:
        return f"there is no checkpoint of step {step - 1}, the state that it began from."
    return "its batch was not recorded; only the first step and the step after each checkpoint are."


def recorded_config(batch: ReplayBatch, overrides: Sequence[str]) -> Config:
    """Config of the recorded step, with `key=value` overrides."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(batch.record.config, encoding="utf-8")
        return load(path, overrides)


def refuse_other_settings(changed: dict[str, tuple[object, object]]) -> None:
    """Refuse settings other than `CHANGEABLE`: they would change tokens, weights, or how the gradient is split over
    ranks.

    Raises:
        ConfigError: names the first such setting.
    """
    wrong = [key for key in changed if not any(fnmatch(key, pattern) for pattern in CHANGEABLE)]
    if wrong:
        raise ConfigError(
            f"--set {wrong[0]}: tokens and weights stay as recorded. Settings that may change: {', '.join(CHANGEABLE)}."
        )


async def step_again(
    config: Config, model: Path, batch: ReplayBatch, checkpoint: Checkpoint | None, request: DigestRequest
) -> tuple[list[ScoredExample], StepReport]:
    """Repeat the step with newly started learners and teacher, which end with it."""
    from workers.actors import LearnersAndTeacher

    core = LearnersAndTeacher(config, model)
    try:
        return await replay_step(config, await core.start(), batch, checkpoint, request)
    finally:
        core.stop()


async def replay_step(
    config: Config, roles: Roles, batch: ReplayBatch, checkpoint: Checkpoint | None, request: DigestRequest
) -> tuple[list[ScoredExample], StepReport]:
    """Restore learners and teacher to their state before the step, then repeat it."""
    if checkpoint is not None:
        await roles.learners.load(checkpoint.path / "learner")
        await roles.teacher.load(checkpoint.path / "teacher")
    await roles.weights.publish(batch.record.step - 1)
    scored = await score_again(config, roles, batch)
    learner = config.learner
    packed = pack(scored, batch.size, roles.learners.dp_size, learner.micro_batch_tokens, config.model.tree_tokens)
    factor = batch.record.learning_rate_factor
    return scored, await roles.learners.step(replace(packed, learning_rate_factor=factor, digest_request=request))


async def score_again(config: Config, roles: Roles, batch: ReplayBatch) -> list[ScoredExample]:
    """Score the batch in the recorded calls: the examples that share a forward determine how its sums are rounded."""
    scored: dict[int, ScoredExample] = {}
    for indices in batch.score_calls:
        examples = [batch.examples[index] for index in indices]
        supports = await roles.learners.support(examples)
        scored |= zip(
            indices, await roles.teacher.score(examples, supports, resolve_method(config).forwards), strict=True
        )
    return [scored[index] for index in range(len(batch.examples))]


def heading(folder: RunFolder, batch: ReplayBatch, checkpoint: Checkpoint | None) -> str:
    """First line of the output: step, size and origin of the weights."""
    tokens = sum(example.response_length_tokens for example in batch.examples)
    origin = "the model folder" if checkpoint is None else str(checkpoint.path)
    return (
        f"step {batch.record.step} of {folder.path}: {len(batch.examples)} responses, {tokens:,} tokens, from {origin}"
    )


def caveats(config: Config, batch: ReplayBatch) -> list[str]:
    """Reasons why a difference may be no fault."""
    notes = []
    if config.rollout.ahead:
        notes.append(
            f"rollout.ahead={config.rollout.ahead}: the teacher may have scored with weights from before the "
            "checkpoint. All tensors from support_ids on may differ."
        )
    elif not config.deterministic:
        notes.append(
            "deterministic=false: equal rounding is not guaranteed. It is equal where all kernels are deterministic."
        )
    before, now = batch.record.surroundings, replay_batch.code_versions()
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if changed:
        versions = ", ".join(f"{name} {before.get(name)} -> {now.get(name)}" for name in changed)
        notes.append(f"the step was recorded with other versions: {versions}.")
    return notes


def print_comparison(recorded: Digests, computed: Digests) -> bool:
    """Print a line for each tensor and the result. True where all are equal."""
    different = {difference.tensor: difference for difference in digests.differences(recorded, computed)}
    for tensor in {**recorded, **computed}:
        rows = recorded.get(tensor, {})
        kind = digests.ROWS.get(tensor, "response")
        count = rows.get(digests.IN_ALL, "") if kind == "scalar" else f"{len(rows)} {kind}{'s' * (len(rows) != 1)}"
        state = "equal" if tensor not in different else f"{len(different[tensor].rows)} differ"
        print(f"  {tensor:<18}{count:<24}{state}")
    if not different:
        print(f"all {len(computed)} tensors are equal")
        return True
    print_fitted([f"first that differs: {next(iter(different.values()))}"])
    return False


def metric_table(before: dict[str, float], after: dict[str, float]) -> list[str]:
    """Table of loss, gradient norm and every metric that the other settings have changed, for the terminal."""
    from workers.learner.observers.step_digests import DOT, OTHER, OWN

    always = ("learner/loss", "learner/grad_norm")
    names = [*always, *sorted(name for name in before.keys() & after.keys() if before[name] != after[name])]
    lines = [f"  {'':<46}{'recorded':>12}{'changed':>12}"]
    lines += [
        f"  {name:<46}{before[name]:>12.6g}{after[name]:>12.6g}" for name in dict.fromkeys(names) if name in before
    ]
    norms = (after[OWN] * after[OTHER]) ** 0.5
    cosine = after[DOT] / norms if norms else float("nan")
    return [*lines, f"  {'cosine of the two gradients':<58}{cosine:>12.6f}"]


if __name__ == "__main__":
    sys.exit(main())
