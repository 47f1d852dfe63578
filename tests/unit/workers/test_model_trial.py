"""Trial of a model before training: its own logits against the head, and a merged row against its responses alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from demopsd_dist.config import Precision
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.util.errors import ConfigError
from workers.forward import load_causal_lm
from workers.learner.model_trial import try_model

FOLDER = Path("folder")
SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "pad_token_id": None,
}
GEMMA2 = {"final_logit_softcapping": 5.0, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 16}
FALCON_H1 = {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "lm_head_multiplier": 0.5}
LFM2 = {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False}


def tiny(name: str, **settings: Any) -> Any:
    """A random model with large weights, so that what is left out of it shows."""
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **settings})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0 if parameter.dim() > 1 else 1.0)
    return model


@pytest.mark.parametrize("precision", [Precision.float32, Precision.bfloat16])
def test_the_embedded_model_passes(precision: Precision) -> None:
    try_model(load_causal_lm(MODEL_DIR, precision), MODEL_DIR, 4096)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "settings", "tree_tokens"),
    [
        ("Granite", {"logits_scaling": 8.0}, 4096),
        ("Cohere", {"logit_scale": 0.25}, 4096),
        ("Gemma2", {**GEMMA2, "attn_implementation": "eager"}, 4096),
        ("HyperCLOVAX", {"logits_scaling": 0.25}, 4096),
        ("FalconH1", FALCON_H1, 0),
        ("GPT2", {"n_positions": 256}, 4096),
    ],
)
def test_models_that_transform_their_logits_pass(
    name: str, settings: dict[str, Any], tree_tokens: int, dtype: torch.dtype
) -> None:
    try_model(tiny(name, **settings).to(dtype), FOLDER, tree_tokens)


class OtherScaleForCausalLM(transformers.Qwen3ForCausalLM):
    """A model with a scale that its configuration does not name."""

    def forward(self, *arguments: Any, **options: Any) -> Any:
        output = super().forward(*arguments, **options)
        output.logits = output.logits * 1.25
        return output


class OtherCapForCausalLM(transformers.Qwen3ForCausalLM):
    """A model with a soft cap that its configuration does not name."""

    cap = float("inf")

    def forward(self, *arguments: Any, **options: Any) -> Any:
        output = super().forward(*arguments, **options)
        if self.cap < float("inf"):
            output.logits = self.cap * torch.tanh(output.logits / self.cap)
        return output


class NormedForCausalLM(transformers.Qwen3ForCausalLM):
    """A model with one more normalisation before its head."""

    def forward(self, *arguments: Any, **options: Any) -> Any:
        output = super().forward(*arguments, **options)
        hidden = self.model(options["input_ids"]).last_hidden_state
        output.logits = self.lm_head(torch.nn.functional.normalize(hidden, dim=-1))
        return output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_class", [OtherScaleForCausalLM, OtherCapForCausalLM, NormedForCausalLM])
def test_a_head_that_is_not_known_is_refused_by_name(model_class: type[Any], dtype: torch.dtype) -> None:
    model = model_class(transformers.Qwen3Config(**SIZES)).eval().to(dtype)
    if model_class is OtherCapForCausalLM:
        model.cap = 4 * float(model(torch.arange(20)[None]).logits.detach().abs().max())
    message = rf"model.path=folder: {model_class.__name__} is not supported: its logits differ by up to [\d.e+-]+ from"
    with pytest.raises(ConfigError, match=message) as caught:
        try_model(model, FOLDER, 0)
    assert "\n" not in str(caught.value)


def test_a_model_that_cannot_run_is_refused_by_name() -> None:
    model = tiny("Qwen3")
    model.model.layers[1].mlp.up_proj = torch.nn.Linear(3, 3)
    with pytest.raises(ConfigError, match="Qwen3ForCausalLM is not supported: a forward of 20 tokens fails: RuntimeEr"):
        try_model(model, FOLDER, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("Lfm2", LFM2, r"log-probabilities then differ by up to [\d.]+ nats"),
        ("FalconH1", FALCON_H1, r"log-probabilities then differ by up to [\d.e+-]+ nats"),
        ("Bloom", {}, "with a mask and positions that BloomForCausalLM of model.path=folder does not take"),
    ],
)
def test_merged_rows_that_differ_are_refused(
    name: str, settings: dict[str, Any], reason: str, dtype: torch.dtype
) -> None:
    model = tiny(name, **settings).to(dtype)
    with pytest.raises(ConfigError, match=r"model.tree_tokens=4096 merges .*Set model.tree_tokens=0\.") as caught:
        try_model(model, FOLDER, 4096)
    assert caught.match(reason)
    try_model(model, FOLDER, 0)


def test_attention_with_a_soft_cap_is_eager(tmp_path: Path) -> None:
    """transformers' fused attention leaves the cap out; eager attention adds the mask of a merged row to its scores."""
    tiny("Gemma2", **GEMMA2).save_pretrained(tmp_path)
    model = load_causal_lm(tmp_path, Precision.float32)
    ids = torch.arange(20)[None]
    fused = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa")
    with torch.no_grad():
        assert (model(ids).logits - fused(ids).logits).abs().max() > 0.01
    try_model(model, tmp_path, 4096)
