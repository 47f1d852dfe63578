"""Named parameters and their cut into groups of limited size: buckets of a publish, files of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch.nn import Parameter

FILE_BYTES = 1 << 30  # of one safetensors file of a checkpoint, about
NamedParameters = Sequence[tuple[str, Parameter]]


def full_size(parameter: Parameter) -> int:
    """Number of elements of the full tensor. Under ZeRO-3 the parameter itself has shape [0]."""
    return getattr(parameter, "ds_numel", parameter.numel())


def full_shape(parameter: Parameter) -> tuple[int, ...]:
    """Shape of the full tensor, also under ZeRO-3."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def group_by_bytes(
    named: NamedParameters, max_bytes: int, bytes_per_element: int | None = None
) -> Iterator[NamedParameters]:
    """Split parameters into groups of consecutive ones; every rank gets the same split.

    Args:
        max_bytes: upper bound of a group; a larger parameter gets a group of its own.
        bytes_per_element: stored bytes of each element; None for those of the parameter's own type.
    """
    group: list[tuple[str, Parameter]] = []
    group_bytes = 0
    for name, parameter in named:
        size = full_size(parameter) * (bytes_per_element or parameter.element_size())
        if group and group_bytes + size > max_bytes:
            yield group
            group, group_bytes = [], 0
        group.append((name, parameter))
        group_bytes += size
    if group:
        yield group
