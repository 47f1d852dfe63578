"""LoRA: what is published is what is trained, and what peft reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from demopsd_dist.config import ModelConfig, Precision, load
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.util.errors import ConfigError
from workers.forward import load_causal_lm
from workers.learner.lora import Adapters, adapt, merged, save_adapters, whole_names

TOKENS = torch.arange(5, 25)[None]
RANK_8 = ModelConfig(lora_rank=8, lora_alpha=24.0)


def moved(settings: ModelConfig, precision: Precision = Precision.float32) -> tuple[torch.nn.Module, Adapters]:
    """A model whose adapters have left zero."""
    model = load_causal_lm(MODEL_DIR, precision).eval()
    adapters = adapt(model, settings)
    torch.manual_seed(0)
    for adapter in adapters.values():
        torch.nn.init.normal_(adapter.b_OR, std=0.05)
    return model, adapters


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def whole(model: torch.nn.Module, adapters: Adapters) -> dict[str, torch.Tensor]:
    return dict(merged([(name, p.data) for name, p in whole_names(list(model.named_parameters()))], adapters))


@pytest.mark.parametrize("targets", [[], ["q_proj", "down_proj"]])
def test_the_whole_weights_are_a_plain_model_that_says_the_same(targets: list[str]) -> None:
    model, adapters = moved(ModelConfig(lora_rank=8, lora_targets=targets))
    plain = load_causal_lm(MODEL_DIR, Precision.float32).eval()
    before = logits_of(plain)
    layers = plain.config.num_hidden_layers
    assert len(adapters) == layers * (len(targets) or 7)
    missing, unexpected = plain.load_state_dict(whole(model, adapters), strict=False)
    assert (missing, unexpected) == ([], [])
    torch.testing.assert_close(logits_of(plain), logits_of(model), rtol=1e-4, atol=1e-4)
    assert (logits_of(plain) - before).abs().max() > 0.1


def test_only_adapters_are_trained() -> None:
    model, adapters = moved(RANK_8)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(part) for adapter in adapters.values() for part in adapter.parts}
    assert {adapter.scale for adapter in adapters.values()} == {3.0}


def test_at_first_they_add_nothing() -> None:
    plain = load_causal_lm(MODEL_DIR, Precision.float32).eval()
    model = load_causal_lm(MODEL_DIR, Precision.float32).eval()
    adapters = adapt(model, RANK_8)
    base = dict(plain.named_parameters())
    found = whole(model, adapters)
    assert found.keys() == base.keys()
    assert all(torch.equal(found[name], base[name]) for name in base)


def test_a_sum_is_rounded_once() -> None:
    """To bfloat16, from float32: a change below its step is lost in a weight, but not in the sum of many."""
    model, adapters = moved(RANK_8, Precision.bfloat16)
    name, adapter = next(iter(adapters.items()))
    weight = dict(whole_names(list(model.named_parameters())))[name].data
    exact = weight.double() + adapter.scale * adapter.b_OR.double() @ adapter.a_RI.double()
    got = adapter.merged(weight)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.double(), exact, rtol=2**-8, atol=1e-7)


def test_peft_reads_what_is_saved(tmp_path: Path) -> None:
    model, _ = moved(RANK_8)
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    save_adapters(tmp_path / "adapter", trained, RANK_8)
    read = PeftModel.from_pretrained(load_causal_lm(MODEL_DIR, Precision.float32), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(logits_of(read), logits_of(model))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("q_porj", r"model\.lora_targets: q_porj fits no linear layer of .*down_proj.*an empty list takes them all"),
        ("lm_head", "lm_head is the head, which is not adapted"),
        ("embed_tokens", "embed_tokens fits no linear layer"),
    ],
)
def test_a_name_that_fits_nothing_is_refused(target: str, message: str) -> None:
    model = load_causal_lm(MODEL_DIR, Precision.float32)
    with pytest.raises(ConfigError, match=message):
        adapt(model, ModelConfig(lora_rank=4, lora_targets=["q_proj", target]))


@pytest.mark.parametrize(
    "word", ["model.lora_rank=-1", "model.lora_alpha=0", "model.lora_rank=x", "model.lora_targets=[q_proj]"]
)
def test_values_that_are_out_of_range_or_do_nothing_are_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=word.partition("=")[0]):
        load(Path("configs/demo.yaml"), [word])
