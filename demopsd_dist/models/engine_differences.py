"""Models that vLLM cannot run, or computes otherwise than transformers does by more than rounding.

The canary finds a wrong engine at the first publish, and a failed start names vLLM's reason; both come when engines run
already. What is known of vLLM 0.26 is refused before the start.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from demopsd_dist.config import Config, Precision, logp_bounds, longest_sequence_tokens
from demopsd_dist.models.text_config import shortest_window
from demopsd_dist.util.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

DIFFERENCES = {
    "bloom": (0.01, "vLLM computes GELU exactly, the model by its tanh approximation"),
    "apertus": (0.05, "vLLM keeps the parameters of its activation function (xIELU) in bfloat16"),
}
"""By model type: a bound of the difference of a token's log-probability in float32, nats, and its cause. Tiny models
with random weights differed by 0.002 and 0.008 nats."""
FAULTS = {
    "phimoe": "vLLM's class for it fails in the router of its experts.",
    "dbrx": "vLLM's class for it cannot load the weights of its experts a second time, as every publish does.",
    "minimax_m2": "vLLM's class for it cannot load the weights of its norms a second time, as every publish does.",
}
"""By model type: a fault of vLLM on every device."""
NEEDED_KEYS = {"lfm2": "block_dim", "lfm2_moe": "block_dim", "minimax_m2": "rotary_dim"}
"""Keys of config.json that vLLM reads and transformers does not write by itself."""
SELECTIVE_SCAN = ("jamba", "mamba", "falcon_mamba")
GATED_DELTA_NET = ("qwen3_next", "qwen3_5")
ROTARY_BY_HEAD = ("lfm2", "lfm2_moe")
"""Classes of vLLM that rotate queries and keys in three dimensions, for which the CPU kernel is wrong."""
ONE_TOKEN_WIDER = ("cohere2", "cohere2_moe")
"""Classes of vLLM whose sliding windows hold a token more than those of transformers."""
NEED_TORCHVISION = ("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text")


def check_engine_difference(config: Config, folder: Path, model_config: PretrainedConfig) -> None:
    """Check that vLLM computes this type of model within the tolerance of the run.

    Raises:
        ConfigError: it is known not to.
    """
    nats, cause = DIFFERENCES.get(model_config.model_type, (0.0, ""))
    largest = logp_bounds(config).largest
    if largest < nats:
        raise ConfigError(
            f"model.path={folder}: model type {model_config.model_type} differs between engine and learner: {cause}. "
            f"Set weights.max_logp_diff={nats} to train with that difference (now {largest:g})."
        )


def check_engine_window(config: Config, folder: Path, model_config: PretrainedConfig) -> None:
    """Check that no sampled sequence reaches a sliding window in which vLLM counts a token more than transformers.

    Raises:
        ConfigError: the longest sequence of an engine is longer than such a window.
    """
    text = model_config.get_text_config()
    window, longest = shortest_window(text), longest_sequence_tokens(config)
    if text.model_type in ONE_TOKEN_WIDER and window is not None and window.tokens < longest:
        raise ConfigError(
            f"model.path={folder}: in its {window.name}={window.tokens} vLLM counts one token more than transformers, "
            f"and a prompt and response may have {longest} tokens: above {window.tokens} engine and learner would "
            "differ. Lower rollout.max_prompt_tokens and the response tokens to at most "
            f"{window.tokens} together, or use another model."
        )


def check_engine_can_run(config: Config, folder: Path, model_config: PretrainedConfig) -> None:
    """Check that vLLM can run this type of model on the device of the rollout workers.

    Raises:
        ConfigError: it is known not to.
    """
    obstacle = _obstacle(model_config)
    if obstacle is None and config.rollout.gpus_per_worker == 0:
        obstacle = _obstacle_on_cpu(config, model_config)
    if obstacle is not None:
        raise ConfigError(f"model.path={folder}: model type {model_config.model_type}: {obstacle}")


def _obstacle(model_config: PretrainedConfig) -> str | None:
    model_type = model_config.model_type
    if fault := FAULTS.get(model_type):
        return f"{fault} Use another model."
    if (key := NEEDED_KEYS.get(model_type)) and not hasattr(model_config, key):
        return f"vLLM reads {key}, which config.json lacks. Take config.json from the published model."
    if model_type in NEED_TORCHVISION and find_spec("torchvision") is None:
        return "vLLM's class for it imports torchvision, which is not installed. Install it."
    return None


def _obstacle_on_cpu(config: Config, model_config: PretrainedConfig) -> str | None:
    text = model_config.get_text_config()
    if getattr(text, "kv_lora_rank", None):
        return (
            "vLLM's CPU build computes its latent attention (MLA) otherwise than transformers, by 1.4 nats on a tiny "
            "model. Use GPUs for rollout (rollout.gpus_per_worker), or another model."
        )
    if text.model_type in ROTARY_BY_HEAD:
        return (
            "vLLM's CPU build rotates its queries and keys wrongly, by 2 nats on a tiny model. Use GPUs for rollout "
            "(rollout.gpus_per_worker), or another model."
        )
    if text.model_type in SELECTIVE_SCAN:
        return "vLLM's CPU build has no selective scan (Mamba 1). Use GPUs for rollout, or another model."
    if text.model_type.startswith(GATED_DELTA_NET) and config.model.precision is not Precision.bfloat16:
        return "vLLM's CPU build computes its linear attention in bfloat16 alone. Set model.precision=bfloat16."
    return None
