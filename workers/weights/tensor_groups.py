"""Named tensors of a model, and groups of limited size that they are split into: buckets of a publish, files of a
checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

from torch import Tensor, nn
from torch.nn import Parameter

FILE_BYTES = 1 << 30  # approximate size of one safetensors file of a checkpoint
NamedParameters = Sequence[tuple[str, Parameter]]
NamedTensors = Sequence[tuple[str, Tensor]]
T = TypeVar("T", bound=Tensor)


def persistent_buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Tensors that belong to a model's weights and are no parameters: constants that a checkpoint has, such as the bias
    by which DeepSeek-V3 chooses experts. Training does not change them."""
    return [
        (f"{prefix}.{name}" if prefix else name, buffer)
        for prefix, module in model.named_modules()
        for name, buffer in module.named_buffers(recurse=False)
        if name not in module._non_persistent_buffers_set
    ]


def full_size(tensor: Tensor) -> int:
    """Number of elements of the full tensor. Under ZeRO-3 a parameter itself has shape [0]."""
    return getattr(tensor, "ds_numel", tensor.numel())


def full_shape(tensor: Tensor) -> tuple[int, ...]:
    """Shape of the full tensor, also under ZeRO-3."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def group_by_bytes(
    named: Sequence[tuple[str, T]], max_bytes: int, bytes_per_element: int | None = None
) -> Iterator[list[tuple[str, T]]]:
    """Split tensors into groups of consecutive ones; every rank gets the same split.

    Args:
        max_bytes: upper bound of a group; a larger tensor gets a group of its own.
        bytes_per_element: stored bytes of each element; None for those of the tensor's own type.
    """
    group: list[tuple[str, T]] = []
    group_bytes = 0
    for name, tensor in named:
        size = full_size(tensor) * (bytes_per_element or tensor.element_size())
        if group and group_bytes + size > max_bytes:
            yield group
            group, group_bytes = [], 0
        group.append((name, tensor))
        group_bytes += size
    if group:
        yield group
