"""DeepSpeed: our settings to its configuration, and whole tensors out of its shards."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from demopsd_dist.config import Config, Precision
from workers.learner.lora import Adapters, Named, merged


def extensions_folder() -> Path:
    """Where DeepSpeed's compiled extensions live: in the virtual environment that they were built for."""
    return Path(sys.prefix) / "torch_extensions"


def build_extensions() -> bool:
    """Compile DeepSpeed's CPU collectives, a small C++ extension that every first run would otherwise wait for.

    Returns False where they cannot be built; DeepSpeed then goes without.
    """
    os.environ |= {"TORCH_EXTENSIONS_DIR": str(extensions_folder()), "DS_ACCELERATOR": "cpu"}
    shutil.rmtree(extensions_folder(), ignore_errors=True)  # an interrupted build leaves a lock
    from deepspeed.comm.torch import build_shm_op

    return build_shm_op() is not None


@contextmanager
def own_extensions(built: Path) -> Iterator[None]:
    """Inside, this process loads extensions from a copy of its own.

    Loading takes a lock file in the folder, also where nothing is to compile; a process that is killed meanwhile leaves
    it there, and every later one would wait for it until its start is given up.
    """
    with TemporaryDirectory(prefix="demopsd-extensions-") as folder:
        if built.is_dir():
            shutil.copytree(built, folder, ignore=shutil.ignore_patterns("lock"), dirs_exist_ok=True)
        os.environ["TORCH_EXTENSIONS_DIR"] = folder
        try:
            yield
        finally:
            os.environ["TORCH_EXTENSIONS_DIR"] = str(built)


def deepspeed_config(config: Config) -> dict[str, Any]:
    """DeepSpeed's JSON, derived. Nothing in it is set by the user directly.

    `managed_gradient_accumulation: false` leaves the number of micro-batches of a step to us: each `backward` adds to
    the gradients, `step` reduces and applies them. DeepSpeed averages over the ranks; the learner takes that into
    account by scaling its loss with the number of ranks.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        # At stage 0 DeepSpeed clips but does not tell the norm, so there the learner clips.
        "gradient_clipping": config.learner.max_grad_norm if config.learner.zero_stage else 0.0,
        "zero_optimization": {"stage": config.learner.zero_stage, "overlap_comm": False},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": config.model.precision is Precision.bfloat16},
        "data_types": {"grad_accum_dtype": "fp32"},  # in bfloat16 the sum over micro-batches would lose the small ones
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def full_size(parameter: torch.nn.Parameter) -> int:
    """Elements of the whole tensor. Under ZeRO-3 the parameter itself has shape [0]."""
    return getattr(parameter, "ds_numel", parameter.numel())


def full_shape(parameter: torch.nn.Parameter) -> tuple[int, ...]:
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def buckets_of(named: Named, bucket_bytes: int) -> Iterator[Named]:
    """Consecutive parameters, at most `bucket_bytes` together; a larger one alone. The same cut on every rank."""
    bucket: list[tuple[str, torch.nn.Parameter]] = []
    filled = 0
    for name, parameter in named:
        size = full_size(parameter) * parameter.element_size()
        if bucket and filled + size > bucket_bytes:
            yield bucket
            bucket, filled = [], 0
        bucket.append((name, parameter))
        filled += size
    if bucket:
        yield bucket


@contextmanager
def whole(bucket: Named, zero_stage: int, adapters: Adapters) -> Iterator[Iterator[tuple[str, torch.Tensor]]]:
    """The whole tensors of a bucket, with what adapters add to them. A collective under ZeRO-3: every rank must go
    through all buckets, in order.

    The tensors are valid inside alone: copy them there.
    """
    beside = [part for name, _ in bucket if name in adapters for part in adapters[name].parts]
    with _gathered([*(parameter for _, parameter in bucket), *beside], zero_stage):
        yield merged([(name, parameter.data) for name, parameter in bucket], adapters)


def _gathered(parameters: list[torch.nn.Parameter], zero_stage: int) -> AbstractContextManager[Any]:
    if zero_stage < 3:
        return nullcontext()
    from deepspeed.runtime.zero import GatheredParameters

    return GatheredParameters(parameters, modifier_rank=None)
