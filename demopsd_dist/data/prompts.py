"""The two views of a question: the student's, and the teacher's that also shows a correct solution, feedback or both.

The template is filled by plain splitting at its placeholders, never by `format` or a template engine, so that braces,
`$`, `%s` and LaTeX in questions and solutions go through untouched. Special tokens are special where the chat template
puts them, and plain text wherever else they are written. Source: arXiv 2607.02502, section 4.4 (the wording
follows SDPO's reprompt template).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from demopsd_dist.data.records import Prompt, Question, Tokens
from demopsd_dist.util.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PRIVILEGED_TEMPLATE = "{prompt}{solution}{feedback}\n\nCorrectly solve the original question."
SOLUTION_TEMPLATE = "\n\nCorrect solution:\n\n{solution}"
FEEDBACK_TEMPLATE = "\n\nFeedback on your earlier attempt:\n\n{feedback}"
_PLACEHOLDER = re.compile(r"\{(prompt|solution|feedback)\}")
_THINK_OPEN, _THINK_CLOSE = "<think>", "</think>"


def fill(template: str, **values: str) -> str:
    """Put each value at its placeholder; whatever it contains is never read as a placeholder.

    Placeholders are `{prompt}`, `{solution}` and `{feedback}`; one without a value stays as it is.
    """
    return _PLACEHOLDER.sub(lambda match: values.get(match.group(1), match.group()), template)


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
        template: holds `{prompt}` and `{solution}` once each, and `{feedback}` once where feedback is to be shown.
        solution_template: what stands for `{solution}` in `template` where there is one; nothing where there is none.
        feedback_template: the same of `{feedback}`.
        max_privileged_tokens: bound of the teacher's prompt; the *solution* is cut from the right to fit it, then the
            feedback; the question and the closing instruction never are.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str = PRIVILEGED_TEMPLATE
    max_privileged_tokens: int = 10_240
    solution_template: str = SOLUTION_TEMPLATE
    feedback_template: str = FEEDBACK_TEMPLATE

    def student(self, question: Question) -> Prompt:
        return Prompt(question, self._chat(question, question.text))

    def privileged(self, question: Question, solution: str | None, feedback: str | None = None) -> Tokens:
        """The teacher's prompt. What does not fit is cut on the right, to the largest part that does; what is missing,
        blank or cut to nothing leaves no heading behind."""
        shown = {"solution": strip_thinking(solution or ""), "feedback": feedback or ""}
        tokens = self._privileged(question, shown)
        for name in ("solution", "feedback"):
            over, whole = len(tokens) - self.max_privileged_tokens, shown[name]
            if over <= 0:
                break
            pieces = self.tokenizer(
                whole, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
            )
            ends = [0, *(end for _, end in pieces["offset_mapping"])]
            keep = len(ends) - 1
            while over > 0 and keep > 0:
                keep = max(keep - over, 0)  # again where a cut word has become more tokens
                shown[name] = whole[: ends[keep]]
                tokens = self._privileged(question, shown)
                over = len(tokens) - self.max_privileged_tokens
        return tokens

    def _privileged(self, question: Question, shown: dict[str, str]) -> Tokens:
        templates = {"solution": self.solution_template, "feedback": self.feedback_template}
        parts = {name: fill(templates[name], **{name: text}) if text.strip() else "" for name, text in shown.items()}
        return self._chat(question, fill(self.template, prompt=question.text, **parts))

    def _chat(self, question: Question, content: str) -> Tokens:
        written = self._written((question.system or "", content))
        messages = [{"role": "user", "content": _swapped(content, written)}]
        if question.system is not None:
            messages.insert(0, {"role": "system", "content": _swapped(question.system, written)})
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return np.asarray(self._ids(text, {stand_in: token for token, stand_in in written.items()}), dtype=np.int32)

    @cached_property
    def _special(self) -> dict[str, int]:
        """Special tokens as they are written, the longest first, and their ids."""
        added = self.tokenizer.added_tokens_decoder.items()
        found = {token.content: id for id, token in added if token.special}
        return dict(sorted(found.items(), key=lambda item: -len(item[0])))

    def _written(self, texts: Sequence[str]) -> dict[str, str]:
        """The special tokens that are written out in these texts, each with a stand-in that none of them holds."""
        tokens = [token for token in self._special if any(token in text for text in texts)]
        stand_ins = (f"\ue000{i}\ue001" for i in count())
        free = (stand_in for stand_in in stand_ins if not any(stand_in in text for text in texts))
        return dict(zip(tokens, free, strict=False))

    def _ids(self, text: str, stands_for: dict[str, str]) -> list[int]:
        """Tokens of a rendered chat, with those tokens for the stand-ins that what they stand for has as plain text."""
        if not stands_for:
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]
        whole = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = []
        between: list[int] = []  # tokens since the last special one
        begin = 0
        for token, (start, end) in zip(whole["input_ids"], whole["offset_mapping"], strict=True):
            if self._special.get(text[start:end].strip()) != token:  # one for an unknown word may be special too
                between.append(token)
                continue
            ids += [*self._plain(text[begin:start], between, stands_for), token]
            between, begin = [], end
        return ids + self._plain(text[begin:], between, stands_for)

    def _plain(self, text: str, tokens: list[int], stands_for: dict[str, str]) -> list[int]:
        """`tokens` are those of the text as it is."""
        meant = _swapped(text, stands_for)
        if meant == text:
            return tokens
        found = self.tokenizer(meant, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        for token in stands_for.values():
            if self._special[token] in found:
                raise DataError(
                    f"a text holds {token!r}, which this model's tokenizer cannot take as plain text. Take it out."
                )
        return found


def _swapped(text: str, others: dict[str, str]) -> str:
    for one, other in others.items():
        text = text.replace(one, other)
    return text
