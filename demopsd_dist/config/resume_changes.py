"""Settings that may change when a run is resumed, and settings that would change the trained student."""

from __future__ import annotations

from fnmatch import fnmatch

from omegaconf import OmegaConf

from demopsd_dist.config.role_settings import Schedule
from demopsd_dist.config.schema import Config

CHANGEABLE_ON_RESUME = (
    "name",
    "output_dir",
    "ray_address",
    "model.tree_tokens",
    "rollout.num_workers",
    "rollout.min_workers",
    "rollout.tensor_parallel",
    "rollout.sleep",
    "rollout.kv_cache_gib",
    "rollout.gpu_memory_fraction",
    "rollout.max_batch_*",
    "rollout.compile",
    "*.cpus_per_worker",
    "*.gpus_per_worker",
    "*.nodes",
    "*.threads",
    "teacher.num_workers",
    "teacher.shards",
    "teacher.batch_tokens",
    "learner.num_workers",
    "learner.zero_stage",
    "learner.micro_batch_tokens",
    "learner.activation_checkpointing",
    "learner.offload",
    "weights.*",
    "evaluation.*",
    "leakage.*",
    "drift.*",
    "checkpoint.*",
    "samples.*",
    "sinks.*",
    "profile.*",
    "alarm.*",
    "limits.*",
)
"""Patterns (fnmatch) of settings that may change on resume: they affect speed, records, rounding and the reaction to
alarms, not the training objective."""


def changes(before: Config, after: Config) -> dict[str, tuple[object, object]]:
    """Settings that differ, by key: (before, after)."""
    trees = (OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True) for config in (before, after))
    old, new = map(_flat, trees)
    return {key: (old.get(key), new.get(key)) for key in {**new, **old} if old.get(key) != new.get(key)}


def changes_of_training(before: Config, after: Config) -> dict[str, tuple[object, object]]:
    """Changed settings that would train a different student, by key: (before, after)."""
    patterns = list(CHANGEABLE_ON_RESUME)
    if after.learner.schedule is Schedule.constant:
        # with a constant learning rate more steps only continue the run; other schedules depend on steps
        patterns.append("steps")
    return {
        key: pair
        for key, pair in changes(before, after).items()
        if not any(fnmatch(key, pattern) for pattern in patterns)
    }


def _flat(node: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(node, dict):
        return {prefix: node}
    return {
        key: value
        for name, inner in node.items()
        for key, value in _flat(inner, f"{prefix}.{name}" if prefix else name).items()
    }
