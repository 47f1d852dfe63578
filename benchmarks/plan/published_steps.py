"""Published step times of other on-policy systems on GPUs, beside the planner's predictions for the same work: a
comparison of orders of magnitude. The planner has no calibration for GPUs, and the systems differ from this one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from demopsd_dist.config import load
from demopsd_dist.planning.forward_time import learn_loads, slowest_load, support_loads
from demopsd_dist.planning.hardware import DeviceCluster, parse_cluster
from demopsd_dist.planning.model_shape import KNOWN
from demopsd_dist.planning.roofline import ASSUMED, STAGES, Power
from demopsd_dist.planning.sampling_time import sampling_time
from demopsd_dist.planning.workload import Traffic, Workload, workload_of

NODE = Path(__file__).parents[2] / "configs" / "node_8gpu.yaml"
NEMO = "NVIDIA NeMo-RL, performance summary (GRPO, OpenMathInstruct-2, DGX H100, BF16)"
PROMPT_TOKENS = 130.0  # assumed, of a question of that data set


@dataclass(frozen=True)
class PublishedStep:
    """Published settings and time of one step."""

    source: str
    model: str
    gpus: str
    samples: int  # of a step
    group_size: int
    sequence_tokens: float  # mean, prompt and response
    tensor_parallel: int  # GPUs of an engine
    optimizer_steps: int
    step_s: float
    tokens_per_s_per_gpu: float


ROWS = (
    PublishedStep(NEMO + ", v0.4", "llama-3.1-8b", "16xh100", 2048, 32, 1192, 1, 4, 97.7, 1562),
    PublishedStep(NEMO + ", v0.4", "qwen3-30b-a3b", "32xh100", 2048, 32, 3252, 4, 4, 225.0, 925),
    PublishedStep(NEMO + ", latest", "qwen3-30b-a3b", "32xh100", 2048, 32, 3306, 4, 4, 192.0, 1102),
    PublishedStep(NEMO + ", v0.4", "qwen3-32b", "32xh100", 2048, 32, 3316, 4, 4, 393.0, 540),
)
"""Sequence tokens follow from the two published rates: tokens/s/GPU x GPUs x seconds / samples."""


def published() -> Iterator[dict[str, Any]]:
    """Rows of published and predicted step times."""
    for row in ROWS:
        cluster = parse_cluster(row.gpus)
        seconds = planned_seconds(row, cluster)
        step_s = sum(seconds.values())
        yield {
            "source": row.source,
            "model": row.model,
            "gpus": row.gpus,
            "published_step_s": row.step_s,
            "published_tokens_per_s_per_gpu": row.tokens_per_s_per_gpu,
            "planned_step_s": step_s,
            "planned_tokens_per_s_per_gpu": row.samples * row.sequence_tokens / step_s / cluster.size,
            "planned_seconds": seconds,
            "ratio": step_s / row.step_s,
        }


def planned_seconds(row: PublishedStep, cluster: DeviceCluster) -> dict[str, float]:
    """Predicted seconds by stage where all GPUs take part in one stage after the other, as these systems do on-policy:
    engines of several GPUs, two forwards for log-probabilities (policy and reference), and training."""
    workload = _workload(row)
    engines = cluster.size // row.tensor_parallel
    sample = ASSUMED["sample"]
    power = Power(cluster.device)
    seconds = dict.fromkeys(STAGES, 0.0)
    seconds["sample"] = sample.seconds(
        sampling_time(workload, Power(cluster.device, row.tensor_parallel), engines, sample).load
    )
    forward, learn = ASSUMED["support"], ASSUMED["learn"]
    seconds["support"] = 2 * forward.seconds(
        slowest_load(support_loads(workload, power, cluster.size, cluster), forward)
    )
    seconds["learn"] = learn.seconds(slowest_load(learn_loads(workload, power, cluster.size, cluster), learn))
    return {stage: value for stage, value in seconds.items() if value}


def _workload(row: PublishedStep) -> Workload:
    traffic = Traffic(
        prompt_tokens=PROMPT_TOKENS,
        response_tokens=row.sequence_tokens - PROMPT_TOKENS,
        response_spread=0.5,
        right_fraction=0.5,
    )
    words = ["method=grpo", f"rollout.group_size={row.group_size}", "rollout.max_response_tokens=4096"]
    words += [f"rollout.prompts_per_step={row.samples // row.group_size}", "model.tree_tokens=0"]
    workload = workload_of(load(NODE, words), KNOWN[row.model], traffic)
    return replace(
        workload, support_forward=True, checkpointing=False, engine_sequences=512, tensor_parallel=row.tensor_parallel
    )
