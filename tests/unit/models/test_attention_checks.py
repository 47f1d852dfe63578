"""Properties that a loaded configuration states, and the checks of a run's lengths against them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import transformers

from demopsd_dist.config import Config, load
from demopsd_dist.models.attention_checks import check_longrope, check_tree_rows
from demopsd_dist.models.text_config import (
    Window,
    has_capped_attention,
    language_settings,
    layers_with_a_state,
    logit_scale_and_cap,
    longrope_original_tokens,
    shortest_window,
)
from demopsd_dist.planning.model_shape import shape_from
from demopsd_dist.util.errors import ConfigError

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"
LONGEST = 3072 + 64  # of the demo: privileged.max_tokens and a response
ONE_LAYER = {"num_hidden_layers": 1}
CONVOLUTION = {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2}
LONGROPE = {
    "original_max_position_embeddings": 4096,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 48,
        "long_factor": [4.0] * 48,
        "original_max_position_embeddings": 4096,
    },
}


def text_config(name: str, **settings: Any) -> Any:
    return getattr(transformers, f"{name}Config")(**settings).get_text_config()


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("Qwen3", {}, (1.0, None)),
        ("Gemma2", {}, (1.0, 30.0)),
        ("Gemma2", {"final_logit_softcapping": None}, (1.0, None)),
        ("Gemma3", {}, (1.0, None)),
        ("Granite", {"logits_scaling": 8.0}, (0.125, None)),
        ("HyperCLOVAX", {"logits_scaling": 8.0}, (8.0, None)),
        ("Cohere", {}, (0.0625, None)),
        ("FalconH1", {"lm_head_multiplier": 0.5}, (0.5, None)),
        ("RecurrentGemma", {}, (1.0, 30.0)),
    ],
)
def test_transform_of_the_logits(name: str, settings: dict[str, Any], expected: tuple[float, float | None]) -> None:
    assert logit_scale_and_cap(text_config(name, **settings)) == expected


def test_a_vision_models_language_part_has_the_properties() -> None:
    inner = {"final_logit_softcapping": 7.0, "sliding_window": 12, "attn_logit_softcapping": 5.0}
    config = transformers.Gemma3Config(text_config=inner).get_text_config()
    assert logit_scale_and_cap(config) == (1.0, 7.0)
    assert shortest_window(config) == Window("sliding_window", 12)
    assert has_capped_attention(config)
    assert not has_capped_attention(text_config("Gemma3"))


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("Mistral", {"sliding_window": 99}, Window("sliding_window", 99)),
        ("Mistral", {"sliding_window": None}, None),
        ("Qwen2", {"sliding_window": 99, "use_sliding_window": False}, None),
        ("Qwen3", {"sliding_window": 99, "layer_types": ["full_attention"], "num_hidden_layers": 1}, None),
        ("Llama4Text", {"attention_chunk_size": 77}, Window("attention_chunk_size", 77)),
        ("Llama", {}, None),
    ],
)
def test_shortest_window(name: str, settings: dict[str, Any], expected: Window | None) -> None:
    assert shortest_window(text_config(name, **settings)) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Qwen3", []),
        ("Gemma3Text", []),
        ("FalconH1", ["hybrid"]),
        ("Qwen3Next", ["linear_attention"]),
        ("Mamba2", ["linear_attention"]),
    ],
)
def test_layers_with_a_state(name: str, expected: list[str]) -> None:
    assert layers_with_a_state(text_config(name)) == expected


def test_the_kinds_of_layers_are_those_of_the_configuration() -> None:
    assert layers_with_a_state(transformers.Lfm2Config(**CONVOLUTION)) == ["conv"]
    assert layers_with_a_state(transformers.GraniteMoeHybridConfig(layer_types=["attention"], **ONE_LAYER)) == []


def refusal(check: Any, config: Config, model_config: Any) -> str | None:
    try:
        check(config, Path("folder"), model_config)
    except ConfigError as error:
        return str(error)
    return None


@pytest.mark.parametrize("window", [LONGEST - 1, LONGEST, None])
def test_a_window_shorter_than_the_longest_sequence_forbids_merged_rows(window: int | None) -> None:
    model_config = transformers.MistralConfig(sliding_window=window)
    message = refusal(check_tree_rows, load(DEMO, []), model_config)
    if window == LONGEST - 1:
        assert message is not None
        assert f"sliding_window={window}, below the longest sequence of {LONGEST} tokens" in message
        assert message.endswith("Set model.tree_tokens=0.")
        assert refusal(check_tree_rows, load(DEMO, ["model.tree_tokens=0"]), model_config) is None
    else:
        assert message is None


def test_evaluations_own_responses_count() -> None:
    words = ["evaluation.max_response_tokens=2000", "rollout.max_batch_tokens=8192"]
    model_config = transformers.MistralConfig(sliding_window=LONGEST)
    assert "below the longest sequence of 4048 tokens" in str(refusal(check_tree_rows, load(DEMO, words), model_config))


def test_a_state_forbids_merged_rows() -> None:
    message = refusal(check_tree_rows, load(DEMO, []), transformers.Lfm2Config(**CONVOLUTION))
    assert message is not None
    assert "carry a state through a whole row (conv)" in message
    assert refusal(check_tree_rows, load(DEMO, ["model.tree_tokens=0"]), transformers.Lfm2Config(**CONVOLUTION)) is None


@pytest.mark.parametrize(("prompt", "refused"), [(4096 - 64, False), (4096 - 63, True)])
def test_longrope_is_refused_above_its_original_context(prompt: int, refused: bool) -> None:
    model_config = transformers.Phi3Config(**LONGROPE)
    assert longrope_original_tokens(model_config) == 4096
    words = [f"rollout.max_prompt_tokens={prompt}", f"privileged.max_tokens={prompt}", "rollout.max_batch_tokens=8192"]
    message = refusal(check_longrope, load(DEMO, words), model_config)
    assert (message is not None) == refused
    if message is not None:
        assert "original_max_position_embeddings=4096, and the longest sequence of the run has 4097 tokens" in message
    assert longrope_original_tokens(transformers.Qwen3Config()) is None


def test_language_settings_of_a_config_json() -> None:
    """A vision model's own settings of the same name are not the language model's; GPT-2 has names of its own."""
    inner = {"num_attention_heads": 8, "vocab_size": 99, "num_hidden_layers": 3, "hidden_size": 64}
    merged = language_settings({"vocab_size": 5, "text_config": {**inner, "intermediate_size": 128}})
    assert merged["vocab_size"] == 99
    assert shape_from({"text_config": {**inner, "intermediate_size": 128}}, "here").vocabulary == 99
    assert language_settings({"n_positions": 512, "n_head": 12})["max_position_embeddings"] == 512
