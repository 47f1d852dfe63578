"""Which settings may differ where a run goes on, and which would make another run of it."""

from __future__ import annotations

from fnmatch import fnmatch

from omegaconf import OmegaConf

from demopsd_dist.config.schema import Config, Schedule

FREE = (
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
    "weights.*",
    "evaluation.*",
    "leakage.*",
    "checkpoint.*",
    "samples.*",
    "sinks.*",
    "profile.*",
    "alarm.*",
    "limits.*",
)
"""They change how fast it is and what is told of it, and rounding; not what is learned from what."""


def changes(before: Config, after: Config) -> dict[str, tuple[object, object]]:
    """Settings that differ, by key: as they were, as they are."""
    trees = (OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True) for config in (before, after))
    old, new = map(_flat, trees)
    return {key: (old[key], new[key]) for key in new if old[key] != new[key]}


def changes_of_mathematics(before: Config, after: Config) -> dict[str, tuple[object, object]]:
    """Those of them by which the student would become another one."""
    free = [*FREE, "steps"] if after.learner.schedule is Schedule.constant else FREE
    return {
        key: pair for key, pair in changes(before, after).items() if not any(fnmatch(key, pattern) for pattern in free)
    }


def _flat(node: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(node, dict):
        return {prefix: node}
    return {
        key: value
        for name, inner in node.items()
        for key, value in _flat(inner, f"{prefix}.{name}" if prefix else name).items()
    }
