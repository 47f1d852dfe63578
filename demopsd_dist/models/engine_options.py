"""Options of vLLM that `rollout.engine` passes on, each with its effect on the difference between engine and learner.

Options that the run derives from other settings, or that would change what is sampled, are not among them.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from demopsd_dist.config import Config
from demopsd_dist.util.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class EngineOption:
    """An option of vLLM's engine.

    Attributes:
        kind: type of its values.
        meaning: what it does, with its effect on the mismatch.
        gpu: it has an effect on GPUs alone.
    """

    kind: type
    meaning: str
    gpu: bool = True


ENGINE_OPTIONS: dict[str, EngineOption] = {
    "kv_cache_dtype": EngineOption(
        str,
        "number format of keys and values, such as `fp8`. fp8 has a mantissa of 3 bits: raises the "
        "mismatch of every token; set wider bounds.",
    ),
    "quantization": EngineOption(
        str,
        "format into which published weights are quantized, such as `fp8`. The engine samples from a rounded student: "
        "the largest effect of all; set wider bounds, and keep the importance ratio in view.",
    ),
    "attention_backend": EngineOption(
        str, "kernels of the attention, such as `FLASH_ATTN` or `FLASHINFER`. Sums in another order: rounding alone."
    ),
    "linear_backend": EngineOption(
        str, "kernels of the linear layers, in vLLM's names. Sums in another order: rounding alone."
    ),
    "moe_backend": EngineOption(
        str,
        "kernels of the experts. Rounding alone, but a router near a tie may then choose other experts, which shows in "
        "single tokens.",
    ),
    "enable_expert_parallel": EngineOption(
        bool, "experts whole on one process each instead of split over all. Sums in another order: rounding alone."
    ),
    "disable_custom_all_reduce": EngineOption(
        bool, "NCCL instead of vLLM's own sums over processes (`tensor_parallel`). Rounding alone."
    ),
    "disable_cascade_attn": EngineOption(
        bool, "no separate pass over a prefix that all responses share. Sums in another order: rounding alone."
    ),
    "block_size": EngineOption(int, "tokens of a block of keys and values. No effect on values.", gpu=False),
    "long_prefill_token_threshold": EngineOption(
        int, "tokens beyond which a prompt counts as long and waits for others. No effect beyond rounding."
    ),
}


def check_engine_options(config: Config, folder: Path, model_config: PretrainedConfig) -> None:
    """Check the options that a config passes on, for any model.

    Raises:
        ConfigError: as `refuse_other_options`.
    """
    refuse_other_options(config.rollout.engine, on_gpu=config.rollout.gpus_per_worker > 0)


def refuse_other_options(given: Mapping[str, object], on_gpu: bool) -> None:
    """Check names and types of options; vLLM itself checks the values when an engine starts.

    Raises:
        ConfigError: an unknown option (names the nearest, or all), a value of another type, or one without effect on
            CPU.
    """
    for name, value in given.items():
        option = ENGINE_OPTIONS.get(name)
        if option is None:
            near = difflib.get_close_matches(name, ENGINE_OPTIONS, n=1, cutoff=0.6)
            hint = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(ENGINE_OPTIONS)}."
            raise ConfigError(f"rollout.engine.{name} is not an option of vLLM that can be set here. {hint}")
        if type(value) is not option.kind:
            raise ConfigError(
                f"rollout.engine.{name}={value} must be of type {option.kind.__name__}, not {type(value).__name__}."
            )
        if option.gpu and not on_gpu:
            raise ConfigError(
                f"rollout.engine.{name} has an effect on GPUs alone, and rollout.gpus_per_worker=0. Drop it."
            )


def table() -> list[str]:
    """Lines of the table in docs/tuning.md."""
    rows = [
        f"| `{name}` | {option.kind.__name__}{'' if option.gpu else ', also on CPU'} | {option.meaning} |"
        for name, option in ENGINE_OPTIONS.items()
    ]
    return ["| option | value | meaning, and effect on the mismatch |", "|---|---|---|", *rows]
