"""Checks of a model that need transformers, but neither its weights nor an engine. The dry run and the start of a run
both make them, so that a model that cannot train is refused before any process starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from demopsd_dist.config import Config
from demopsd_dist.models.attention_checks import check_longrope, check_tree_rows
from demopsd_dist.models.whole_model import check_whole_model
from demopsd_dist.util.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

Check = Callable[[Config, Path, "PretrainedConfig"], None]

CHECKS: tuple[Check, ...] = (check_tree_rows, check_longrope)
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
        raise ConfigError(
            f"model.path={folder}: transformers cannot load {what} without running its own code, which is never "
            f"done, or cannot load it at all: {' '.join(str(error).split())}"
        ) from None
