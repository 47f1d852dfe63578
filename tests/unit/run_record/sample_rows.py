"""Builders of records for tests: prompts, rollouts, scored examples and batches."""

from __future__ import annotations

import numpy as np

from demopsd_dist.data.packing import pack
from demopsd_dist.data.records import BatchSize, Prompt, Question, Rollout, ScoredExample, TrainBatch, TrainingExample


def prompt(name: str = "q", length: int = 5, answer: str = "1") -> Prompt:
    question = Question(id=name, text=f"question {name}", answer=answer, field="physics")
    return Prompt(question, np.arange(length, dtype=np.int32))


def rollout(
    of: Prompt, sample: int = 0, text: str = "<answer>1</answer>", length: int = 4, version: int = 0
) -> Rollout:
    return Rollout(
        prompt=of,
        sample=sample,
        tokens_T=np.arange(length, dtype=np.int32) + 20,
        logp_T=np.full(length, -0.5, np.float32),
        text=text,
        truncated=False,
        version_T=np.full(length, version, np.int32),
        worker=0,
    )


def scored(name: str, prompt_length: int, response_length: int, atoms: int = 4) -> ScoredExample:
    example = TrainingExample(
        rollout(prompt(name, prompt_length), length=response_length), 1.0, 0.0, np.arange(9, dtype=np.int32)
    )
    values = np.zeros((response_length, atoms), np.float32)
    return ScoredExample(example, np.zeros((response_length, atoms - 1), np.int32), values, values)


def packed(items: list[ScoredExample], dp_size: int, micro_batch_tokens: int, tree_tokens: int = 2048) -> TrainBatch:
    """A batch whose loss is a mean over its own examples."""
    size = BatchSize(sum(item.example.response_length_tokens for item in items), len(items))
    return pack(items, size, dp_size, micro_batch_tokens, tree_tokens)
