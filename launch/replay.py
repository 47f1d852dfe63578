"""Replay: `python -m launch.replay RUN --step N [--set key=value ...]`

Does a step of a run again, from the checkpoint before it and the batch that was kept: support, teacher, loss, gradient
and update, by the same workers. Compares every tensor with the record and names the first that differs. `--set` then
does the same tokens with other settings of the method (docs/replay.md).

Exit code 0 where all is equal, 1 where something differs, 2 for wrong input, 130 when interrupted.
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

from demopsd_dist.config import Config, changes, load
from demopsd_dist.data.packing import pack
from demopsd_dist.data.records import DigestRequest, ScoredExample, StepReport
from demopsd_dist.methods import resolve_method
from demopsd_dist.models.model_folder import model_folder
from demopsd_dist.run_record import digests, replay_batch
from demopsd_dist.run_record.checkpoints import Checkpoint, Checkpoints
from demopsd_dist.run_record.digests import Digests
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.run_record.replay_batch import ReplayBatch
from demopsd_dist.util.errors import CheckpointError, ConfigError, DifferenceError, RunFolderError
from launch._command_line import count_gpus, exit_code_of
from launch._processes import fenced
from workers.cluster.placement import check_fits, core_bundles

if TYPE_CHECKING:
    from demopsd_dist.training.roles import Roles

ASKABLE = ("demopsd.*", "sdpo.*", "opsd.*", "grpo.*", "teacher.trust_region_rate")
"""What may be set: what is made of the same tokens, in the same state."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m launch.replay", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="a run folder")
    parser.add_argument("--step", type=int, required=True, metavar="N", help="the first is 1")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="what if it had been so")
    arguments = parser.parse_args(argv)
    return exit_code_of(lambda: replay(arguments.run, arguments.step, arguments.set))


def replay(path: Path, step: int, words: Sequence[str]) -> int:
    folder, batch, checkpoint = found(path, step)
    config = config_of(batch, [])
    asked = config_of(batch, words)
    refuse_other_tokens(changes(config, asked))
    model = model_folder(config)
    for one in (config, asked):
        if one.ray_address is None:
            check_fits(one, cpus=len(os.sched_getaffinity(0)), gpus=count_gpus(), wanted=core_bundles(one))
    print(heading(folder, batch, checkpoint))
    for line in reservations(config, batch):
        print(f"note: {line}")
    with fenced():
        from workers.cluster import session

        session.join(config, wanted=core_bundles(config))  # left, within a bound, by `fenced`
        with room_for_gradient(folder) if words else nullcontext() as gradient:
            trace = DigestRequest(write_gradient_to=gradient)
            scored, report = asyncio.run(step_again(config, model, batch, checkpoint, trace))
            equal = told(batch.record.digests, digests.step_digests(scored, report))
            if words:
                trace = DigestRequest(compare_gradient_with=gradient)
                _, other = asyncio.run(step_again(asked, model, batch, checkpoint, trace))
                print("\n".join(["", f"with {' '.join(words)}:", *compared(report.metrics, other.metrics)]))
    return 0 if equal else 1


@contextmanager
def room_for_gradient(folder: RunFolder) -> Iterator[Path]:
    """In the run folder, which all ranks share."""
    try:
        made = TemporaryDirectory(prefix=".gradient-", dir=folder.replay)
    except OSError as error:
        raise RunFolderError(f"{folder.replay}: --set needs room for a gradient there ({error.strerror}).") from None
    with made as path:
        yield Path(path).resolve()


def found(path: Path, step: int) -> tuple[RunFolder, ReplayBatch, Checkpoint | None]:
    """What a replay of this step needs; no checkpoint where the run began with it.

    Raises:
        ConfigError: this is no run folder.
        CheckpointError: the step cannot be replayed; names those that can.
        DifferenceError: what was kept of it has changed since.
    """
    folder = RunFolder(path)
    if not folder.config.is_file():
        raise ConfigError(f"{path} is no run folder: it has no {folder.config.name}.")
    checkpoints = Checkpoints(folder.checkpoints, keep=1)
    can = [there for there in replay_batch.recorded_steps(folder.replay) if there == 1 or checkpoints.at(there - 1)]
    if step not in can:
        raise CheckpointError(
            f"step {step} of {path} cannot be replayed: "
            + (f"{why_not(folder, step)} Steps that can: {', '.join(map(str, can))}." if can else NOTHING_KEPT)
        )
    batch = replay_batch.read(folder.replay, step)
    checkpoint = checkpoints.at(step - 1)
    if checkpoint is not None:
        if (damage := checkpoint.damage()) is not None:
            raise CheckpointError(f"{checkpoint.path}, which step {step} began from, is damaged: {damage}.")
        if checkpoint.digest() != batch.record.checkpoint:
            raise DifferenceError(
                f"first that differs: the weights before. {checkpoint.path} has been made anew since the step."
            )
    return folder, batch, checkpoint


NOTHING_KEPT = (
    "the run has kept no batch. With checkpoint.replayable=true it keeps that of the first step and of the step after "
    "each checkpoint."
)


def why_not(folder: RunFolder, step: int) -> str:
    if step in replay_batch.recorded_steps(folder.replay):
        return f"there is no checkpoint of step {step - 1}, the state that it began from."
    return "its batch was not kept; only that of a step after a checkpoint is, and of the first."


def config_of(batch: ReplayBatch, words: Sequence[str]) -> Config:
    """As it was at that step, with these words over it."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(batch.record.config, encoding="utf-8")
        return load(path, words)


def refuse_other_tokens(changed: dict[str, tuple[object, object]]) -> None:
    """
    Raises:
        ConfigError: a setting would have made other tokens or another state, or another cut of the same gradient.
    """
    wrong = [key for key in changed if not any(fnmatch(key, pattern) for pattern in ASKABLE)]
    if wrong:
        raise ConfigError(
            f"--set {wrong[0]}: tokens and weights are as they were. What may be set: {', '.join(ASKABLE)}."
        )


async def step_again(
    config: Config, model: Path, batch: ReplayBatch, checkpoint: Checkpoint | None, trace: DigestRequest
) -> tuple[list[ScoredExample], StepReport]:
    """The step with learners and teacher of its own."""
    from workers.actors import LearnersAndTeacher

    core = LearnersAndTeacher(config, model)
    try:
        return await stepped(config, await core.start(), batch, checkpoint, trace)
    finally:
        core.stop()


async def stepped(
    config: Config, roles: Roles, batch: ReplayBatch, checkpoint: Checkpoint | None, trace: DigestRequest
) -> tuple[list[ScoredExample], StepReport]:
    """Learners and teacher, which have just been started, as they were before the step; then the step."""
    if checkpoint is not None:
        await roles.learners.load(checkpoint.path / "learner")
        await roles.teacher.load(checkpoint.path / "teacher")
    await roles.weights.publish(batch.record.step - 1)
    scored = await scored_again(config, roles, batch)
    learner = config.learner
    packed = pack(scored, batch.size, roles.learners.dp_size, learner.micro_batch_tokens, config.model.tree_tokens)
    factor = batch.record.learning_rate_factor
    return scored, await roles.learners.step(replace(packed, learning_rate_factor=factor, digest_request=trace))


async def scored_again(config: Config, roles: Roles, batch: ReplayBatch) -> list[ScoredExample]:
    """In the parts in which they were scored: who shares a forward decides how its sums are rounded."""
    scored: dict[int, ScoredExample] = {}
    for indices in batch.score_calls:
        examples = [batch.examples[index] for index in indices]
        supports = await roles.learners.support(examples)
        scored |= zip(
            indices, await roles.teacher.score(examples, supports, resolve_method(config).forwards), strict=True
        )
    return [scored[index] for index in range(len(batch.examples))]


def heading(folder: RunFolder, batch: ReplayBatch, checkpoint: Checkpoint | None) -> str:
    tokens = sum(example.response_length_tokens for example in batch.examples)
    begun = "the model folder" if checkpoint is None else str(checkpoint.path)
    return (
        f"step {batch.record.step} of {folder.path}: {len(batch.examples)} responses, {tokens:,} tokens, from {begun}"
    )


def reservations(config: Config, batch: ReplayBatch) -> list[str]:
    """Why what differs may be no fault."""
    notes = []
    if config.rollout.ahead:
        notes.append(
            f"rollout.ahead={config.rollout.ahead}: the teacher may have scored with weights of before the checkpoint. "
            "From support_ids on all may differ."
        )
    elif not config.deterministic:
        notes.append("deterministic=false: nothing promises equal rounding. It is the same where all kernels repeat.")
    before, now = batch.record.surroundings, replay_batch.code_versions()
    changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if changed:
        told = ", ".join(f"{name} {before.get(name)} -> {now.get(name)}" for name in changed)
        notes.append(f"it was recorded with others: {told}.")
    return notes


def told(recorded: Digests, computed: Digests) -> bool:
    """A line for each tensor, and the verdict: whether all are equal."""
    wrong = {difference.tensor: difference for difference in digests.differences(recorded, computed)}
    for tensor in {**recorded, **computed}:
        rows = recorded.get(tensor, {})
        kind = digests.ROWS.get(tensor, "response")
        count = rows.get(digests.IN_ALL, "") if kind == "scalar" else f"{len(rows)} {kind}{'s' * (len(rows) != 1)}"
        state = "equal" if tensor not in wrong else f"{len(wrong[tensor].rows)} differ"
        print(f"  {tensor:<18}{count:<24}{state}")
    if not wrong:
        print(f"all {len(computed)} tensors are equal")
        return True
    print(f"first that differs: {next(iter(wrong.values()))}")
    return False


def compared(before: dict[str, float], after: dict[str, float]) -> list[str]:
    """Loss, gradient, and whatever else another setting has changed."""
    from workers.learner.observers.step_digests import DOT, OTHER, OWN

    always = ("learner/loss", "learner/grad_norm")
    names = [*always, *sorted(name for name in before.keys() & after.keys() if before[name] != after[name])]
    lines = [f"  {'':<46}{'as it was':>12}{'so':>12}"]
    lines += [
        f"  {name:<46}{before[name]:>12.6g}{after[name]:>12.6g}" for name in dict.fromkeys(names) if name in before
    ]
    norms = (after[OWN] * after[OTHER]) ** 0.5
    cosine = after[DOT] / norms if norms else float("nan")
    return [*lines, f"  {'cosine of the two gradients':<58}{cosine:>12.6f}"]


if __name__ == "__main__":
    sys.exit(main())
