"""Models that vLLM computes otherwise than transformers does, by more than rounding.

The canary finds every such model at the first publish, when the engines run already. Those that are known are refused
before the start, unless the settings allow the difference.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from demopsd_dist.config import Config
from demopsd_dist.util.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

DIFFERENCES = {
    "bloom": (0.01, "vLLM computes GELU exactly, the model by its tanh approximation"),
    "apertus": (0.05, "vLLM keeps the parameters of its activation function (xIELU) in bfloat16"),
}
"""By model type: a bound of the difference of a token's log-probability in float32, nats, and its cause in vLLM 0.26.
Tiny models with random weights differed by 0.002 and 0.008 nats."""


def check_engine_difference(config: Config, folder: Path, model_config: PretrainedConfig) -> None:
    """Check that vLLM computes this type of model within the tolerance of the run.

    Raises:
        ConfigError: it is known not to.
    """
    nats, cause = DIFFERENCES.get(model_config.model_type, (0.0, ""))
    if config.weights.max_logp_diff < nats:
        raise ConfigError(
            f"model.path={folder}: model type {model_config.model_type} differs between engine and learner: {cause}. "
            f"Set weights.max_logp_diff={nats} to train with that difference (now {config.weights.max_logp_diff})."
        )
