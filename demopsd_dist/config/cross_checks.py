"""Ranges and combinations that the types of the tree cannot say. A user's value is refused, never changed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from demopsd_dist.config.collapse_settings import AlarmConfig
from demopsd_dist.config.data_settings import SPLIT, DataConfig, FieldNames, Format
from demopsd_dist.config.method_settings import MethodName, SupportOf, WeightSource
from demopsd_dist.config.schema import Config, ModelConfig, Precision, RewardErrors, Schedule
from demopsd_dist.util.errors import ConfigError

LARGEST = 2**32 - 1  # as a seed, what NumPy takes
_LABEL = r"[a-zA-Z0-9](?:[\w.-]{0,61}[a-zA-Z0-9])?"  # as Ray takes it
_SELECTOR = re.compile(rf"(?:[\w.-]+/)?{_LABEL}=!?(?:{_LABEL}|in\({_LABEL}(?:,{_LABEL})*\))")
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")


def check(config: Config) -> None:
    """
    Raises:
        ConfigError: one value out of its range, or several that do not go together.
    """
    rollout, teacher, learner = config.rollout, config.teacher, config.learner
    for key, plain in _values(config):
        _check_plain(key, plain)
    _above_zero(
        {
            "data.minisci_train_size": config.data.minisci_train_size,
            "data.minisci_test_size": config.data.minisci_test_size,
            "model.lora_alpha": config.model.lora_alpha,
            "privileged.max_tokens": config.privileged.max_tokens,
            "demopsd.gate_sensitivity": config.demopsd.gate_sensitivity,
            "leakage.prompts": config.leakage.prompts,
            "rollout.num_workers": rollout.num_workers,
            "rollout.cpus_per_worker": rollout.cpus_per_worker,
            "rollout.tensor_parallel": rollout.tensor_parallel,
            "rollout.threads": rollout.threads,
            "rollout.prompts_per_step": rollout.prompts_per_step,
            "rollout.group_size": rollout.group_size,
            "rollout.max_prompt_tokens": rollout.max_prompt_tokens,
            "rollout.max_response_tokens": rollout.max_response_tokens,
            "rollout.kv_cache_gib": rollout.kv_cache_gib,
            "rollout.max_batch_tokens": rollout.max_batch_tokens,
            "rollout.max_batch_sequences": rollout.max_batch_sequences,
            "teacher.num_workers": teacher.num_workers,
            "teacher.shards": teacher.shards,
            "teacher.cpus_per_worker": teacher.cpus_per_worker,
            "teacher.threads": teacher.threads,
            "teacher.batch_tokens": teacher.batch_tokens,
            "learner.num_workers": learner.num_workers,
            "learner.cpus_per_worker": learner.cpus_per_worker,
            "learner.threads": learner.threads,
            "learner.learning_rate": learner.learning_rate,
            "learner.max_grad_norm": learner.max_grad_norm,
            "learner.micro_batch_tokens": learner.micro_batch_tokens,
            "weights.bucket_mib": config.weights.bucket_mib,
            "weights.max_logp_diff": config.weights.max_logp_diff,
            "evaluation.samples": config.evaluation.samples,
            "samples.responses": config.samples.responses,
            "samples.tokens": config.samples.tokens,
            "samples.candidates": config.samples.candidates,
            "alarm.after_steps": config.alarm.after_steps,
            "alarm.max_rollbacks": config.alarm.max_rollbacks,
            "alarm.rollback_learning_rate_factor": config.alarm.rollback_learning_rate_factor,
            "limits.start_s": config.limits.start_s,
            "limits.call_s": config.limits.call_s,
            "limits.reward_s": config.limits.reward_s,
            "limits.silence_s": config.limits.silence_s,
            "limits.stop_s": config.limits.stop_s,
            "limits.attempts": config.limits.attempts,
            "checkpoint.keep": config.checkpoint.keep,
        }
    )
    _within("demopsd.alpha_max", config.demopsd.alpha_max, 0.0, 1.0)
    _within("demopsd.floor", config.demopsd.floor, 1e-30, 0.01)
    _within("rollout.temperature", rollout.temperature, 0.01, 2.0)
    _within("evaluation.temperature", config.evaluation.temperature, 0.01, 2.0)
    _within("evaluation.top_p", config.evaluation.top_p, 1e-6, 1.0)
    _within("rollout.gpu_memory_fraction", rollout.gpu_memory_fraction, 0.01, 1.0)
    _within("teacher.ema_rate", teacher.ema_rate, 0.0, 1.0)
    _within("teacher.trust_region_rate", teacher.trust_region_rate, 0.0, 1.0)
    _within("leakage.contexts", config.leakage.contexts, 2, float("inf"))
    _within("learner.zero_stage", learner.zero_stage, 0, 3)
    _within("learner.final_learning_rate_fraction", learner.final_learning_rate_fraction, 0.0, 1.0)
    for key, value in {
        "steps": config.steps,
        "model.tree_tokens": config.model.tree_tokens,
        "model.lora_rank": config.model.lora_rank,
        "rollout.ahead": rollout.ahead,
        "learner.warmup_steps": learner.warmup_steps,
        "learner.weight_decay": learner.weight_decay,
        "evaluation.every_steps": config.evaluation.every_steps,
        "evaluation.early_answer_samples": config.evaluation.early_answer_samples,
        "leakage.every_steps": config.leakage.every_steps,
        "samples.every_steps": config.samples.every_steps,
        "checkpoint.every_steps": config.checkpoint.every_steps,
        "limits.restarts": config.limits.restarts,
        "demopsd.gate_threshold_nats": config.demopsd.gate_threshold_nats,
        "grpo.kl_coefficient": config.grpo.kl_coefficient,
        "seed": config.seed,
    }.items():
        _within(key, value, 0, float("inf"))
    _within("alarm.rollback_learning_rate_factor", config.alarm.rollback_learning_rate_factor, 0.0, 1.0)
    _check_lora(config.model)
    _check_address(config.ray_address)
    _check_nodes(config)
    _check_alarm(config.alarm)
    for step in config.profile.steps:
        _within("profile.steps", step, 1, config.steps)
    _check_data(config.data)
    _check_methods(config)
    _within("rollout.gpus_per_worker", rollout.gpus_per_worker, 0, 1)
    _within("teacher.gpus_per_worker", teacher.gpus_per_worker, 0, 1)
    _within("learner.gpus_per_worker", learner.gpus_per_worker, 0, 1)
    copies, left_over = divmod(teacher.num_workers, teacher.shards)
    if left_over:
        fitting = [count * teacher.shards for count in (copies, copies + 1) if count]
        raise ConfigError(
            f"teacher.shards={teacher.shards} does not divide teacher.num_workers={teacher.num_workers}: so many "
            f"workers share each copy of the weights. Set teacher.num_workers to {' or '.join(map(str, fitting))}."
        )
    _check_shared_gpus(config)
    whole = longest_sequence_tokens(config)
    if not rollout.gpus_per_worker and rollout.max_batch_tokens < whole:
        raise ConfigError(
            f"rollout.max_batch_tokens={rollout.max_batch_tokens} is below rollout.max_prompt_tokens + "
            f"rollout.max_response_tokens = {whole}: a CPU engine cannot cut a prompt. Set it to {whole} or more."
        )
    if not rollout.gpus_per_worker and rollout.kv_cache_gib != int(rollout.kv_cache_gib):
        raise ConfigError(
            f"rollout.kv_cache_gib={rollout.kv_cache_gib:g}: a CPU engine takes whole GiB. Set it to "
            f"{math.ceil(rollout.kv_cache_gib)}."
        )
    if config.evaluation.early_answer_samples and config.reward in ("boxed", "letter"):
        raise ConfigError(
            f"evaluation.early_answer_samples={config.evaluation.early_answer_samples} begins responses by <answer>; "
            f"reward={config.reward} reads another form. Set it to 0, or reward to answer or auto."
        )
    if rollout.min_workers is not None:
        _within("rollout.min_workers", rollout.min_workers, 1, rollout.num_workers)
    if config.deterministic and (rollout.ahead or rollout.late_group_s is not None):
        wrong, needed = (
            (f"rollout.ahead={rollout.ahead}", "rollout.ahead=0")
            if rollout.ahead
            else (f"rollout.late_group_s={rollout.late_group_s}", "rollout.late_group_s=null")
        )
        raise ConfigError(
            f"{wrong} makes what is learned hang on how fast the workers are; deterministic=true needs {needed}."
        )
    _above_zero({"rollout.late_group_s": rollout.late_group_s})
    _above_zero({"evaluation.max_response_tokens": config.evaluation.max_response_tokens})
    if rollout.max_batch_tokens < rollout.max_batch_sequences:
        raise ConfigError(
            f"rollout.max_batch_tokens={rollout.max_batch_tokens} is below rollout.max_batch_sequences="
            f"{rollout.max_batch_sequences}, each of which decodes a token at once. Raise it or lower the other."
        )
    if config.model.precision is Precision.bfloat16:
        if config.weights.max_logp_diff < 0.05:
            raise ConfigError(
                f"weights.max_logp_diff={config.weights.max_logp_diff:g} is below what bfloat16 rounding alone gives. "
                "Set it to 0.5 or so, or model.precision=float32."
            )
        if learner.zero_stage == 0:
            raise ConfigError("learner.zero_stage=0 cannot add up bfloat16 gradients in float32. Set it to 1, 2 or 3.")
    if learner.schedule is not Schedule.constant and 0 < config.steps <= learner.warmup_steps:
        raise ConfigError(
            f"learner.schedule={learner.schedule.value} begins after learner.warmup_steps={learner.warmup_steps}, and "
            f"steps={config.steps}. Raise steps or lower learner.warmup_steps."
        )
    _check_privileged_and_reward(config)
    if not re.fullmatch(r"\w[\w.-]*", config.name):
        raise ConfigError(
            f"name={config.name!r} names a folder: use letters, digits, '.', '_' and '-'; not '.' or '-' first."
        )


def longest_sequence_tokens(config: Config) -> int:
    """What an engine must have room for: a prompt and the longer of training's and evaluation's responses."""
    longest = max(config.rollout.max_response_tokens, config.evaluation.max_response_tokens or 0)
    return config.rollout.max_prompt_tokens + longest


def _check_address(address: str | None) -> None:
    """The message does not repeat the address: there may be a password in it."""
    if address not in (None, "auto") and not re.fullmatch(r"(ray://)?([\w.-]+|\[[\da-fA-F:]+\]):\d+", address):
        raise ConfigError(
            "ray_address must be auto or host:port. No user or token belongs into it, since the run folder keeps all "
            "settings: put the token into RAY_AUTH_TOKEN or ~/.ray/auth_token (docs/security.md)."
        )


def _check_nodes(config: Config) -> None:
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


def _values(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of every leaf; of a list each element."""
    if is_dataclass(node):
        for item in fields(node):
            yield from _values(getattr(node, item.name), f"{prefix}.{item.name}" if prefix else item.name)
    elif isinstance(node, list):
        yield from ((prefix, value) for value in node)
    else:
        yield prefix, node


def _check_plain(key: str, value: Any) -> None:
    """What no setting may be, whatever it means."""
    if isinstance(value, (list, dict)):
        raise ConfigError(f"{key} holds {value!r}; it takes a plain list.")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ConfigError(f"{key} is a number of {value.bit_length()} bits; it may have 32.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}={value} must be finite.")
    if isinstance(value, str) and _UNWRITABLE.search(value):
        raise ConfigError(f"{key}={value!r} holds a zero byte or half a character, which can stand in no file.")


def _check_lora(model: ModelConfig) -> None:
    """Settings of adapters that there are not would do nothing."""
    if model.lora_rank:
        return
    plain = ModelConfig()
    for name in ("lora_alpha", "lora_targets"):
        value = getattr(model, name)
        if value != getattr(plain, name):
            raise ConfigError(
                f"model.{name}={value} does nothing with model.lora_rank=0, which trains all weights. Set "
                "model.lora_rank=16 for adapters, or leave it out."
            )


def _check_shared_gpus(config: Config) -> None:
    """A GPU may be shared: engines then take no more of its memory than their share, and ranks are not among them."""
    rollout, teacher, learner = config.rollout, config.teacher, config.learner
    if rollout.sleep and rollout.ahead:
        raise ConfigError(
            f"rollout.sleep=true with rollout.ahead={rollout.ahead}: those engines sample while the learners learn. "
            "Set rollout.ahead=0, or rollout.sleep=false."
        )
    if rollout.sleep and rollout.gpus_per_worker == 1:
        raise ConfigError(
            "rollout.sleep=true with rollout.gpus_per_worker=1: nobody shares the GPU, so nobody has its memory. Set "
            "rollout.sleep=false, or let roles share by parts of a GPU."
        )
    if 0 < rollout.gpus_per_worker < min(1, rollout.gpu_memory_fraction) and not rollout.sleep:
        raise ConfigError(
            f"rollout.gpu_memory_fraction={rollout.gpu_memory_fraction:g} is more than rollout.gpus_per_worker="
            f"{rollout.gpus_per_worker:g}: those who share the GPU need memory too. Lower it to "
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


def _check_privileged_and_reward(config: Config) -> None:
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
    places = privileged.template.count("{feedback}")
    if places > 1 or (privileged.feedback and not places):
        raise ConfigError(
            f"privileged.template holds {{feedback}} {places} times; it must hold it once where privileged.feedback is "
            "true, and never more."
        )
    if config.reward_errors is RewardErrors.drop and "." not in config.reward:
        raise ConfigError(
            f"reward_errors=drop has no effect with reward={config.reward}, which never fails. Drop it, or set reward "
            "to the dotted path of your own function."
        )
    if privileged.feedback and "." not in config.reward:
        raise ConfigError(
            f"privileged.feedback=true has no effect with reward={config.reward}, which gives none. Set reward to the "
            "dotted path of your own function that does, or drop it."
        )


def _check_alarm(alarm: AlarmConfig) -> None:
    for item in fields(alarm):
        band = getattr(alarm, item.name)
        if not isinstance(band, list):
            continue
        low, high = [*band, None, None][:2]
        if len(band) != 2 or (low is not None and high is not None and low >= high):
            raise ConfigError(f"alarm.{item.name}={band} must be [low, high], low below high, or null where open.")


def _check_data(data: DataConfig) -> None:
    if not 0 < data.test_fraction < 1:
        raise ConfigError(f"data.test_fraction={data.test_fraction} must be above 0 and below 1.")
    _within("data.split_seed", data.split_seed, 0, float("inf"))
    for key, source in {"train": data.train, "ood": data.ood}.items():
        if source == SPLIT:
            raise ConfigError(f"data.{key}={SPLIT}: only data.test can be held out of data.train. Name a source.")
    if data.format in (Format.sciknoweval, Format.gpqa) and data.fields != FieldNames():
        raise ConfigError(
            f"data.fields has no effect with data.format={data.format.value}, whose fields are known. Drop it, or set "
            "data.format=records."
        )


def _check_methods(config: Config) -> None:
    """All methods' sections, also of those not chosen: a config is right as a whole or not at all."""
    for name, section in {"demopsd": config.demopsd, "sdpo": config.sdpo, "opsd": config.opsd}.items():
        _within(f"{name}.importance_clip", section.importance_clip, 1.0, float("inf"))
        _above_zero({f"{name}.top_k": section.top_k})
        if section.support is SupportOf.reference and name != "demopsd":
            raise ConfigError(
                f"{name}.support=reference: {name} runs no forward of a reference. Set it to learner or rollout."
            )
    if config.demopsd.support is SupportOf.reference and config.demopsd.reference is WeightSource.live:
        raise ConfigError(
            "demopsd.support=reference with demopsd.reference=live, which is the learner. Set demopsd.support=learner."
        )
    if config.demopsd.reference is WeightSource.trust_region:
        raise ConfigError("demopsd.reference=trust_region: only a teacher can be that. Set it to ema, live or frozen.")
    _within("opsd.beta", config.opsd.beta, 0.0, 1.0)
    _above_zero({"opsd.term_clip": config.opsd.term_clip})
    grpo = config.grpo
    _within("grpo.clip_low", grpo.clip_low, 0.0, 1.0)
    _within("grpo.dual_clip", grpo.dual_clip, 1.0, float("inf"))
    _above_zero({"grpo.clip_high": grpo.clip_high})
    _above_zero({"grpo.sampling_rounds": grpo.sampling_rounds})
    size = config.rollout.group_size
    if config.method is MethodName.grpo:
        if size < 2:
            raise ConfigError(
                f"rollout.group_size={size} leaves nothing to compare a response with. Set it to 2 or more."
            )
    elif size < 2 and config.privileged.exclude_own_success and not config.privileged.feedback:
        raise ConfigError(
            f"rollout.group_size={size} leaves no sibling to learn from while privileged.exclude_own_success is true. "
            "Set rollout.group_size to 2 or more, or privileged.exclude_own_success=false."
        )


def _above_zero(values: dict[str, float | None]) -> None:
    """None is no bound of the user's, and so not wrong."""
    for key, value in values.items():
        if value is not None and not value > 0:
            raise ConfigError(f"{key}={value} must be greater than 0.")


def _within(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        bounds = f"at least {low:g}" if high == float("inf") else f"between {low:g} and {high:g}"
        raise ConfigError(f"{key}={value} must be {bounds}.")
