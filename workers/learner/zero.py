"""DeepSpeed ZeRO: process group, optimizer and configuration derived from our settings, and full tensors gathered from
shards."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib import import_module
from typing import Any

import ray
import torch

from demopsd_dist.config import Config, LearnerConfig, Offload, Optimizer, Precision
from workers.cluster.ranks import MeetingPoint, meet_on
from workers.learner.extensions import ensure_extensions, extensions_folder, own_extensions
from workers.learner.lora import Adapters, merge_adapters
from workers.weights.tensor_groups import NamedTensors

CPU_BUCKET_ELEMENTS = 1 << 22
"""Elements of the buffer in which ZeRO reduces gradients on CPU; a larger tensor is reduced by itself."""


def join_process_group(settings: LearnerConfig, rank: int, meeting_point: MeetingPoint) -> None:
    """Set up DeepSpeed's process group with the other learner ranks."""
    os.environ |= {
        "MASTER_ADDR": meeting_point[0],
        "MASTER_PORT": str(meeting_point[1]),
        "RANK": str(rank),
        "LOCAL_RANK": "0",  # Ray shows each actor only its own GPU
        "WORLD_SIZE": str(settings.num_workers),
    }
    meet_on(ray.util.get_node_ip_address())
    import deepspeed

    if not settings.gpus_per_worker:
        ensure_extensions(extensions_folder(), print)
    with own_extensions(extensions_folder()):
        deepspeed.init_distributed("nccl" if settings.gpus_per_worker else "gloo", verbose=False)


def create_optimizer(
    trained: Sequence[torch.nn.Parameter], settings: LearnerConfig, device: torch.device
) -> torch.optim.Optimizer:
    """The optimizer of `learner.optimizer` over the trained parameters."""
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer is Optimizer.adamw_8bit:
        optimizer: torch.optim.Optimizer = import_module("bitsandbytes").optim.AdamW8bit(
            trained, lr=rate, weight_decay=decay
        )
        return optimizer
    fused = True if device.type == "cpu" else None  # on CPU torch's choice would be a loop of many passes
    return torch.optim.AdamW(trained, lr=rate, weight_decay=decay, fused=fused)


def deepspeed_config(config: Config) -> dict[str, Any]:
    """DeepSpeed's JSON, derived from our settings. Nothing in it is set by the user directly.

    `managed_gradient_accumulation: false` leaves the number of micro-batches of a step to us: each `backward` adds to
    the gradients, `step` reduces and applies them. DeepSpeed averages over the ranks; the learner takes that into
    account by scaling its loss with the number of ranks.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        # At stage 0 DeepSpeed clips but does not return the norm, so there the learner clips.
        "gradient_clipping": config.learner.max_grad_norm if config.learner.zero_stage else 0.0,
        "zero_optimization": {
            "stage": config.learner.zero_stage,
            "overlap_comm": False,
            **_buckets(config.learner),
            **_offloaded(config.learner),
        },
        "zero_allow_untested_optimizer": True,
        # Of an offloaded optimizer: torch's AdamW runs on CPU as well, with the arithmetic of runs on GPUs.
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": config.model.precision is Precision.bfloat16},
        "data_types": {"grad_accum_dtype": "fp32"},  # a bfloat16 sum over micro-batches would lose small gradients
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def _buckets(learner: LearnerConfig) -> dict[str, Any]:
    """Part of ZeRO's settings that bounds its buffer of gradients. DeepSpeed's own has space for 500 million elements,
    whose pages a CPU takes from the system again in every step."""
    return {} if learner.gpus_per_worker else {"reduce_bucket_size": CPU_BUCKET_ELEMENTS}


def _offloaded(learner: LearnerConfig) -> dict[str, Any]:
    """Part of ZeRO's settings that moves the optimizer's state to main memory."""
    if learner.offload is Offload.none:
        return {}
    return {"offload_optimizer": {"device": "cpu", "pin_memory": bool(learner.gpus_per_worker)}}


@contextmanager
def full_tensors(
    group: NamedTensors, zero_stage: int, adapters: Adapters
) -> Iterator[Iterator[tuple[str, torch.Tensor]]]:
    """Gather the full tensors of a group, adapters merged. A collective under ZeRO-3: every rank must go
    through all groups, in order.

    The tensors are valid in this context only: copy them there.
    """
    parameters = [tensor for _, tensor in group if isinstance(tensor, torch.nn.Parameter)]  # buffers are full already
    adapter_parameters = [part for name, _ in group if name in adapters for part in adapters[name].parts]
    with _gathered([*parameters, *adapter_parameters], zero_stage):
        yield merge_adapters([(name, tensor.data) for name, tensor in group], adapters)


def _gathered(parameters: list[torch.nn.Parameter], zero_stage: int) -> AbstractContextManager[Any]:
    """Context in which the parameters are full on every rank."""
    if zero_stage < 3 or not parameters:
        return nullcontext()
    from deepspeed.runtime.zero import GatheredParameters

    return GatheredParameters(parameters, modifier_rank=None)
