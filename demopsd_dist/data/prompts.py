"""The two views of a question: the student's, and the teacher's that also shows a correct solution.

The template is filled by plain splitting at its placeholders, never by `format` or a template engine, so that braces,
`$`, `%s` and LaTeX in questions and solutions go through untouched. Source: arXiv 2607.02502, section 4.4 (the wording
follows SDPO's reprompt template).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from demopsd_dist.data.records import Prompt, Question, Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PRIVILEGED_TEMPLATE = "{prompt}\n\nCorrect solution:\n\n{solution}\n\nCorrectly solve the original question."
_PLACEHOLDER = re.compile(r"\{(prompt|solution)\}")
_THINK_OPEN, _THINK_CLOSE = "<think>", "</think>"


def fill(template: str, *, prompt: str, solution: str) -> str:
    """Put `prompt` and `solution` at their placeholders; whatever they contain is never read as a placeholder."""
    values = {"prompt": prompt, "solution": solution}
    return _PLACEHOLDER.sub(lambda match: values[match.group(1)], template)


def strip_thinking(text: str) -> str:
    """Drop `<think>...</think>` blocks; of an unclosed or unopened one, the thinking side. Linear in the text."""
    head, closed, tail = text.rpartition(_THINK_CLOSE)
    if closed and _THINK_OPEN not in head:
        return tail.strip()
    kept: list[str] = []
    position = 0
    while (start := text.find(_THINK_OPEN, position)) >= 0:
        kept.append(text[position:start])
        end = text.find(_THINK_CLOSE, start)
        if end < 0:
            return "".join(kept).strip()
        position = end + len(_THINK_CLOSE)
    kept.append(text[position:])
    return "".join(kept).strip()


@dataclass(frozen=True)
class PromptBuilder:
    """Questions to token ids, through the model's own chat template.

    Args:
        tokenizer: a Hugging Face fast tokenizer with a chat template.
        template: holds `{prompt}` and `{solution}` once each.
        max_privileged_tokens: bound of the teacher's prompt; the *solution* is cut from the right to fit it, the
            question and the closing instruction never are.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str = PRIVILEGED_TEMPLATE
    max_privileged_tokens: int = 10_240

    def student(self, question: Question) -> Prompt:
        return Prompt(question, self._chat(question, question.text))

    def privileged(self, question: Question, solution: str) -> Tokens:
        """The teacher's prompt. A solution that does not fit is cut on the right, to the largest part that does."""
        solution = strip_thinking(solution)
        tokens = self._privileged(question, solution)
        if len(tokens) <= self.max_privileged_tokens:
            return tokens
        pieces = self.tokenizer(solution, add_special_tokens=False, return_offsets_mapping=True)
        ends = [end for _, end in pieces["offset_mapping"]]
        keep = len(ends) - (len(tokens) - self.max_privileged_tokens)
        while keep > 0:
            tokens = self._privileged(question, solution[: ends[keep - 1]])
            if len(tokens) <= self.max_privileged_tokens:
                return tokens
            keep -= len(tokens) - self.max_privileged_tokens  # a cut word may have become more tokens
        return self._privileged(question, "")

    def _privileged(self, question: Question, solution: str) -> Tokens:
        return self._chat(question, fill(self.template, prompt=question.text, solution=solution))

    def _chat(self, question: Question, content: str) -> Tokens:
        messages = [{"role": "user", "content": content}]
        if question.system is not None:
            messages.insert(0, {"role": "system", "content": question.system})
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return np.asarray(self.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int32)
