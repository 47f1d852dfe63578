"""Checks of a model that need transformers, but neither its weights nor an engine. The dry run and the start of a run
both make them, so that a model that cannot train is refused before any process starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demopsd_dist.config import Config
from demopsd_dist.models.attention_checks import check_longrope, check_tree_rows
from demopsd_dist.models.engine_differences import check_engine_can_run, check_engine_difference, check_engine_window
from demopsd_dist.models.engine_options import check_engine_options
from demopsd_dist.models.whole_model import check_whole_model
from demopsd_dist.util.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

Check = Callable[[Config, Path, "PretrainedConfig"], None]


def check_processor(config: Config, folder: Path, model_config: PretrainedConfig) -> None:
    """Check that the inputs of a model with a vision or audio part can be processed: its engine loads the processor of
    its images even where all prompts are text.

    Raises:
        ConfigError: the processor cannot be loaded: a package or a file is missing.
    """
    parts = [name for name in ("vision", "audio") if getattr(model_config, f"{name}_config", None) is not None]
    if parts:
        _loaded(folder, f"the processor of its {parts[0]} part (vLLM loads it for text too)", "AutoProcessor")


CHECKS: tuple[Check, ...] = (
    check_engine_options,
    check_engine_can_run,
    check_tree_rows,
    check_longrope,
    check_engine_difference,
    check_engine_window,
    check_processor,
)
"""Checks of a model, in order. Each gets the settings of the run, the model's folder and its loaded config.json, and
raises `ConfigError` with one line that names `model.path`, the reason and the remedy."""


def check_model(config: Config, folder: Path) -> PreTrainedTokenizerBase:
    """Check all of a model that can be checked without weights and engines; its tokenizer.

    Args:
        folder: a folder that `model_folder` has accepted.

    Raises:
        ConfigError: transformers cannot load the configuration or the tokenizer; one of `CHECKS` refuses the model; or
            its tensors are not whole (`whole_model.py`).
    """
    model_config = _loaded(folder, "config.json", "AutoConfig")
    for check in CHECKS:
        check(config, folder, model_config)
    tokenizer = _loaded(folder, "its tokenizer", "AutoTokenizer")
    if not tokenizer.chat_template:
        raise ConfigError(
            f"model.path={folder}: its tokenizer has no chat template. Use an instruct model, or add one."
        )
    check_whole_model(folder, tokenizer)
    return tokenizer


def _loaded(folder: Path, what: str, loader: str) -> Any:
    """Load one part of the folder by an Auto class of transformers, without running code of the folder."""
    import transformers

    try:
        return getattr(transformers, loader).from_pretrained(folder, trust_remote_code=False)
    except Exception as error:
        raise ConfigError(f"model.path={folder}: {_cause(error, what)}") from None


def _cause(error: Exception, what: str) -> str:
    """Reason and remedy of a failed load, without the advice of transformers to run code of the folder."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "trust_remote_code" in text:
        return (
            f"{what} needs Python code of the folder (auto_map), which is never run. Use a model whose type "
            "transformers itself knows."
        )
    if "does not recognize this architecture" in text:
        return f"{text.partition('. ')[0]}. Use a model that transformers {_transformers_version()} knows."
    if isinstance(error, ImportError):
        return f"{what} needs a package that is not installed: {text.partition('. ')[0]}. Install it."
    return f"transformers cannot load {what}: {text.rstrip('.')}. Correct the folder, or download the model again."


def _transformers_version() -> str:
    import transformers

    return transformers.__version__
