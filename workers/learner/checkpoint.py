"""Checkpoint of the learners: full tensors by name, for any number of ranks and any ZeRO stage.

For each parameter its float32 value and AdamW's two moments, in safetensors files of about a gigabyte; each file is
written by one of the ranks. Persistent buffers, which training does not change, are in a file of their own. Saving and
loading are collectives: every rank goes through all parameters, in order.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import Parameter

from demopsd_dist.run_record.folder import writing
from demopsd_dist.util.errors import CheckpointError
from workers.weights.tensor_files import refuse_non_finite, write_tensors
from workers.weights.tensor_groups import FILE_BYTES, NamedParameters, NamedTensors, full_shape, group_by_bytes

MOMENTS = ("exp_avg", "exp_avg_sq")
INDEX = "index.json"
CONSTANTS = "constants.safetensors"


def _file_groups(named: NamedParameters) -> Iterator[NamedParameters]:
    """Group consecutive parameters so that the tensors of each group fill one file of about FILE_BYTES."""
    return group_by_bytes(named, FILE_BYTES, bytes_per_element=4 * (1 + len(MOMENTS)))


def save(engine: Any, named: NamedParameters, folder: Path, version: int, constants: NamedTensors = ()) -> None:
    """Write a checkpoint. A collective.

    Args:
        named: the parameters that are trained.
        folder: an existing folder on a file system that all ranks share.
        version: training steps done.
        constants: the model's persistent buffers, equal on all ranks.

    Raises:
        RunFolderError: a file cannot be written.
    """
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    steps = optimizer_steps(engine)
    for number, group in enumerate(_file_groups(named)):
        is_writer = number % ranks == rank
        tensors: dict[str, Tensor] = {}
        for name, parameter in group:
            for key, tensor in full_state(engine, parameter, with_moments=steps > 0):
                if is_writer:
                    tensors[f"{name}/{key}"] = tensor.detach().cpu().clone()
        if is_writer:
            write_tensors(tensors, folder / f"weights-{number:05d}.safetensors")
    if rank == 0:
        if constants:
            write_tensors({name: tensor.cpu().clone() for name, tensor in constants}, folder / CONSTANTS)
        shapes = {name: list(full_shape(tensor)) for name, tensor in [*named, *constants]}
        index = {"version": version, "optimizer_steps": steps, "shapes": shapes}
        with writing(folder / INDEX):
            (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
            _sync(folder / INDEX)


def load(engine: Any, named: NamedParameters, folder: Path, constants: NamedTensors = ()) -> int:
    """Load a checkpoint into an engine that has made no step yet. A collective.

    Returns:
        The checkpoint's version: the number of training steps done when it was saved.

    Raises:
        CheckpointError: the checkpoint is of another model than `model.path`, or has values that are not finite.
    """
    index = json.loads((folder / INDEX).read_text())
    shapes = {name: list(full_shape(tensor)) for name, tensor in [*named, *constants]}
    if shapes != index["shapes"]:
        names = shapes.keys() | index["shapes"].keys()
        other = sorted(name for name in names if shapes.get(name) != index["shapes"].get(name))
        raise CheckpointError(
            f"{folder} is of another model than model.path: {len(other)} tensors are missing on one side or have "
            f"another shape, first {other[0]}. Set model.path to the model of that run."
        )
    steps = index["optimizer_steps"]
    if steps:
        _init_optimizer_state(engine, steps)
    for number, group in enumerate(_file_groups(named)):
        with safe_open(folder / f"weights-{number:05d}.safetensors", framework="pt") as file:
            for name, parameter in group:
                keys = ("value", *MOMENTS) if steps else ("value",)
                state = {key: file.get_tensor(f"{name}/{key}") for key in keys}
                for key, tensor in state.items():
                    refuse_non_finite(tensor, f"{name}/{key}", folder)
                _load_state(engine, parameter, state)
    if constants:
        with safe_open(folder / CONSTANTS, framework="pt") as file:
            for name, tensor in constants:
                tensor.copy_(file.get_tensor(name))
    return int(index["version"])


def _optimized_tensors(engine: Any) -> list[Tensor]:
    """Tensors that the torch optimizer updates: this rank's flat float32 partitions under ZeRO, else the parameters."""
    optimizer = engine.optimizer
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
        if hasattr(optimizer, name):
            return list(getattr(optimizer, name))
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def torch_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The torch optimizer: the one that DeepSpeed's ZeRO optimizer wraps, or the engine's own without ZeRO."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def optimizer_steps(engine: Any) -> int:
    """Number of updates that AdamW has made.

    A training step without response tokens, or stopped because its loss or gradient was not finite, does not count.
    """
    states = torch_optimizer(engine).state
    return max((int(state["step"]) for state in states.values() if "step" in state), default=0)


def _init_optimizer_state(engine: Any, steps: int) -> None:
    """Create AdamW's state with this step count and zero moments, into which the saved moments are then copied."""
    for tensor in _optimized_tensors(engine):
        step = torch.tensor(float(steps))
        torch_optimizer(engine).state[tensor] = {"step": step} | {key: torch.zeros_like(tensor) for key in MOMENTS}
    # DeepSpeed's own: lets safe_set_full_optimizer_state find the new moments of each parameter
    link_states = getattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
    if link_states is not None:
        link_states()


def full_state(engine: Any, parameter: Parameter, with_moments: bool) -> Iterator[tuple[str, Tensor]]:
    """Gather a parameter's float32 value and its moments as full tensors. A collective."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    sharded = hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")
    yield "value", (safe_get_full_fp32_param(parameter) if sharded else parameter.data).view(full_shape(parameter))
    for key in MOMENTS if with_moments else ():
        tensor = (
            safe_get_full_optimizer_state(parameter, key) if sharded else torch_optimizer(engine).state[parameter][key]
        )
        yield key, tensor.view(full_shape(parameter))


def _load_state(engine: Any, parameter: Parameter, state: dict[str, Tensor]) -> None:
    """Copy a parameter's float32 value and moments into this rank's optimizer, and the value into the model's own
    parameter."""
    value = state["value"].to(parameter.device)
    if hasattr(parameter, "ds_id"):
        _load_shard(parameter, state)
    elif hasattr(parameter, "_hp_mapping"):
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        parameter.data.copy_(value)
        safe_set_full_fp32_param(parameter, value)
        for key in state.keys() - {"value"}:
            safe_set_full_optimizer_state(parameter, state[key].to(parameter.device), key)
    else:
        parameter.data.copy_(value)
        for key in state.keys() - {"value"}:
            torch_optimizer(engine).state[parameter][key].copy_(state[key])


def _load_shard(parameter: Any, state: dict[str, Tensor]) -> None:
    """Set this rank's piece under ZeRO-3: ranks hold equal pieces of the flat tensor, the last padded with zeros."""
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    piece = parameter.ds_tensor.numel()
    for key, tensor in state.items():
        flat = torch.zeros(piece * ranks)
        flat[: tensor.numel()] = tensor.reshape(-1)
        shard = flat[piece * rank : piece * (rank + 1)].to(parameter.ds_tensor.device)
        if key == "value":
            safe_set_local_fp32_param(parameter, shard)
            parameter.ds_tensor.data.copy_(shard)
        else:
            safe_set_local_optimizer_state(parameter, shard, key)


def _sync(path: Path) -> None:
    """Flush a file to disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
