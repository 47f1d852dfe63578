"""Checks of a run's lengths and of merged responses against the attention and the positions of the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from demopsd_dist.config import Config, longest_sequence_tokens
from demopsd_dist.models.text_config import layers_with_a_state, longrope_original_tokens, shortest_window
from demopsd_dist.util.errors import ConfigError


def longest_forward_tokens(config: Config) -> int:
    """Longest sequence of any role: in an engine, or a response after the teacher's privileged prompt."""
    privileged = config.privileged.max_tokens + config.rollout.max_response_tokens
    return max(longest_sequence_tokens(config), privileged)


def check_tree_rows(config: Config, folder: Path, model_config: Any) -> None:
    """Refuse to merge responses where a layer carries a state through all tokens of a row, or where its attention
    window is shorter than the longest sequence: the mask of a merged row has no window.

    Only models that say so; the learners try a merged row before they train (`workers/learner/model_trial.py`).

    Raises:
        ConfigError: such a model, with `model.tree_tokens` above 0.
    """
    tree_tokens = config.model.tree_tokens
    if not tree_tokens:
        return
    text_config = model_config.get_text_config()
    if states := layers_with_a_state(text_config):
        raise ConfigError(
            f"model.tree_tokens={tree_tokens} merges responses to a question in one row; layers of model.path={folder} "
            f"carry a state through a whole row ({', '.join(states)}), also from one response to the next. Set "
            "model.tree_tokens=0."
        )
    window, longest = shortest_window(text_config), longest_forward_tokens(config)
    if window is not None and window.tokens < longest:
        raise ConfigError(
            f"model.tree_tokens={tree_tokens} merges responses, which needs full attention in each layer; "
            f"model.path={folder} has {window.name}={window.tokens}, below the longest sequence of {longest} tokens "
            "(rollout.max_prompt_tokens or privileged.max_tokens, and the response). Set model.tree_tokens=0."
        )


def check_longrope(config: Config, folder: Path, model_config: Any) -> None:
    """Refuse sequences longer than the model's original context, if its positions are longrope's: vLLM then takes the
    long factors for all sequences, transformers only for batches that are as long, so that they compute different
    log-probabilities.

    Raises:
        ConfigError: the longest sequence of the run is above the original context.
    """
    original, longest = longrope_original_tokens(model_config.get_text_config()), longest_forward_tokens(config)
    if original is not None and longest > original:
        raise ConfigError(
            f"model.path={folder} has longrope with original_max_position_embeddings={original}, and the longest "
            f"sequence of the run has {longest} tokens: above {original} vLLM takes other position factors for all "
            "sequences, the learners only for those that are as long, and they would not agree. Lower "
            f"rollout.max_prompt_tokens={config.rollout.max_prompt_tokens}, privileged.max_tokens="
            f"{config.privileged.max_tokens} and the response tokens so that each prompt and response has at most "
            f"{original}."
        )
