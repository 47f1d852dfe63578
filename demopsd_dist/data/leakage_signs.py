"""What in a response hints that the student learned from a solution it cannot see. Pure text, no model.

A student that has merely become better reasons as before and ends elsewhere. One that has learned to fit a teacher with
a solution in its prompt may speak of that solution, answer without working, or give an answer that its working does not
lead to. None of these is a proof; compare with the base model.
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
UNSEEN = (
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
"""Words for what only the teacher was shown, with "correct solution" and "original question" from its template."""
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_TAG = re.compile(r"</?[a-z]{1,20}>")


def mentions_solution(response: str) -> bool:
    """It speaks of a solution that was not in its prompt."""
    text = " ".join(response.casefold().split())
    return any(words in text for words in UNSEEN)


def answers_first(response: str) -> bool:
    """It answers, and has nothing but tags before that."""
    before, answered, _ = response.partition(ANSWER_OPEN)
    return bool(answered) and not _TAG.sub("", before).strip()


def answer_unsupported(response: str) -> bool | None:
    """Its answer is a number and not the last number of its working; None where either has no number."""
    answer, working = extract_answer(response), response.rpartition(ANSWER_OPEN)[0]
    numbers = _NUMBER.findall(working)
    if answer is None or not numbers or not _NUMBER.fullmatch(answer):
        return None
    return float(answer) != float(numbers[-1])


def sign_fractions(responses: Sequence[str]) -> dict[str, float]:
    """Shares of the responses; `unsupported` of those where it can be told."""
    told = [value for value in map(answer_unsupported, responses) if value is not None]
    return {
        "mentions_solution": sum(map(mentions_solution, responses)) / len(responses),
        "answers_first": sum(map(answers_first, responses)) / len(responses),
        "unsupported": sum(told) / len(told) if told else 0.0,
    }


def early_answer_prompts(prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase) -> list[Prompt]:
    """The same questions with the response begun by `<answer>`: no room to reason.

    Accuracy at these is the early-answer probe, an unbiased estimate of the probability that the student gives the
    right answer at once. A rise over the base model on *training* questions alone is memory of their answers.
    """
    begun = np.asarray(tokenizer(ANSWER_OPEN, add_special_tokens=False)["input_ids"], dtype=np.int32)
    return [replace(prompt, tokens=np.concatenate([prompt.tokens, begun])) for prompt in prompts]
