"""AdamW's two moments as checkpoints hold them, whichever optimizer keeps them.

torch's AdamW holds each moment as a float32 tensor. That of bitsandbytes (`learner.optimizer=adamw_8bit`) holds it in 8
bits: for each number a code, which points into a table of 256 values, and for each block of 256 numbers a scale. A
checkpoint has the float32 value of each number, and of an 8-bit moment also its scale. So either optimizer can go on
from a checkpoint of the other, and an 8-bit one has the same codes again wherever its blocks lie as before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from demopsd_dist.util.errors import ConfigError
from workers.weights.tensor_groups import full_shape

MOMENTS = ("exp_avg", "exp_avg_sq")
SCALES = tuple(f"{key}_scale" for key in MOMENTS)  # of an 8-bit moment, a float32 number for each of its own
BLOCK = 256  # numbers that share a scale in bitsandbytes' optimizers
INT32_MAX = (1 << 31) - 1
CHUNK = BLOCK << 16  # numbers that are turned into codes at a time


@dataclass(frozen=True)
class BlockMoment:
    """One 8-bit moment, or its scales, of which pieces are read as float32: there is no whole copy.

    Attributes:
        state: bitsandbytes' state of a flat tensor.
        number: 1 or 2, the moment.
        scales: read the scale of each number instead of its value.
    """

    state: dict[str, Any]
    number: int
    scales: bool

    def narrow(self, _: int, start: int, length: int) -> Tensor:
        """Piece of `length` numbers from `start`, float32; named as torch's, since DeepSpeed calls it on a tensor."""
        codes = self.state[f"state{self.number}"].reshape(-1)[start : start + length]
        if codes.dtype == torch.float32:  # a small tensor, which bitsandbytes does not quantize
            return torch.zeros_like(codes) if self.scales else codes
        piece = torch.empty(length, device=codes.device)
        for first in range(0, length, CHUNK):  # indices take 8 bytes each
            part = codes[first : first + CHUNK]
            blocks = torch.arange(start + first, start + first + len(part), device=codes.device) // BLOCK
            scales = self.state[f"absmax{self.number}"][blocks]
            values = scales if self.scales else self.state[f"qmap{self.number}"][part.int()] * scales
            piece[first : first + CHUNK] = values
        return piece


def torch_optimizer(engine: Any) -> torch.optim.Optimizer:
    """The torch optimizer: the one that DeepSpeed's ZeRO optimizer wraps, or the engine's own without ZeRO."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def optimizer_steps(engine: Any) -> int:
    """Number of updates that the optimizer has made.

    A training step without response tokens, or stopped because its loss or gradient was not finite, does not count.
    """
    states = torch_optimizer(engine).state
    return max((int(state["step"]) for state in states.values() if "step" in state), default=0)


def is_8bit(engine: Any) -> bool:
    """Whether the optimizer keeps its moments in 8 bits."""
    return hasattr(torch_optimizer(engine), "init_state")  # bitsandbytes' own, which torch's does not have


def refuse_large_tensors(engine: Any) -> None:
    """Check that bitsandbytes can count the numbers of each tensor.

    Raises:
        ConfigError: a tensor is too large, and a part of it would silently not be trained.
    """
    largest = max((tensor.numel() for tensor in _optimized_tensors(engine)), default=0)
    if is_8bit(engine) and largest > INT32_MAX:
        raise ConfigError(
            "learner.optimizer=adamw_8bit: bitsandbytes counts the numbers of a tensor in 32 bits, and a rank has one "
            f"of {largest:,}. Set learner.zero_stage=3, raise learner.num_workers, or set learner.optimizer=adamw."
        )


def moment_keys(engine: Any) -> tuple[str, ...]:
    """Names of what a checkpoint has of the moments of each parameter; none before the first update."""
    if not optimizer_steps(engine):
        return ()
    return (*MOMENTS, *SCALES) if is_8bit(engine) else MOMENTS


@contextmanager
def readable_moments(engine: Any) -> Iterator[None]:
    """Context in which DeepSpeed finds 8-bit moments under the names of float32 ones; nothing to do for torch's."""
    if not is_8bit(engine):
        yield
        return
    states = [state for tensor in _optimized_tensors(engine) if (state := torch_optimizer(engine).state[tensor])]
    for state in states:
        for number, (moment, scale) in enumerate(zip(MOMENTS, SCALES, strict=True), start=1):
            state |= {moment: BlockMoment(state, number, False), scale: BlockMoment(state, number, True)}
    try:
        yield
    finally:
        for state in states:
            for key in (*MOMENTS, *SCALES):
                del state[key]


def full_moment(engine: Any, parameter: Parameter, key: str) -> Tensor:
    """Gather a moment, or the scales of an 8-bit one, as a full tensor. A collective, in `readable_moments`."""
    from deepspeed.utils import safe_get_full_optimizer_state

    states = torch_optimizer(engine).state
    if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
        mapping = getattr(parameter, "_hp_mapping", None) if is_8bit(engine) else None
        if mapping is not None:  # a piece of this rank's share, at ZeRO stages 1 and 2
            piece, flat = mapping.hp_fragment_address, _optimized_tensors(engine)[mapping.param_group_index]
            mapping.optim_fragment[key] = states[flat][key].narrow(0, piece.start, piece.numel)
        try:
            return safe_get_full_optimizer_state(parameter, key).view(full_shape(parameter))
        finally:
            if mapping is not None:
                del mapping.optim_fragment[key]
    moment = states[parameter][key]
    flat = moment.narrow(0, 0, parameter.numel()) if isinstance(moment, BlockMoment) else moment
    return flat.view(parameter.shape)


@contextmanager
def loaded_moments(engine: Any, steps: int, keys: Sequence[str]) -> Iterator[None]:
    """Context in which the optimizer's state has this number of updates and a float32 tensor of zeros for each of
    `keys`, into which DeepSpeed copies what was saved; afterwards an 8-bit optimizer has them as codes.

    Those of an 8-bit optimizer are in main memory meanwhile, 16 bytes a parameter of the rank's share.
    """
    optimizer, tensors = torch_optimizer(engine), _optimized_tensors(engine)
    quantized = is_8bit(engine)
    for tensor in tensors:
        # of an 8-bit optimizer they are in main memory: its device may have no space for them
        zeros = {key: torch.zeros_like(tensor, device="cpu" if quantized else None) for key in keys}
        optimizer.state[tensor] = {"step": torch.tensor(float(steps))} | zeros
    # DeepSpeed's own: lets safe_set_full_optimizer_state find the new moments of each parameter
    link_states = getattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
    if link_states is not None:
        link_states()
    yield
    if quantized:
        for parameter in engine.module.parameters():
            if (mapping := getattr(parameter, "_hp_mapping", None)) is not None:
                mapping.optim_fragment.clear()
        for tensor in tensors:
            _quantize(optimizer, tensor, steps)


def _quantize(optimizer: Any, tensor: Tensor, steps: int) -> None:
    """Replace a tensor's float32 moments in an 8-bit optimizer's state by codes and scales."""
    values, group = optimizer.state.pop(tensor), optimizer.param_groups[0]
    before, group["params"] = group["params"], [tensor]  # ZeRO-3 has it there during a step alone
    optimizer.init_state(group, tensor, 0, 0)
    group["params"] = before
    state = optimizer.state[tensor]
    state["step"] = steps
    for number, (moment, scale) in enumerate(zip(MOMENTS, SCALES, strict=True), start=1):
        into, flat = state[f"state{number}"].view(-1), values[moment].reshape(-1)
        if into.dtype == torch.float32:
            into.copy_(flat)
            continue
        scales = values[scale].reshape(-1) if scale in values else torch.zeros_like(flat)
        table = state[f"qmap{number}"].cpu()
        for start in range(0, len(flat), CHUNK):
            part = slice(start, start + CHUNK)
            codes, absmax = block_codes(flat[part], scales[part], table)
            into[part] = codes.to(into.device)
            state[f"absmax{number}"][start // BLOCK :][: len(absmax)] = absmax.to(into.device)


def block_codes(values_N: Tensor, scales_N: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales of blocks of `BLOCK` numbers.

    A block whose numbers had one scale keeps it, which gives each number the code that it had. Another block, whose
    numbers were saved from several blocks or in float32, has its largest magnitude as scale.

    Args:
        values_N, scales_N: float32.
        table: values of the 256 codes, rising.

    Returns:
        Codes [N] uint8, and scales [ceil(N / BLOCK)] float32.
    """
    missing = (0, -len(values_N) % BLOCK)
    values, saved = (torch.nn.functional.pad(flat, missing).view(-1, BLOCK) for flat in (values_N, scales_N))
    largest, highest = values.abs().amax(1), saved.amax(1)
    lowest = saved.where(saved > 0, torch.inf).amin(1)  # ZeRO's padding has no scale
    absmax = torch.where((lowest == highest) & (highest >= largest), highest, largest)
    middles = (table[1:] + table[:-1]) / 2
    shares = torch.nan_to_num(values / absmax[:, None])  # a block of zeros
    return torch.bucketize(shares, middles).view(-1)[: len(values_N)].to(torch.uint8), absmax


def _optimized_tensors(engine: Any) -> list[Tensor]:
    """Tensors that the torch optimizer updates: this rank's flat float32 partitions under ZeRO, else the parameters."""
    optimizer = engine.optimizer
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
        if hasattr(optimizer, name):
            return list(getattr(optimizer, name))
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
