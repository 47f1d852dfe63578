"""Activation checkpointing changes neither loss nor gradients, leaves dropout off, and refuses unknown models."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from transformers import Qwen3Config, Qwen3ForCausalLM

from demopsd_dist.util.errors import ConfigError
from workers.learner.activation_checkpointing import checkpoint_activations


def small_model() -> Qwen3ForCausalLM:
    """Model whose dropout would change the loss if it were on."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        attention_dropout=0.5,
    )
    return Qwen3ForCausalLM(config).eval()


def loss_and_gradients(model: nn.Module) -> list[Tensor]:
    torch.manual_seed(1)
    loss = model(torch.randint(0, 50, (2, 20)), use_cache=False).logits.log_softmax(-1)[..., 0].mean()
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


def test_loss_and_gradients_are_the_same() -> None:
    plain, recomputing = small_model(), small_model()
    checkpoint_activations(recomputing)
    runs: Counter[str] = Counter()
    for name, layer in (("plain", plain.model.layers[1]), ("recomputing", recomputing.model.layers[1])):
        layer.mlp.register_forward_pre_hook(lambda *_, name=name: runs.update([name]))
    recomputed, expected = loss_and_gradients(recomputing), loss_and_gradients(plain)
    assert len(recomputed) == len(expected) == 1 + len(list(plain.parameters()))
    for one, other in zip(recomputed, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    assert runs == {"plain": 1, "recomputing": 2}


def test_only_the_layers_count_as_training() -> None:
    model = small_model()
    checkpoint_activations(model)
    loss_and_gradients(model)
    assert [module for module in model.modules() if module.training] == list(model.model.layers)


def test_a_model_whose_layers_are_unknown_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"cannot checkpoint the layers of Linear\. Set it to false"):
        checkpoint_activations(nn.Linear(2, 2))
