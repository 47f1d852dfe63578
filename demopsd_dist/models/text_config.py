"""Properties of a model's language part that its loaded configuration states: transform of the logits, attention
windows, layers with a state. Vision models keep that part in a configuration of its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_MULTIPLIERS = ("lm_head_multiplier", "logit_scale")
_DIVIDERS = ("logits_scaling",)
_MULTIPLIED_IN = ("hyperclovax",)  # model types whose logits are multiplied by `logits_scaling`
_CAPS = ("final_logit_softcapping", "logits_soft_cap")
_OLD_NAMES = {  # GPT-2's and DBRX's
    "n_positions": "max_position_embeddings",
    "max_seq_len": "max_position_embeddings",
    "n_head": "num_attention_heads",
    "n_heads": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "n_layers": "num_hidden_layers",
    "n_embd": "hidden_size",
    "d_model": "hidden_size",
}
_WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}


class Window(NamedTuple):
    """Tokens that a layer's attention looks back, and the name of the setting in config.json."""

    name: str
    tokens: int


def language_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a config.json that describe the language model: those of its `text_config`, where it has one, over
    the others, and old names under the usual ones as well."""
    inner = settings.get("text_config")
    merged = {**settings, **(inner if isinstance(inner, dict) else {})}
    return {new: merged[old] for old, new in _OLD_NAMES.items() if old in merged} | merged


def text_config_of(folder: Path) -> PretrainedConfig:
    """Load config.json, without running code of the folder; the part of the language model."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()


def logit_scale_and_cap(text_config: Any) -> tuple[float, float | None]:
    """Factor of the logits, and their soft cap if they have one, by the settings that are known to hold them.

    Known settings may mean something else in a model of the future, and others may exist: the learners compare the
    result with the model's own logits before they train (`workers/learner/model_trial.py`).
    """
    scale = 1.0
    for name in _MULTIPLIERS:
        scale *= _number(text_config, name) or 1.0
    for name in _DIVIDERS:
        factor = _number(text_config, name) or 1.0
        scale *= factor if text_config.model_type in _MULTIPLIED_IN else 1.0 / factor
    caps = [cap for name in _CAPS if (cap := _number(text_config, name))]
    return scale, caps[0] if caps else None


def has_capped_attention(text_config: Any) -> bool:
    """Whether attention scores have a soft cap, which only the eager attention of transformers applies."""
    return bool(_number(text_config, "attn_logit_softcapping"))


def shortest_window(text_config: Any) -> Window | None:
    """Shortest attention window of any layer; None where every layer sees all tokens before."""
    kinds = getattr(text_config, "layer_types", None)
    if kinds:
        names = [name for kind, name in _WINDOWS.items() if kind in kinds]
    else:
        names = ["sliding_window"] if getattr(text_config, "use_sliding_window", True) else []
    windows = [Window(name, int(tokens)) for name in names if (tokens := _number(text_config, name))]
    return min(windows, key=lambda window: window.tokens, default=None)


def layers_with_a_state(text_config: Any) -> list[str]:
    """Kinds of layers that carry a state from token to token (state space, linear attention, convolution)."""
    kinds = set(getattr(text_config, "layer_types", None) or ())
    return sorted(kind for kind in kinds if not kind.endswith("attention") or kind.startswith("linear"))


def longrope_original_tokens(text_config: Any) -> int | None:
    """Sequence length at which longrope exchanges its factors; None for a model without it."""
    rope = getattr(text_config, "rope_parameters", None) or {}
    each = [part for part in (rope, *rope.values()) if isinstance(part, dict)]  # some models have one a layer type
    found = [part for part in each if part.get("rope_type") == "longrope"]
    lengths = [
        part.get("original_max_position_embeddings") or _number(text_config, "original_max_position_embeddings")
        for part in found
    ]
    return min((int(length) for length in lengths if length), default=None)


def _number(text_config: Any, name: str) -> float | int | None:
    """A setting that is a number; None where it is missing, null or something else."""
    value = getattr(text_config, name, None)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None
