"""Checks that span several settings, or that a range cannot express. They refuse a value and change none."""

from __future__ import annotations

import datetime
import math
import os
import re
from dataclasses import fields

from demopsd_dist.config.collapse_settings import AlarmConfig
from demopsd_dist.config.data_settings import MINISCI, SPLIT, DataConfig, FieldNames, Format
from demopsd_dist.config.method_settings import MethodName, check_methods
from demopsd_dist.config.precision_settings import check_optimizer, check_precision, check_transport
from demopsd_dist.config.ranges import check_values
from demopsd_dist.config.role_settings import Schedule
from demopsd_dist.config.schema import Config, ModelConfig, RewardErrors, SolutionSource
from demopsd_dist.config.train_sets import TrainSet, train_sets
from demopsd_dist.util.errors import ConfigError

_LABEL = r"[a-zA-Z0-9](?:[\w.-]{0,61}[a-zA-Z0-9])?"  # of a node, as Ray accepts it
_SELECTOR = re.compile(rf"(?:[\w.-]+/)?{_LABEL}=!?(?:{_LABEL}|in\({_LABEL}(?:,{_LABEL})*\))")


def check(config: Config) -> None:
    """Check every setting by itself, then the combinations.

    Raises:
        ConfigError: a value is out of its range, or several values conflict.
    """
    check_values(config)
    _check_paths(config)
    _check_lora(config.model)
    _check_template_date(config.model.template_date)
    _check_address(config.ray_address)
    _check_nodes(config)
    _check_alarm(config.alarm)
    _check_data(config.data)
    check_methods(config)
    _check_group_size(config)
    _check_solution_source(config)
    _check_worker_counts(config)
    _check_shared_gpus(config)
    _check_engine_capacity(config)
    _check_determinism(config)
    check_precision(config)
    check_optimizer(config.learner)
    check_transport(config)
    _check_steps(config)
    _check_privileged(config)
    _check_reward(config)
    _check_name(config.name)


def longest_sequence_tokens(config: Config) -> int:
    """Longest sequence of an engine: a prompt and the longer of training's and evaluation's responses."""
    longest = max(config.rollout.max_response_tokens, config.evaluation.max_response_tokens or 0)
    return config.rollout.max_prompt_tokens + longest


def _check_paths(config: Config) -> None:
    """Refuse `~`, which a shell expands at the beginning of a word alone, and which would be a folder of that name."""
    sources = {"train": config.data.train, "test": config.data.test, "ood": config.data.ood}
    data = {f"data.{name}": source for name, source in sources.items() if isinstance(source, str)}
    for key, value in {"output_dir": config.output_dir, "model.path": config.model.path, **data}.items():
        if value is not None and value.startswith("~"):
            raise ConfigError(f"{key}={value} would be a folder named ~. Write {os.path.expanduser(value)}.")


def _check_lora(model: ModelConfig) -> None:
    """Refuse settings of adapters without adapters: they would have no effect."""
    if model.lora_rank:
        return
    defaults = ModelConfig()
    for name in ("lora_alpha", "lora_targets"):
        value = getattr(model, name)
        if value != getattr(defaults, name):
            raise ConfigError(
                f"model.{name}={value} does nothing with model.lora_rank=0, which trains all weights. Set "
                "model.lora_rank=16 for adapters, or leave it out."
            )


def _check_template_date(date: str | None) -> None:
    """Check the form of the date that a chat template shows."""
    if date is None:
        return
    try:
        valid = datetime.date.fromisoformat(date).isoformat() == date
    except ValueError:
        valid = False
    if not valid:
        raise ConfigError(f"model.template_date={date!r} must be a date as YYYY-MM-DD, {datetime.date.today()} say.")


def _check_address(address: str | None) -> None:
    """Check the form of the address; the message does not repeat it, since it may hold a password."""
    if address not in (None, "auto") and not re.fullmatch(r"(ray://)?([\w.-]+|\[[\da-fA-F:]+\]):\d+", address):
        raise ConfigError(
            "ray_address must be auto or host:port. No user or token belongs into it, since the run folder keeps all "
            "settings: put the token into RAY_AUTH_TOKEN or ~/.ray/auth_token (docs/security.md)."
        )


def _check_nodes(config: Config) -> None:
    """Check the node labels of the roles."""
    for role, nodes in {
        "rollout": config.rollout.nodes,
        "teacher": config.teacher.nodes,
        "learner": config.learner.nodes,
    }.items():
        if nodes is None:
            continue
        if not _SELECTOR.fullmatch(nodes):
            raise ConfigError(
                f"{role}.nodes={nodes} must be key=value, key=!value or key=in(one,other), a label of `ray start "
                "--labels` (docs/nodes.md)."
            )
        if config.ray_address is None:
            raise ConfigError(
                f"{role}.nodes={nodes} chooses among the nodes of a cluster, and ray_address=null is this machine "
                "alone. Drop it, or set ray_address."
            )


def _check_alarm(alarm: AlarmConfig) -> None:
    """Check that each band is a pair in order."""
    for item in fields(alarm):
        band = getattr(alarm, item.name)
        if not isinstance(band, list):
            continue
        low, high = [*band, None, None][:2]
        if len(band) != 2 or (low is not None and high is not None and low >= high):
            raise ConfigError(f"alarm.{item.name}={band} must be [low, high], low below high, or null where open.")


def _check_data(data: DataConfig) -> None:
    """Check the training sets, which splits are held out, and that field names have an effect."""
    train_sets(data)
    for key, source in {"train": data.train, "ood": data.ood}.items():
        if source == SPLIT:
            raise ConfigError(f"data.{key}={SPLIT}: only data.test can be held out of data.train. Name a source.")
    settings: list[DataConfig | TrainSet] = [data, *train_sets(data)]
    for one in settings:
        own = one.fields != FieldNames()
        if own and one.format in (Format.sciknoweval, Format.gpqa):
            raise ConfigError(
                f"data.fields has no effect with data.format={one.format.value}, whose fields are known. Drop it, or "
                "set data.format=records."
            )
        if one.format is Format.choices and (one.fields.system is not None or one.fields.type is not None):
            raise ConfigError(
                "data.fields.system and data.fields.type have no effect with data.format=choices, which writes the "
                "system message and the type itself. Drop them."
            )


def check_layout_has_records(data: DataConfig) -> None:
    """Check that a layout has records to read, and texts for questions any but MiniSci's.

    It is called where a run loads its data, since other commands read records of their own with the same settings.

    Raises:
        ConfigError: a setting has no effect on any of the sets.
    """
    sources = [one.path for one in train_sets(data)] or [data.train]
    sources += [source for source in (data.test, data.ood) if source not in (None, SPLIT)]
    makers = {str(source).partition(":")[0] for source in sources}
    settings = {"format": data.format is not Format.auto, "fields": data.fields != FieldNames()}
    if makers <= {MINISCI}:
        settings |= {"system": data.system is not None, "suffix": data.suffix != ""}
    if not makers <= {MINISCI, "gym"}:
        return
    for name in (name for name, changed in settings.items() if changed):
        raise ConfigError(
            f"data.{name} has no effect: all questions come from {' and '.join(sorted(makers))}, whose layout is "
            "known. Drop it, or set data.train to a file."
        )


def _check_group_size(config: Config) -> None:
    """Check that a response has siblings where the method needs them."""
    size = config.rollout.group_size
    if config.method in (MethodName.grpo, MethodName.mixed):
        if size < 2:
            raise ConfigError(
                f"rollout.group_size={size} leaves nothing to compare a response with. Set it to 2 or more."
            )
    elif (
        size < 2
        and config.privileged.source is SolutionSource.sibling
        and config.privileged.exclude_own_success
        and not config.privileged.feedback
    ):
        raise ConfigError(
            f"rollout.group_size={size} leaves no sibling to learn from while privileged.exclude_own_success is true. "
            "Set rollout.group_size to 2 or more, or privileged.exclude_own_success=false."
        )


def _check_solution_source(config: Config) -> None:
    """Check that the source of solutions has an effect, and that a step has other questions where they are needed."""
    source, prompts = config.privileged.source, config.rollout.prompts_per_step
    if config.method is MethodName.grpo and source is not SolutionSource.sibling:
        raise ConfigError(
            f"privileged.source={source.value} has no effect with method=grpo, which has no teacher. Leave it out, or "
            "set method to demopsd, sdpo, opsd or mixed."
        )
    if source is SolutionSource.other_question and prompts < 2:
        raise ConfigError(
            f"privileged.source=other_question with rollout.prompts_per_step={prompts}: a step has no other question. "
            "Set rollout.prompts_per_step to 2 or more."
        )


def _check_worker_counts(config: Config) -> None:
    """Check numbers of workers against each other."""
    rollout, teacher = config.rollout, config.teacher
    if rollout.min_workers is not None and rollout.min_workers > rollout.num_workers:
        raise ConfigError(
            f"rollout.min_workers={rollout.min_workers} must be between 1 and {rollout.num_workers}, which is "
            "rollout.num_workers."
        )
    copies, left_over = divmod(teacher.num_workers, teacher.shards)
    if left_over:
        fitting = [count * teacher.shards for count in (copies, copies + 1) if count]
        raise ConfigError(
            f"teacher.shards={teacher.shards} does not divide teacher.num_workers={teacher.num_workers}: "
            f"{teacher.shards} workers share each copy of the weights. Set teacher.num_workers to "
            f"{' or '.join(map(str, fitting))}."
        )


def _check_shared_gpus(config: Config) -> None:
    """Check that engines on a shared GPU take at most their share of its memory, and that ranks do not share one."""
    rollout, teacher, learner = config.rollout, config.teacher, config.learner
    if rollout.sleep and rollout.ahead:
        raise ConfigError(
            f"rollout.sleep=true with rollout.ahead={rollout.ahead}: those engines sample while the learners learn. "
            "Set rollout.ahead=0, or rollout.sleep=false."
        )
    if rollout.sleep and rollout.gpus_per_worker == 1:
        raise ConfigError(
            "rollout.sleep=true with rollout.gpus_per_worker=1: no other role shares the GPU, so the freed "
            "memory would stay unused. Set rollout.sleep=false, or let roles share a GPU by fractions."
        )
    if 0 < rollout.gpus_per_worker < min(1, rollout.gpu_memory_fraction) and not rollout.sleep:
        raise ConfigError(
            f"rollout.gpu_memory_fraction={rollout.gpu_memory_fraction:g} is more than rollout.gpus_per_worker="
            f"{rollout.gpus_per_worker:g}: the other roles on the GPU need memory too. Lower it to "
            f"{rollout.gpus_per_worker:g} or less, or set rollout.sleep=true."
        )
    if 0 < rollout.gpus_per_worker < 1 < rollout.tensor_parallel:
        raise ConfigError(
            f"rollout.tensor_parallel={rollout.tensor_parallel} with rollout.gpus_per_worker="
            f"{rollout.gpus_per_worker:g}: each process of such an engine needs a GPU of its own. Set "
            "rollout.gpus_per_worker=1."
        )
    if 0 < learner.gpus_per_worker < 1 < learner.num_workers:
        raise ConfigError(
            f"learner.gpus_per_worker={learner.gpus_per_worker:g} with learner.num_workers={learner.num_workers}: nccl "
            "refuses two ranks on one GPU. Set learner.num_workers=1, or learner.gpus_per_worker=1."
        )
    if 0 < teacher.gpus_per_worker < 1 < teacher.shards:
        raise ConfigError(
            f"teacher.gpus_per_worker={teacher.gpus_per_worker:g} with teacher.shards={teacher.shards}: nccl refuses "
            "two workers of a copy on one GPU. Set teacher.shards=1, or teacher.gpus_per_worker=1."
        )


def _check_engine_capacity(config: Config) -> None:
    """Check that an engine can run its longest sequence and its widest batch."""
    rollout, longest = config.rollout, longest_sequence_tokens(config)
    if not rollout.gpus_per_worker and rollout.max_batch_tokens < longest:
        longer = (config.evaluation.max_response_tokens or 0) > rollout.max_response_tokens
        raise ConfigError(
            f"rollout.max_batch_tokens={rollout.max_batch_tokens} is below rollout.max_prompt_tokens + "
            f"{'evaluation' if longer else 'rollout'}.max_response_tokens = {longest}: a CPU engine cannot cut a "
            f"prompt. Set it to {longest} or more."
        )
    if not rollout.gpus_per_worker and rollout.kv_cache_gib != int(rollout.kv_cache_gib):
        raise ConfigError(
            f"rollout.kv_cache_gib={rollout.kv_cache_gib:g}: a CPU engine takes whole GiB. Set it to "
            f"{math.ceil(rollout.kv_cache_gib)}."
        )
    if rollout.max_batch_tokens < rollout.max_batch_sequences:
        raise ConfigError(
            f"rollout.max_batch_tokens={rollout.max_batch_tokens} is below rollout.max_batch_sequences="
            f"{rollout.max_batch_sequences}, each of which decodes a token at once. Raise it or lower the other."
        )


def _check_determinism(config: Config) -> None:
    """Refuse settings of a deterministic run that make the result depend on the speed of the workers."""
    rollout = config.rollout
    if config.deterministic and (rollout.ahead or rollout.late_group_s is not None):
        conflict, needed = (
            (f"rollout.ahead={rollout.ahead}", "rollout.ahead=0")
            if rollout.ahead
            else (f"rollout.late_group_s={rollout.late_group_s}", "rollout.late_group_s=null")
        )
        raise ConfigError(
            f"{conflict} makes the result depend on the speed of the workers; deterministic=true needs {needed}."
        )
    if config.deterministic and not rollout.request_seeds:
        raise ConfigError(
            "rollout.request_seeds=false makes a sample depend on the others; deterministic=true needs it true."
        )


def _check_steps(config: Config) -> None:
    """Check that the schedule and the profiled steps lie within the run."""
    learner = config.learner
    if learner.schedule is not Schedule.constant and 0 < config.steps <= learner.warmup_steps:
        raise ConfigError(
            f"learner.schedule={learner.schedule.value} begins after learner.warmup_steps={learner.warmup_steps}, and "
            f"steps={config.steps}. Raise steps or lower learner.warmup_steps."
        )
    has_one = config.steps == learner.warmup_steps + 1 and not learner.final_learning_rate_fraction
    if learner.schedule is not Schedule.constant and has_one:
        raise ConfigError(
            f"learner.schedule={learner.schedule.value} has one step, steps={config.steps} after "
            f"learner.warmup_steps={learner.warmup_steps}, with a learning rate of 0. Set learner.schedule=constant, "
            "or raise steps."
        )
    for step in config.profile.steps:
        if step > config.steps:
            raise ConfigError(f"profile.steps={step} must be between 1 and {config.steps}, the last of steps.")


def _check_privileged(config: Config) -> None:
    """Check the placeholders of the templates."""
    privileged = config.privileged
    for key, template, placeholder in (
        ("template", privileged.template, "{prompt}"),
        ("template", privileged.template, "{solution}"),
        ("solution_template", privileged.solution_template, "{solution}"),
        ("feedback_template", privileged.feedback_template, "{feedback}"),
    ):
        if template.count(placeholder) != 1:
            raise ConfigError(
                f"privileged.{key} holds {placeholder} {template.count(placeholder)} times; it must hold it once."
            )
    count = privileged.template.count("{feedback}")
    if count > 1 or (privileged.feedback and not count):
        raise ConfigError(
            f"privileged.template holds {{feedback}} {count} times; it must hold it once where privileged.feedback is "
            "true, and never more."
        )


def _check_reward(config: Config) -> None:
    """Refuse settings that only a reward function of the user's own gives an effect."""
    if config.reward_errors is RewardErrors.drop and "." not in config.reward:
        raise ConfigError(
            f"reward_errors=drop has no effect with reward={config.reward}, which never fails. Drop it, or set reward "
            "to the dotted path of your own function."
        )
    if config.privileged.feedback and "." not in config.reward:
        raise ConfigError(
            f"privileged.feedback=true has no effect with reward={config.reward}, which gives none. Set reward to the "
            "dotted path of your own function that does, or drop it."
        )


def _check_name(name: str) -> None:
    """Check that the name can name a folder."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise ConfigError(f"name={name!r} names a folder: use letters, digits, '.', '_' and '-'; not '.' or '-' first.")
