"""Tensors of a checkpoint as views of the model's own.

transformers holds all experts of a layer in one tensor and renames some tensors, while a checkpoint has a tensor for
each expert, under the names that engines know. A publish carries the tensors as the model holds them, so that the
teacher takes them as they are; an engine reads the checkpoint's tensors out of the same bytes. Nothing is copied or
sent twice.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from demopsd_dist.util.errors import ConfigError
from workers.weights.tensor_groups import NamedTensors, full_shape


@dataclass(frozen=True)
class TensorView:
    """A tensor of the checkpoint, as part of one of the model's. Stride and start count elements."""

    name: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    start: int

    def of(self, tensor: Tensor) -> Tensor:
        """Cut the view out of a contiguous tensor."""
        return tensor.as_strided(self.shape, self.stride, tensor.storage_offset() + self.start)


CheckpointViews = Mapping[str, tuple[TensorView, ...]]
"""Views by the name of the model's tensor. Tensors that the checkpoint holds unchanged are left out."""


def checkpoint_views(model: Any, named: NamedTensors) -> CheckpointViews:
    """Views that make up the checkpoint's tensors, by the conversion that transformers uses when it saves the model:
    back to the names and tensors of the files that it was loaded from. Computed from shapes alone.

    Args:
        model: a transformers model.
        named: its tensors.

    Raises:
        ConfigError: a tensor of the checkpoint is not part of one of the model's.
    """
    if not getattr(model, "_weight_conversions", None):
        return {}
    from transformers.core_model_loading import revert_weight_conversion

    shapes = {name: torch.empty(full_shape(tensor), dtype=tensor.dtype, device="meta") for name, tensor in named}
    sources = {id(tensor): name for name, tensor in shapes.items()}
    views: dict[str, list[TensorView]] = defaultdict(list)
    with _WithoutCopies():
        converted = revert_weight_conversion(model, dict(shapes))
    for name, tensor in converted.items():
        source = sources.get(id(tensor if tensor._base is None else tensor._base))
        if source is None:
            raise _not_a_view(model, name)
        views[source].append(TensorView(name, tuple(tensor.shape), tensor.stride(), tensor.storage_offset()))
    for source, tensor in shapes.items():
        if sum(torch.Size(view.shape).numel() for view in views[source]) != tensor.numel():
            raise _not_a_view(model, source)
    return {source: tuple(parts) for source, parts in views.items() if [part.name for part in parts] != [source]}


class _WithoutCopies(TorchFunctionMode):
    """Context in which `contiguous` returns the tensor itself, so that the result of a conversion shows where in its
    source it lies."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call a function of torch."""
        return args[0] if func is Tensor.contiguous else func(*args, **(kwargs or {}))


def _not_a_view(model: Any, name: str) -> ConfigError:
    return ConfigError(
        f"model.path: {type(model).__name__} holds {name} in memory in another way than its files, and one cannot be "
        "read out of the other without computing. Such a model cannot be published; train another one."
    )


def as_checkpoint(tensors: Iterable[tuple[str, Tensor]], views: CheckpointViews) -> Iterator[tuple[str, Tensor]]:
    """Yield the checkpoint's tensors in place of the model's."""
    for name, tensor in tensors:
        if name in views:
            yield from ((view.name, view.of(tensor)) for view in views[name])
        else:
            yield name, tensor
