"""LoRA: the merged weights that are published are the adapted model, and peft reads the saved adapters."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from demopsd_dist.config import ModelConfig, Precision, load
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.util.errors import ConfigError
from tests.unit.models.small_folders import small_folder
from workers.forward import load_causal_lm
from workers.learner.lora import Adapters, add_adapters, base_tensors, merge_adapters, save_adapters

TOKENS = torch.arange(5, 25)[None]
RANK_8 = ModelConfig(lora_rank=8, lora_alpha=24.0)


def adapted_model(settings: ModelConfig, precision: Precision = Precision.float32) -> tuple[torch.nn.Module, Adapters]:
    """Model whose adapters are no longer zero."""
    model = load_causal_lm(MODEL_DIR, precision).eval()
    adapters = add_adapters(model, settings)
    torch.manual_seed(0)
    for adapter in adapters.values():
        torch.nn.init.normal_(adapter.b_OR, std=0.05)
    return model, adapters


def logits_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def merged_weights(model: torch.nn.Module, adapters: Adapters) -> dict[str, torch.Tensor]:
    named = base_tensors(list(model.named_parameters()))
    return dict(merge_adapters([(name, parameter.data) for name, parameter in named], adapters))


@pytest.mark.parametrize("targets", [[], ["q_proj", "down_proj"]])
def test_merged_weights_give_the_logits_of_the_adapted_model(targets: list[str]) -> None:
    model, adapters = adapted_model(ModelConfig(lora_rank=8, lora_targets=targets))
    plain = load_causal_lm(MODEL_DIR, Precision.float32).eval()
    before = logits_of(plain)
    layers = plain.config.num_hidden_layers
    assert len(adapters) == layers * (len(targets) or 7)
    missing, unexpected = plain.load_state_dict(merged_weights(model, adapters), strict=False)
    assert (missing, unexpected) == ([], [])
    torch.testing.assert_close(logits_of(plain), logits_of(model), rtol=1e-4, atol=1e-4)
    assert (logits_of(plain) - before).abs().max() > 0.1


def test_only_adapters_are_trained() -> None:
    model, adapters = adapted_model(RANK_8)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {id(p) for p in trained} == {id(part) for adapter in adapters.values() for part in adapter.parts}
    assert {adapter.scale for adapter in adapters.values()} == {3.0}


def test_new_adapters_add_nothing() -> None:
    plain = load_causal_lm(MODEL_DIR, Precision.float32).eval()
    model = load_causal_lm(MODEL_DIR, Precision.float32).eval()
    adapters = add_adapters(model, RANK_8)
    base = dict(plain.named_parameters())
    weights = merged_weights(model, adapters)
    assert weights.keys() == base.keys()
    assert all(torch.equal(weights[name], base[name]) for name in base)


def test_a_merged_weight_is_rounded_once() -> None:
    """Rounding from float32 to bfloat16: a change smaller than its step is lost in one weight, but not in a sum."""
    model, adapters = adapted_model(RANK_8, Precision.bfloat16)
    name, adapter = next(iter(adapters.items()))
    weight = dict(base_tensors(list(model.named_parameters())))[name].data
    exact = weight.double() + adapter.scale * adapter.b_OR.double() @ adapter.a_RI.double()
    merged = adapter.merged(weight)
    assert merged.dtype == torch.bfloat16
    torch.testing.assert_close(merged.double(), exact, rtol=2**-8, atol=1e-7)


def test_peft_reads_saved_adapters(tmp_path: Path) -> None:
    model, _ = adapted_model(RANK_8)
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    save_adapters(tmp_path / "adapter", trained, RANK_8)
    read = PeftModel.from_pretrained(load_causal_lm(MODEL_DIR, Precision.float32), str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(logits_of(read), logits_of(model))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("q_porj", r"model\.lora_targets: q_porj fits no linear layer of .*down_proj.*an empty list takes them all"),
        ("lm_head", "lm_head is the head, which is not adapted,"),
        ("embed_tokens", "embed_tokens fits no linear layer"),
    ],
)
def test_a_target_that_matches_nothing_is_refused(target: str, message: str) -> None:
    model = load_causal_lm(MODEL_DIR, Precision.float32)
    with pytest.raises(ConfigError, match=message):
        add_adapters(model, ModelConfig(lora_rank=4, lora_targets=["q_proj", target]))


@pytest.mark.parametrize(
    "word", ["model.lora_rank=-1", "model.lora_alpha=0", "model.lora_rank=x", "model.lora_targets=[q_proj]"]
)
def test_values_out_of_range_or_without_effect_are_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=word.partition("=")[0]):
        load(Path("configs/demo.yaml"), [word])


def test_experts_that_are_fused_are_not_adapted(tmp_path: Path) -> None:
    """In DeepSeek-V3 with shared experts peft takes gate_proj for the fused experts' too."""
    small_folder(tmp_path, "deepseek_v3", n_shared_experts=1)
    model = load_causal_lm(tmp_path, Precision.float32)
    assert any(name.endswith("shared_experts.gate_proj") for name, _ in model.named_modules())
    adapters = add_adapters(model, RANK_8)
    assert {name.split(".")[-2] for name in adapters} == {
        "kv_a_proj_with_mqa",
        "kv_b_proj",
        "o_proj",
        "q_a_proj",
        "q_b_proj",
    }
    with pytest.raises(ConfigError, match=r"gate_proj fits experts too, .* Its linear layers are kv_a_proj"):
        add_adapters(
            load_causal_lm(tmp_path, Precision.float32), ModelConfig(lora_rank=4, lora_targets=["gate_proj", "o_proj"])
        )


def test_models_that_peft_cannot_adapt_are_refused_in_one_line(tmp_path: Path) -> None:
    small_folder(tmp_path / "gpt2", "gpt2")
    with pytest.raises(ConfigError, match=r"lora_rank: GPT2LMHeadModel has no linear layers .* Set model\.lora_rank=0"):
        add_adapters(load_causal_lm(tmp_path / "gpt2", Precision.float32), RANK_8)
    small_folder(tmp_path / "mamba2", "mamba2")
    with pytest.raises(ConfigError, match=r"peft cannot adapt .*Mamba2.*: .*'out_proj' is incompatible") as error:
        add_adapters(load_causal_lm(tmp_path / "mamba2", Precision.float32), RANK_8)
    assert "\n" not in str(error.value)
