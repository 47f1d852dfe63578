"""Signs in a response that the student learned from a solution it cannot see. Pure text, no model.

A student that has become better reasons as before and reaches other answers. A student that has learned to imitate a
teacher with a solution in its prompt may mention that solution, answer without reasoning, or give an answer that its
reasoning does not lead to. No sign is a proof; compare with the base model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from demopsd_dist.data.records import Prompt
from demopsd_dist.data.rewards import extract_answer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANSWER_OPEN = "<answer>"
SOLUTION_PHRASES = (
    "correct solution",
    "given solution",
    "provided solution",
    "reference solution",
    "shown solution",
    "solution above",
    "solution given",
    "solution shown",
    "solution provided",
    "original question",
    "reference answer",
    "given answer",
    "answer above",
)
"""Phrases for text that only the teacher sees; "correct solution" and "original question" are from its template."""
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_TAG = re.compile(r"</?[a-z]{1,20}>")


def mentions_solution(response: str) -> bool:
    """True where the response mentions a solution, which was not in its prompt."""
    text = " ".join(response.casefold().split())
    return any(words in text for words in SOLUTION_PHRASES)


def answers_first(response: str) -> bool:
    """True where the response has an answer and nothing but tags before it."""
    before, answer, _ = response.partition(ANSWER_OPEN)
    return bool(answer) and not _TAG.sub("", before).strip()


def answer_unsupported(response: str) -> bool | None:
    """True where the answer is not the last number of the reasoning; None where either is not a number."""
    answer, reasoning = extract_answer(response), response.rpartition(ANSWER_OPEN)[0]
    numbers = _NUMBER.findall(reasoning)
    if answer is None or not numbers or not _NUMBER.fullmatch(answer):
        return None
    return float(answer) != float(numbers[-1])


def sign_fractions(responses: Sequence[str]) -> dict[str, float]:
    """Fraction of the responses with each sign; `unsupported` counts only responses where it is not None."""
    decided = [value for value in map(answer_unsupported, responses) if value is not None]
    return {
        "mentions_solution": sum(map(mentions_solution, responses)) / len(responses),
        "answers_first": sum(map(answers_first, responses)) / len(responses),
        "unsupported": sum(decided) / len(decided) if decided else 0.0,
    }


def early_answer_prompts(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, opening: str = ANSWER_OPEN
) -> list[Prompt]:
    """The same questions with a response that begins with `opening`, which leaves no space for reasoning.

    It counts as outside of a thought that the chat template has opened.

    Accuracy at these is the early-answer probe, an unbiased estimate of the probability that the student gives the
    right answer at once. A rise over the base model on *training* questions alone means memorized answers.
    """
    answer_tokens = np.asarray(tokenizer(opening, add_special_tokens=False)["input_ids"], dtype=np.int32)
    return [
        replace(prompt, tokens=np.concatenate([prompt.tokens, answer_tokens]), opens_thought=False)
        for prompt in prompts
    ]
