"""Activation checkpointing: a layer keeps its input alone, and is computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from demopsd_dist.util.errors import ConfigError
from workers.forward import layers_of


def checkpoint_activations(model: nn.Module) -> None:
    """Every layer of a transformers model, whose `eval()` must have been called before.

    transformers checkpoints only layers in training mode. So the layer itself is put into it, not what it is made of,
    and is in evaluation mode whenever it computes: no dropout comes to life.

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
    def evaluated(*inputs: Any) -> Any:
        layer.training = False
        try:
            return compute(*inputs)
        finally:
            layer.training = True

    return checkpoint(evaluated, *inputs, use_reentrant=False)
