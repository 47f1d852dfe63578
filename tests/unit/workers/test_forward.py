"""Shared forward: padding, merging of siblings and slicing change no result."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from demopsd_dist.config import Precision
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.objective import OutputHead, coarsen, fused_loss
from workers.forward import PaddedBatch, ResponseModel, in_slices, load_causal_lm, support_tensor

Sample = tuple[np.ndarray, np.ndarray]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def student() -> ResponseModel:
    return ResponseModel(load_causal_lm(MODEL_DIR, Precision.float32).eval())


@pytest.fixture(scope="module")
def groups() -> list[list[Sample]]:
    """Responses to two questions. In the first group one response is a prefix of another, and two are the same."""
    rng = np.random.default_rng(0)

    def tokens(count: int) -> np.ndarray:
        return rng.integers(0, 256, count).astype(np.int32)

    prompt, response = tokens(30), tokens(12)
    other = np.concatenate([response[:5], tokens(9)])
    first = [(prompt, r) for r in (response, response[:7], other, response, tokens(1), tokens(3))]
    second = [(question, tokens(40)) for question in [tokens(5)] * 3]
    return [first, second]


def logits_one_by_one(student: ResponseModel, samples: list[Sample]) -> Tensor:
    """Logits (N, V) of one sample at a time, by transformers itself."""
    rows = []
    for prompt, response in samples:
        tokens = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))[None]
        rows.append(student.model(tokens).logits[0, len(prompt) - 1 : -1])
    return torch.cat(rows)


def layouts(groups: list[list[Sample]]) -> dict[str, list[list[Sample]]]:
    return {
        "padded": [[sample] for group in groups for sample in group],
        "merged": groups,
        "all in one row": [[sample for group in groups for sample in group]],
    }


def test_every_layout_gives_the_logits_of_one_at_a_time(student: ResponseModel, groups: list[list[Sample]]) -> None:
    samples = [sample for group in groups for sample in group]
    with torch.inference_mode():
        expected = logits_one_by_one(student, samples)
        for name, rows in layouts(groups).items():
            batch = PaddedBatch(rows, CPU)
            torch.testing.assert_close(
                batch.response_N, torch.from_numpy(np.concatenate([r for _, r in samples])).long()
            )
            torch.testing.assert_close(student(batch, OutputHead.logits), expected, atol=1e-4, rtol=1e-4, msg=name)
            assert [len(piece) for piece in batch.split(expected)] == [len(r) for _, r in samples]
    tokens = {name: PaddedBatch(rows, CPU).tokens_BL.numel() for name, rows in layouts(groups).items()}
    assert tokens["all in one row"] < tokens["merged"] < tokens["padded"]


def test_a_head_in_slices_gives_the_same(student: ResponseModel, groups: list[list[Sample]]) -> None:
    batch = PaddedBatch(groups, CPU)
    ids = support_tensor([np.tile(np.arange(7, dtype=np.int32), (n, 1)) for n in batch.lengths], CPU)
    assert ids is not None
    with torch.inference_mode():
        sliced = student(batch, in_slices(lambda logits, tokens: coarsen(logits, ids[tokens])))
        torch.testing.assert_close(sliced, coarsen(student(batch, OutputHead.logits), ids), atol=1e-5, rtol=1e-5)


def test_every_layout_gives_the_same_gradient(student: ResponseModel, groups: list[list[Sample]]) -> None:
    """Gradient of the fused loss: mean log-probability of the sampled tokens, each token with a weight of its own."""
    gradients: dict[str, dict[str, Tensor]] = {}
    for name, rows in layouts(groups).items():
        batch = PaddedBatch(rows, CPU)
        weight_N = torch.linspace(-1.0, 2.0, len(batch.response_N)) / len(batch.response_N)

        def loss_of(part, batch=batch, weight_N=weight_N) -> Tensor:
            return (weight_N[part.tokens] * part.student_logp_NA[:, 0]).sum()

        student.zero_grad()
        student(
            batch, lambda head, h, batch=batch, of=loss_of: fused_loss(h, head, batch.response_N[:, None], of)
        ).backward()
        gradients[name] = {
            key: value.grad.clone() for key, value in student.named_parameters() if value.grad is not None
        }
    for name, by_parameter in gradients.items():
        assert len(by_parameter) == len(list(student.parameters()))
        for key, value in by_parameter.items():
            torch.testing.assert_close(value, gradients["padded"][key], atol=1e-5, rtol=1e-4, msg=f"{name}: {key}")
