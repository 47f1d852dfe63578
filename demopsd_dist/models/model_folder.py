"""Checks of the model's folder on disk, without loading weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from demopsd_dist.config import MINISCI, Config
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.models.text_config import language_settings
from demopsd_dist.util.errors import ConfigError


def model_folder(config: Config) -> Path:
    """The model's folder on disk, after all checks that need no loading.

    Raises:
        ConfigError: no such folder; no `config.json`, weights or tokenizer in it; prompts and responses longer than
            the model's context; heads that do not divide by `rollout.tensor_parallel`.
    """
    folder = MODEL_DIR if config.model.path == MINISCI else Path(config.model.path)
    try:
        _check_files(config, folder)
    except OSError as error:
        raise ConfigError(f"model.path={folder} cannot be read ({error.strerror}). Correct it.") from None
    settings = language_settings(_read_settings(folder / "config.json"))
    _check_attention(config, folder, settings)
    _check_lengths(config, settings.get("max_position_embeddings"))
    return folder


def _check_files(config: Config, folder: Path) -> None:
    if not folder.is_dir() and (folder.parent / "config.yaml").is_file():
        raise ConfigError(
            f"model.path={config.model.path}: the run in {folder.parent} has no such folder; its student is there when "
            "it has ended. Resume that run, or name the folder of another."
        )
    if not folder.is_dir():
        raise ConfigError(
            f"model.path={config.model.path}: there is no such folder. Give a Hugging Face model folder (download one "
            "with `hf download NAME --local-dir FOLDER`), or `minisci`."
        )
    if not (folder / "config.json").is_file():
        raise ConfigError(f"model.path={folder} has no config.json; it is not a Hugging Face model folder.")
    if not list(folder.glob("*.safetensors")):
        raise ConfigError(f"model.path={folder} has no *.safetensors weights; save the model with save_pretrained.")
    if not (folder / "tokenizer.json").is_file():
        raise ConfigError(
            f"model.path={folder} has no tokenizer.json; save the tokenizer into it with "
            f"tokenizer.save_pretrained({str(folder)!r})."
        )


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}). Make it readable.") from None
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} is not a JSON object; download or save the model again.")
    return settings


def _check_attention(config: Config, folder: Path, settings: dict[str, Any]) -> None:
    heads = settings.get("num_attention_heads") or 0  # not every model's config.json has it
    sizes = tensor_parallel_sizes(heads, settings.get("num_key_value_heads") or heads)
    if sizes and config.rollout.tensor_parallel not in sizes:
        raise ConfigError(
            f"rollout.tensor_parallel={config.rollout.tensor_parallel}: the attention heads of {folder} cannot be "
            f"shared out alike. Set it to one of {', '.join(map(str, sizes))}."
        )


def _check_lengths(config: Config, context: int | None) -> None:
    """Compare the longest prompts and responses with the model's context, where it is known."""
    rollout = config.rollout
    need = rollout.max_prompt_tokens + rollout.max_response_tokens
    if context is not None and need > context:
        raise ConfigError(
            f"rollout.max_prompt_tokens={rollout.max_prompt_tokens} + rollout.max_response_tokens="
            f"{rollout.max_response_tokens} = {need} tokens do not fit the model's context of {context}. Lower "
            f"rollout.max_response_tokens to {context - rollout.max_prompt_tokens} or less."
            if context > rollout.max_prompt_tokens
            else f"rollout.max_prompt_tokens={rollout.max_prompt_tokens} alone fills the model's context of {context} "
            f"tokens. Lower it to leave space for rollout.max_response_tokens={rollout.max_response_tokens}."
        )
    privileged = config.privileged.max_tokens + rollout.max_response_tokens
    if context is not None and privileged > context:
        raise ConfigError(
            f"privileged.max_tokens={config.privileged.max_tokens} + rollout.max_response_tokens="
            f"{rollout.max_response_tokens} = {privileged} tokens do not fit the model's context of {context}. Lower "
            f"privileged.max_tokens to {context - rollout.max_response_tokens} or less."
        )
    if config.privileged.max_tokens < rollout.max_prompt_tokens:
        raise ConfigError(
            f"privileged.max_tokens={config.privileged.max_tokens} is below rollout.max_prompt_tokens="
            f"{rollout.max_prompt_tokens}: the teacher must see at least the whole question. Raise it."
        )


def tensor_parallel_sizes(heads: int, kv_heads: int) -> list[int]:
    """Numbers of processes among which vLLM can divide this number of attention heads.

    Heads for keys and values may be replicated.
    """
    return [n for n in range(1, heads + 1) if heads % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0)]
