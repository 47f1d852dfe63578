"""The learners' state on disk, whole tensors by name: it fits any number of ranks and any ZeRO stage.

For each parameter its float32 value and AdamW's two moments, in safetensors files of about a gigabyte that the ranks
share out between them. Saving and loading are collectives: every rank goes through all parameters, in order.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Parameter

from demopsd_dist.util.errors import CheckpointError
from workers.learner.lora import Named
from workers.learner.zero import full_shape, full_size

MOMENTS = ("exp_avg", "exp_avg_sq")
FILE_BYTES = 1 << 30
INDEX = "index.json"


def files_of(named: Named) -> Sequence[Named]:
    """The parameters of each file: consecutive ones, about FILE_BYTES together."""
    files: list[list[tuple[str, Parameter]]] = [[]]
    filled = 0
    for name, parameter in named:
        size = 4 * (1 + len(MOMENTS)) * full_size(parameter)
        if files[-1] and filled + size > FILE_BYTES:
            files.append([])
            filled = 0
        files[-1].append((name, parameter))
        filled += size
    return files


def save(engine: Any, named: Named, folder: Path, version: int) -> None:
    """
    Args:
        named: the parameters that are trained.
        folder: is there, and the same for all ranks.
        version: training steps done.
    """
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    steps = optimizer_steps(engine)
    for number, part in enumerate(files_of(named)):
        mine = number % ranks == rank
        kept: dict[str, Tensor] = {}
        for name, parameter in part:
            for key, tensor in whole_state(engine, parameter, with_moments=steps > 0):
                if mine:
                    kept[f"{name}/{key}"] = tensor.detach().cpu().clone()
        if mine:
            path = folder / f"weights-{number:05d}.safetensors"
            save_file(kept, path)
            _sync(path)
    if rank == 0:
        shapes = {name: list(full_shape(parameter)) for name, parameter in named}
        index = {"version": version, "optimizer_steps": steps, "shapes": shapes}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n")
        _sync(folder / INDEX)


def load(engine: Any, named: Named, folder: Path) -> int:
    """Into an engine that has made no step yet; the training steps that were done.

    Raises:
        CheckpointError: it is of another model.
    """
    index = json.loads((folder / INDEX).read_text())
    shapes = {name: list(full_shape(parameter)) for name, parameter in named}
    if shapes != index["shapes"]:
        names = shapes.keys() | index["shapes"].keys()
        other = sorted(name for name in names if shapes.get(name) != index["shapes"].get(name))
        raise CheckpointError(
            f"{folder} is of another model than model.path: {len(other)} tensors differ, first {other[0]}."
        )
    steps = index["optimizer_steps"]
    if steps:
        begin_optimizer(engine, steps)
    for number, part in enumerate(files_of(named)):
        with safe_open(folder / f"weights-{number:05d}.safetensors", framework="pt") as file:
            for name, parameter in part:
                keys = ("value", *MOMENTS) if steps else ("value",)
                put_state(engine, parameter, {key: file.get_tensor(f"{name}/{key}") for key in keys})
    return int(index["version"])


def flats(engine: Any) -> list[Tensor]:
    """What the optimizer really steps: this rank's flat pieces under ZeRO, else the parameters themselves."""
    optimizer = engine.optimizer
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
        if hasattr(optimizer, name):
            return list(getattr(optimizer, name))
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def inner(engine: Any) -> torch.optim.Optimizer:
    """Torch's own optimizer, inside of ZeRO's or not."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def optimizer_steps(engine: Any) -> int:
    """Steps that AdamW has made: those of which a gradient was all zero or refused do not count."""
    states = inner(engine).state
    return max((int(state["step"]) for state in states.values() if "step" in state), default=0)


def begin_optimizer(engine: Any, steps: int) -> None:
    """AdamW's state as after so many steps, its moments still to be filled in."""
    for flat in flats(engine):
        step = torch.tensor(float(steps))
        inner(engine).state[flat] = {"step": step} | {key: torch.zeros_like(flat) for key in MOMENTS}
    link = getattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
    if link is not None:
        link()


def whole_state(engine: Any, parameter: Parameter, with_moments: bool) -> Iterator[tuple[str, Tensor]]:
    """A parameter's float32 value and its moments. A collective."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    sharded = hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping")
    yield "value", (safe_get_full_fp32_param(parameter) if sharded else parameter.data).view(full_shape(parameter))
    for key in MOMENTS if with_moments else ():
        tensor = safe_get_full_optimizer_state(parameter, key) if sharded else inner(engine).state[parameter][key]
        yield key, tensor.view(full_shape(parameter))


def put_state(engine: Any, parameter: Parameter, state: dict[str, Tensor]) -> None:
    """Each rank takes its piece; the working copy in the model is set too."""
    value = state["value"].to(parameter.device)
    if hasattr(parameter, "ds_id"):
        _put_in_shard(parameter, state)
    elif hasattr(parameter, "_hp_mapping"):
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        parameter.data.copy_(value)
        safe_set_full_fp32_param(parameter, value)
        for key in state.keys() - {"value"}:
            safe_set_full_optimizer_state(parameter, state[key].to(parameter.device), key)
    else:
        parameter.data.copy_(value)
        for key in state.keys() - {"value"}:
            inner(engine).state[parameter][key].copy_(state[key])


def _put_in_shard(parameter: Any, state: dict[str, Tensor]) -> None:
    """ZeRO-3: a rank holds an equal piece of the flat tensor, the last filled up with zeros."""
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    piece = parameter.ds_tensor.numel()
    for key, tensor in state.items():
        flat = torch.zeros(piece * ranks)
        flat[: tensor.numel()] = tensor.reshape(-1)
        mine = flat[piece * rank : piece * (rank + 1)].to(parameter.ds_tensor.device)
        if key == "value":
            safe_set_local_fp32_param(parameter, mine)
            parameter.ds_tensor.data.copy_(mine)
        else:
            safe_set_local_optimizer_state(parameter, mine, key)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
