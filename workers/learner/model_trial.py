"""Trial of a model with its real weights, before any rollout engine starts: what the learners would compute is compared
with the model's own logits, and a merged row with its responses alone. No list of known models is complete."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from demopsd_dist.data.records import Tokens
from demopsd_dist.objective import OutputHead
from demopsd_dist.util.errors import ConfigError
from workers.forward import PaddedBatch, ResponseModel, decoder_of, vocabulary_rows

PROMPT_TOKENS, RESPONSE_TOKENS, SHARED_TOKENS = 12, 9, 3
AMPLIFICATION = 8.0  # of the last hidden states: a soft cap that changes small logits little changes large ones much
LEAST_DIFFERENCE = 1e-4  # of the largest logit, above float32 rounding
TREE_ROUNDING = (1e-3, 1e-4)  # difference of a token's distribution: share of the spread of its logits; nats
HALF_TREE_ROUNDING = (0.2, 0.05)  # the same in half precision
SIBLING_ROUNDING = 1e-2  # share, where the shape of the row is the same

Sample = tuple[Tokens, Tokens]


@torch.no_grad()  # not inference mode: some models keep tensors of a forward, which training reads
def try_model(causal: Any, folder: Path, tree_tokens: int) -> None:
    """Run a few tokens through a model.

    Args:
        causal: a transformers causal language model on the CPU or a GPU, in eval mode.
        folder: for messages.
        tree_tokens: `model.tree_tokens`; 0 for no merged rows.

    Raises:
        ConfigError: the model cannot be trained, or not with merged rows.
    """
    prompt, response, other = _tokens(vocabulary_rows(causal))
    samples = [(prompt, response), (prompt, np.concatenate([response[:SHARED_TOKENS], other]))]
    _refuse_other_logits(causal, folder, samples[0])
    if tree_tokens:
        _refuse_other_tree_rows(causal, folder, samples, tree_tokens)


def _tokens(vocabulary: int) -> tuple[Tokens, Tokens, Tokens]:
    """Random ids for a prompt, a response and the end of another, the same in every run."""
    rng = np.random.default_rng(1)
    sizes = (PROMPT_TOKENS, RESPONSE_TOKENS, RESPONSE_TOKENS)
    prompt, response, other = (rng.integers(0, vocabulary, size).astype(np.int32) for size in sizes)
    return prompt, response, other


def _refuse_other_logits(causal: Any, folder: Path, sample: Sample) -> None:
    """Compare the head on the last hidden states with the model's own logits."""
    name = f"model.path={folder}: {type(causal).__name__}"
    batch = PaddedBatch([[sample]], next(causal.parameters()).device)
    try:
        with _amplified(decoder_of(causal)):
            own_NV = causal(input_ids=batch.tokens_BL, use_cache=False).logits[batch.row_N, batch.position_N]
            head_NV = ResponseModel(causal)(batch, OutputHead.logits)
    except Exception as error:
        raise ConfigError(
            f"{name} is not supported: a forward of {batch.tokens_BL.shape[1]} tokens fails: {type(error).__name__}: "
            f"{error}"
        ) from None
    if own_NV.shape != head_NV.shape:
        raise ConfigError(
            f"{name} is not supported: its logits have the shape {list(own_NV.shape)}, those of its head "
            f"{list(head_NV.shape)}."
        )
    allowed = max(LEAST_DIFFERENCE, 4 * torch.finfo(own_NV.dtype).eps) * float(own_NV.float().abs().max())
    difference = float((own_NV.float() - head_NV.float()).abs().max())
    if not difference <= allowed:
        raise ConfigError(
            f"{name} is not supported: its logits differ by up to {difference:.3g} from its last hidden states times "
            f"its head, with the scale and soft cap that its config.json names ({allowed:.3g} would be rounding). It "
            "computes something else in between, and would be trained wrongly. Use another model."
        )


@contextmanager
def _amplified(decoder: nn.Module) -> Iterator[None]:
    """Multiply the last hidden states that every forward of the decoder returns."""

    def amplify(module: nn.Module, inputs: object, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state * AMPLIFICATION
        return output

    hook = decoder.register_forward_hook(amplify)
    try:
        yield
    finally:
        hook.remove()


def _refuse_other_tree_rows(causal: Any, folder: Path, samples: list[Sample], tree_tokens: int) -> None:
    """Compare two responses merged in one row with each alone."""
    device, model = next(causal.parameters()).device, ResponseModel(causal)
    alone_NV = torch.cat([model(PaddedBatch([[sample]], device), OutputHead.logits) for sample in samples])
    merges = f"model.tree_tokens={tree_tokens} merges responses to a question in one row"
    try:
        merged_NV = model(PaddedBatch([samples], device), OutputHead.logits)
    except Exception as error:
        raise ConfigError(
            f"{merges}, with a mask and positions that {type(causal).__name__} of model.path={folder} does not take "
            f"({type(error).__name__}: {error}). Set model.tree_tokens=0."
        ) from None
    share, nats = _difference(merged_NV, alone_NV)
    is_half = torch.finfo(next(causal.parameters()).dtype).bits < 32
    most_share, most_nats = HALF_TREE_ROUNDING if is_half else TREE_ROUNDING
    if not (share <= most_share or nats <= most_nats) or _sees_its_sibling(model, samples, merged_NV):
        raise ConfigError(
            f"{merges}; in {type(causal).__name__} of model.path={folder} log-probabilities then differ by up to "
            f"{nats:.3g} nats from those of each response alone. Set model.tree_tokens=0."
        )


def _sees_its_sibling(model: ResponseModel, samples: list[Sample], merged_NV: Tensor) -> bool:
    """Whether the second response's logits change with the last tokens of the first, in a row of the same shape: a test
    without the rounding that hides small differences in half precision."""
    (prompt, response), other = samples
    changed = response.copy()
    changed[SHARED_TOKENS + 1 :] = changed[SHARED_TOKENS + 1 :][::-1]
    again_NV = model(PaddedBatch([[(prompt, changed), other]], merged_NV.device), OutputHead.logits)
    share, _ = _difference(again_NV[len(response) :], merged_NV[len(response) :])
    return share > SIBLING_ROUNDING


def _difference(one_NV: Tensor, other_NV: Tensor) -> tuple[float, float]:
    """Largest difference of a token's distribution: as a share of the spread of its logits, and in nats."""
    one_NV, other_NV = one_NV.float().log_softmax(-1), other_NV.float().log_softmax(-1)
    difference_NV = one_NV - other_NV
    spread_N = other_NV.std(-1)
    return float((difference_NV.square().mean(-1).sqrt() / spread_N).max()), float(difference_NV.abs().max())
