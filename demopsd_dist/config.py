"""One tree of settings. Every default, every meaning and every check is here and nowhere else.

`load(path, overrides)` reads YAML over the defaults and `key=value` words over that, and refuses what it does not
know. Nothing heavy is imported, so a wrong setting costs a second and starts nothing.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from demopsd_dist.errors import ConfigError

MINISCI = "minisci"


class Precision(Enum):
    """Number format of weights and activations in the engines (the EMA copy and the optimizer stay in float32)."""

    float32 = "float32"
    bfloat16 = "bfloat16"


@dataclass
class ModelConfig:
    path: str = MINISCI
    """A Hugging Face model folder with a tokenizer and chat template, or `minisci` for the embedded one."""
    precision: Precision = Precision.float32
    """`float32`, or `bfloat16` on GPUs."""


@dataclass
class DataConfig:
    train: str = MINISCI
    """A JSONL file (a `prompt` or `question`, an `answer`; perhaps `system`, `field`, `id`), or `minisci`."""
    test: str = MINISCI
    """The same, for evaluation in the domain; never trained on."""
    ood: str | None = MINISCI
    """The same, for evaluation out of the distribution; null for none."""
    minisci_train_size: int = 4096
    """Questions drawn for training where `train: minisci`; > 0."""
    minisci_test_size: int = 192
    """Questions drawn for each of test and ood where they are `minisci`; > 0."""


@dataclass
class PrivilegedConfig:
    """What the teacher sees beyond the student (arXiv 2607.02502, section 4.4)."""

    template: str = "{prompt}\n\nCorrect solution:\n\n{solution}\n\nCorrectly solve the original question."
    """Holds `{prompt}` and `{solution}` once each; nothing else in it is special."""
    exclude_own_success: bool = True
    """A rollout never sees itself as the solution; a lone success in its group is then not learned from."""
    max_tokens: int = 10240
    """Bound of the teacher's prompt; the solution is cut from the right to fit. In tokens, > 0."""


@dataclass
class DemoPSDConfig:
    top_k: int | None = 100
    """Support: the student's most likely tokens, plus a tail bucket. null for the full vocabulary."""
    alpha_max: float = 0.15
    """Upper bound of the gate alpha; in [0, 1]."""
    gate_sensitivity: float = 50.0
    """kappa of the gate (the paper's beta); > 0."""
    floor: float = 1e-8
    """Least probability of an atom in teacher and reference; in (0, 0.01]."""
    importance_clip: float = 2.0
    """Upper bound of the learner-to-rollout probability ratio of a token; >= 1."""


@dataclass
class RolloutConfig:
    num_workers: int = 1
    """vLLM engines; > 0."""
    cpus_per_worker: float = 1.0
    """Ray CPUs each; a fraction lets roles that take turns share a core."""
    gpus_per_worker: int = 0
    """0 runs on CPU; 1 on a GPU each."""
    threads: int = 1
    """torch threads of an engine on CPU; > 0."""
    prompts_per_step: int = 64
    """Questions sampled for one optimizer step; > 0."""
    group_size: int = 8
    """Responses a question; >= 2 where a rollout may not see itself."""
    temperature: float = 1.0
    """Of training rollouts and of all log-probabilities in the loss; >= 0.01, below which vLLM rounds it up."""
    max_prompt_tokens: int = 2048
    """Longer questions are left out, counted and reported; > 0."""
    max_response_tokens: int = 16384
    """Longer responses are truncated; > 0."""
    ahead: int = 0
    """Steps of rollouts in flight beyond the one being learned: 0 is on-policy; staleness never exceeds it."""
    kv_cache_gib: float = 1.0
    """KV cache of a CPU engine, GiB; > 0."""
    gpu_memory_fraction: float = 0.85
    """Share of its GPUs' memory that an engine takes; in (0, 1]."""
    max_batch_tokens: int = 32768
    """Tokens in one forward of an engine; > 0. A CPU engine takes prompts whole, so there at least
    max_prompt_tokens + max_response_tokens."""
    max_batch_sequences: int = 256
    """Sequences that an engine decodes at once; > 0."""


@dataclass
class TeacherConfig:
    cpus_per_worker: float = 1.0
    """Ray CPUs of the teacher worker."""
    gpus_per_worker: int = 0
    """0 runs on CPU; 1 on a GPU."""
    threads: int = 1
    """torch threads on CPU; > 0. May exceed `cpus_per_worker` where the roles take turns."""
    ema_rate: float = 0.05
    """eta: teacher = (1 - eta) teacher + eta student, once a step; in [0, 1]. 0 freezes it."""
    batch_tokens: int = 16384
    """Padded tokens in one forward; > 0."""


@dataclass
class LearnerConfig:
    num_workers: int = 1
    """DeepSpeed data-parallel ranks; > 0."""
    cpus_per_worker: float = 1.0
    """Ray CPUs each."""
    gpus_per_worker: int = 0
    """0 runs on CPU (gloo); 1 on a GPU each (nccl)."""
    threads: int = 1
    """torch threads a rank on CPU; > 0."""
    zero_stage: int = 2
    """DeepSpeed ZeRO stage: 0, 1, 2 or 3."""
    learning_rate: float = 1e-6
    """AdamW's, after warm-up; > 0."""
    warmup_steps: int = 10
    """Steps of linear warm-up from 0; >= 0."""
    weight_decay: float = 0.01
    """AdamW's; >= 0."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; > 0."""
    micro_batch_tokens: int = 16384
    """Padded tokens in one forward and backward of a rank; > 0. Does not change the result, only memory and time."""


@dataclass
class WeightsConfig:
    bucket_mib: int = 64
    """Weights travel in packed buckets of about this size, MiB; > 0."""
    max_logp_diff: float = 1e-3
    """Largest allowed difference between engine and learner in the log-probability of a sampled token, nats; > 0.
    More stops the run: the engine is not sampling from the weights just published. bfloat16 needs about 0.5."""


@dataclass
class EvaluationConfig:
    every_steps: int = 0
    """Evaluate during training after this many steps; 0 for only before and after."""
    samples: int = 8
    """Responses a question: accuracy is mean@samples; > 0."""
    temperature: float = 1.0
    """Of evaluation rollouts; >= 0.01. The reported entropy is that of this distribution."""
    top_p: float = 1.0
    """Nucleus of evaluation rollouts; in (0, 1]."""


@dataclass
class Limits:
    """Bounds of every wait, seconds; > 0."""

    start_s: float = 300.0
    """For the roles to start: cluster, engines, process groups."""
    call_s: float = 1800.0
    """For one call to a role: sampling, scoring, a step, a publish."""


@dataclass
class Config:
    name: str = "run"
    """Names the run folder."""
    output_dir: str = "runs"
    """Run folders are made in here; an existing one is never overwritten."""
    steps: int = 100
    """Optimizer steps; > 0."""
    seed: int = 0
    """Everything random follows from it: data order, sampling, choice of sibling."""
    ray_address: str | None = None
    """null starts Ray on this machine; `auto` or an address joins a cluster."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    privileged: PrivilegedConfig = field(default_factory=PrivilegedConfig)
    demopsd: DemoPSDConfig = field(default_factory=DemoPSDConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    limits: Limits = field(default_factory=Limits)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Defaults, then the YAML file, then `key=value` words; checked.

    Raises:
        ConfigError: unknown key (names the nearest), wrong type, value out of its range, impossible combination.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(
            f"There is no config file {path}. The shipped ones are in configs/, for example configs/demo.yaml."
        )
    tree = OmegaConf.structured(Config)
    try:
        tree = _merged(tree, OmegaConf.load(path), str(path))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_first_line(error)}") from None
    except Exception as error:  # YAML errors have no common class that is cheap to import
        raise ConfigError(f"{path} is not readable YAML: {_first_line(error)}") from None
    for word in overrides:
        if not re.match(r"[A-Za-z_][\w.]*=", word):
            raise ConfigError(f"{word!r} is not of the form key=value, for example learner.zero_stage=3.")
        try:
            tree = _merged(tree, OmegaConf.from_dotlist([word]), word)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{word}: {_first_line(error)}") from None
    config = OmegaConf.to_object(tree)
    assert isinstance(config, Config)
    check(config)
    return config


def to_yaml(config: Config) -> str:
    """The whole resolved tree, as a file that `load` reads back to an equal one."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _merged(tree: DictConfig, new: Any, source: str) -> DictConfig:
    if not isinstance(new, DictConfig):
        raise ConfigError(f"{source}: a mapping of settings is needed, not {type(new).__name__}.")
    known = set(_keys(Config))
    for key in _leaves(OmegaConf.to_container(new)):
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.6) or [
                name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]
            ]
            hint = f" Did you mean {near[0]}?" if near else " The keys are in demopsd_dist/config.py."
            raise ConfigError(f"{source}: there is no setting {key}.{hint}")
    merged = OmegaConf.merge(tree, new)
    assert isinstance(merged, DictConfig)
    return merged


def _keys(node: type, prefix: str = "") -> Iterator[str]:
    for item in fields(node):
        kind = item.default_factory if item.default_factory is not None else None
        yield prefix + item.name
        if is_dataclass(kind):
            yield from _keys(kind, f"{prefix}{item.name}.")


def _leaves(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _leaves(value, f"{prefix}{key}.")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def check(config: Config) -> None:
    """Ranges and combinations that the types cannot say."""
    rollout, teacher, learner = config.rollout, config.teacher, config.learner
    _above_zero(
        {
            "steps": config.steps,
            "data.minisci_train_size": config.data.minisci_train_size,
            "data.minisci_test_size": config.data.minisci_test_size,
            "privileged.max_tokens": config.privileged.max_tokens,
            "demopsd.gate_sensitivity": config.demopsd.gate_sensitivity,
            "rollout.num_workers": rollout.num_workers,
            "rollout.cpus_per_worker": rollout.cpus_per_worker,
            "rollout.threads": rollout.threads,
            "rollout.prompts_per_step": rollout.prompts_per_step,
            "rollout.group_size": rollout.group_size,
            "rollout.max_prompt_tokens": rollout.max_prompt_tokens,
            "rollout.max_response_tokens": rollout.max_response_tokens,
            "rollout.kv_cache_gib": rollout.kv_cache_gib,
            "rollout.max_batch_tokens": rollout.max_batch_tokens,
            "rollout.max_batch_sequences": rollout.max_batch_sequences,
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
            "limits.start_s": config.limits.start_s,
            "limits.call_s": config.limits.call_s,
        }
    )
    _within("demopsd.alpha_max", config.demopsd.alpha_max, 0.0, 1.0)
    _within("demopsd.floor", config.demopsd.floor, 1e-30, 0.01)
    _within("demopsd.importance_clip", config.demopsd.importance_clip, 1.0, float("inf"))
    _within("rollout.temperature", rollout.temperature, 0.01, 100.0)
    _within("evaluation.temperature", config.evaluation.temperature, 0.01, 100.0)
    _within("evaluation.top_p", config.evaluation.top_p, 1e-6, 1.0)
    _within("rollout.gpu_memory_fraction", rollout.gpu_memory_fraction, 0.01, 1.0)
    _within("teacher.ema_rate", teacher.ema_rate, 0.0, 1.0)
    _within("learner.zero_stage", learner.zero_stage, 0, 3)
    for key, value in {
        "rollout.ahead": rollout.ahead,
        "learner.warmup_steps": learner.warmup_steps,
        "learner.weight_decay": learner.weight_decay,
        "evaluation.every_steps": config.evaluation.every_steps,
        "seed": config.seed,
    }.items():
        _within(key, value, 0, float("inf"))
    _within("rollout.gpus_per_worker", rollout.gpus_per_worker, 0, 1)
    _within("teacher.gpus_per_worker", teacher.gpus_per_worker, 0, 1)
    _within("learner.gpus_per_worker", learner.gpus_per_worker, 0, 1)
    if config.demopsd.top_k is not None:
        _above_zero({"demopsd.top_k": config.demopsd.top_k})
    if rollout.group_size < 2 and config.privileged.exclude_own_success:
        raise ConfigError(
            f"rollout.group_size={rollout.group_size} leaves no sibling to learn from while "
            "privileged.exclude_own_success is true. Set rollout.group_size to 2 or more, or "
            "privileged.exclude_own_success=false."
        )
    whole = rollout.max_prompt_tokens + rollout.max_response_tokens
    if not rollout.gpus_per_worker and rollout.max_batch_tokens < whole:
        raise ConfigError(
            f"rollout.max_batch_tokens={rollout.max_batch_tokens} is below rollout.max_prompt_tokens + "
            f"rollout.max_response_tokens = {whole}: a CPU engine cannot cut a prompt. Set it to {whole} or more."
        )
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
    for placeholder in ("{prompt}", "{solution}"):
        if config.privileged.template.count(placeholder) != 1:
            raise ConfigError(
                f"privileged.template holds {placeholder} {config.privileged.template.count(placeholder)} times; "
                "it must hold it once."
            )
    if not re.fullmatch(r"[\w.-]+", config.name):
        raise ConfigError(f"name={config.name!r} names a folder: use letters, digits, '.', '_' and '-'.")


def _above_zero(values: dict[str, float]) -> None:
    for key, value in values.items():
        if not 0 < value < float("inf"):
            raise ConfigError(f"{key}={value} must be greater than 0 and finite.")


def _within(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        bounds = f"at least {low:g}" if high == float("inf") else f"between {low:g} and {high:g}"
        raise ConfigError(f"{key}={value} must be {bounds}.")
