"""Activation checkpointing: only a layer's input is stored, and the layer is computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from demopsd_dist.util.errors import ConfigError
from workers.forward import layers_of


def checkpoint_activations(model: nn.Module) -> None:
    """Checkpoint every layer of a transformers model, whose `eval()` must have been called before.

    transformers checkpoints only layers in training mode. So the layer itself is put into training mode, its submodules
    are not, and it is in evaluation mode whenever it computes: dropout stays off.

    Raises:
        ConfigError: transformers cannot checkpoint the layers of this model.
    """
    layers: list[Any] = layers_of(model)
    if not layers:
        raise ConfigError(
            "learner.activation_checkpointing=true: transformers cannot checkpoint the layers of "
            f"{type(model).__name__}. Set it to false."
        )
    for layer in layers:
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = partial(_checkpointed, layer)
        layer.training = True


def _checkpointed(layer: nn.Module, compute: Callable[..., Any], *inputs: Any) -> Any:
    """Compute a layer in evaluation mode, with its activations checkpointed."""

    def evaluated(*inputs: Any) -> Any:
        layer.training = False
        try:
            return compute(*inputs)
        finally:
            layer.training = True

    return checkpoint(evaluated, *inputs, use_reentrant=False)
