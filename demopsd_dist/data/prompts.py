"""Prompts of the student, and privileged prompts of the teacher with correct solutions, feedback or both.

The template is filled by replacing its placeholders, never by `format` or a template engine, so that braces, `$`, `%s`
and LaTeX in questions and solutions stay as they are. Special tokens are special where the chat template puts them,
and plain text wherever else they are written. Source: arXiv 2607.02502, section 4.4 (the wording follows SDPO's
reprompt template).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from demopsd_dist.data.chat_template import ChatSettings, ChatTemplate
from demopsd_dist.data.records import Prompt, Question, Tokens
from demopsd_dist.data.template_checks import check_template, shows_date
from demopsd_dist.data.thinking import opens_thought, strip_thinking
from demopsd_dist.util.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PRIVILEGED_TEMPLATE = "{prompt}{solution}{feedback}\n\nCorrectly solve the original question."
SOLUTION_TEMPLATE = "\n\nCorrect solution:\n\n{solution}"
FEEDBACK_TEMPLATE = "\n\nFeedback on your earlier attempt:\n\n{feedback}"
_PLACEHOLDER = re.compile(r"\{(prompt|solution|feedback)\}")
_TAIL_TOKENS = 16  # tokens at the end of a prompt that hold its `<think>`, if there is one; bytes at worst


def fill(template: str, **values: str) -> str:
    """Replace each placeholder by its value; text in a value is never read as a placeholder.

    Placeholders are `{prompt}`, `{solution}` and `{feedback}`; one without a value stays as it is.
    """
    return _PLACEHOLDER.sub(lambda match: values.get(match.group(1), match.group()), template)


@dataclass(frozen=True)
class PromptBuilder:
    """Builder of prompts: questions to token ids, through the model's own chat template.

    Args:
        tokenizer: a Hugging Face fast tokenizer with a chat template.
        template: holds `{prompt}` and `{solution}` once each, and `{feedback}` once if feedback is to be shown.
        max_privileged_tokens: bound of the teacher's prompt; the *solution* is cut from the right to fit it, then the
            feedback; the question and the closing instruction never are.
        solution_template: text that replaces `{solution}` in `template`; without a solution, nothing does.
        feedback_template: text that replaces `{feedback}` in `template`; without feedback, nothing does.
        chat: settings of the chat template.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str = PRIVILEGED_TEMPLATE
    max_privileged_tokens: int = 10_240
    solution_template: str = SOLUTION_TEMPLATE
    feedback_template: str = FEEDBACK_TEMPLATE
    chat: ChatSettings = field(default_factory=ChatSettings)

    def check(self, questions: Iterable[Question]) -> None:
        """Check the chat template in each view, with and without a system text as these questions have them.

        Raises:
            ConfigError: with the reason and the remedy.
        """
        views, kinds = (self._student, self._teacher, self._evaluation), {q.system is not None for q in questions}
        for has_system in sorted(kinds):
            for view in views:
                check_template(view, has_system=has_system)
        if kinds and self.chat.date is not None and not any(shows_date(v, has_system=k) for v in views for k in kinds):
            raise self._student.refusal(
                f"its chat template shows no date, so model.template_date={self.chat.date} does nothing. Leave it out"
            )

    def student(self, question: Question) -> Prompt:
        """The student's prompt."""
        return self._prompt(self._student, question)

    def evaluation(self, question: Question) -> Prompt:
        """The prompt for an evaluation, which may have other values for the chat template."""
        return self._prompt(self._evaluation, question)

    def _prompt(self, view: ChatTemplate, question: Question) -> Prompt:
        tokens = self._chat(view, question, question.text)
        return Prompt(question, tokens, opens_thought(self.tokenizer.decode(tokens[-_TAIL_TOKENS:])))

    def privileged(
        self, question: Question, solution: str | Sequence[str] | None, feedback: str | None = None
    ) -> Tokens:
        """The teacher's prompt.

        Solutions and feedback are cut on the right to the longest text that fits, the last solution first and the
        feedback last; a missing, blank or empty one leaves no heading behind. Of a solution the thought is left out.
        """
        return self.privileged_or_cut(question, solution, feedback)[0]

    def privileged_or_cut(
        self, question: Question, solution: str | Sequence[str] | None, feedback: str | None = None
    ) -> tuple[Tokens, bool]:
        """The teacher's prompt, and whether a solution or the feedback was cut to fit it."""
        solutions = [solution] if isinstance(solution, str) else list(solution or ())
        texts = [*map(strip_thinking, solutions), feedback or ""]
        tokens = self._privileged(question, texts)
        cut = len(tokens) > self.max_privileged_tokens
        for i in (*reversed(range(len(solutions))), len(solutions)):
            excess, text = len(tokens) - self.max_privileged_tokens, texts[i]
            if excess <= 0:
                break
            pieces = self.tokenizer(
                text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
            )
            ends = [0, *(end for _, end in pieces["offset_mapping"])]
            length = len(ends) - 1  # tokens of the text that remain
            while excess > 0 and length > 0:
                length = max(length - excess, 0)  # again where a cut word has become more tokens
                texts[i] = text[: ends[length]]
                tokens = self._privileged(question, texts)
                excess = len(tokens) - self.max_privileged_tokens
        return tokens, cut

    def _privileged(self, question: Question, texts: Sequence[str]) -> Tokens:
        """The teacher's prompt of solutions and, at the end of `texts`, the feedback."""
        *solutions, feedback = texts
        sections = {
            "solution": "".join(fill(self.solution_template, solution=text) for text in solutions if text.strip()),
            "feedback": fill(self.feedback_template, feedback=feedback) if feedback.strip() else "",
        }
        return self._chat(self._teacher, question, fill(self.template, prompt=question.text, **sections))

    def _view(self, kwargs: Mapping[str, object]) -> ChatTemplate:
        return ChatTemplate(self.tokenizer, kwargs, self.chat.fold_system, self.chat.date)

    @cached_property
    def _student(self) -> ChatTemplate:
        return self._view(self.chat.student)

    @cached_property
    def _teacher(self) -> ChatTemplate:
        return self._view(self.chat.teacher)

    @cached_property
    def _evaluation(self) -> ChatTemplate:
        return self._view(self.chat.evaluation)

    def _chat(self, view: ChatTemplate, question: Question, content: str) -> Tokens:
        """Token ids of a chat: the system message, if any, the question's earlier turns, and `content` as the user's.

        Special tokens in the texts are replaced by stand-ins before the chat template puts in its own, so that the
        two can be distinguished.
        """
        stand_ins = self._stand_ins((question.system or "", content, *(said for _, said in question.history)))
        system = None if question.system is None else _replace_all(question.system, stand_ins)
        history = [(role, _replace_all(said, stand_ins)) for role, said in question.history]
        text = view.render(_replace_all(content, stand_ins), system, history)
        originals = {stand_in: token for token, stand_in in stand_ins.items()}
        return np.asarray(self._ids(text, originals), dtype=np.int32)

    @cached_property
    def _special_ids(self) -> dict[str, int]:
        """Ids of the special tokens by their text, the longest first."""
        added = self.tokenizer.added_tokens_decoder.items()
        special = {token.content: id for id, token in added if token.special}
        return dict(sorted(special.items(), key=lambda item: -len(item[0])))

    def _stand_ins(self, texts: Sequence[str]) -> dict[str, str]:
        """Stand-ins for the special tokens that occur in these texts; no stand-in occurs in a text."""
        tokens = [token for token in self._special_ids if any(token in text for text in texts)]
        candidates = (f"\ue000{i}\ue001" for i in count())
        unused = (candidate for candidate in candidates if not any(candidate in text for text in texts))
        return dict(zip(tokens, unused, strict=False))

    def _ids(self, text: str, originals: dict[str, str]) -> list[int]:
        """Token ids of a rendered chat, in which each stand-in is tokenized as the plain text of its original."""
        if not originals:
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]
        rendered = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids: list[int] = []
        pending: list[int] = []  # tokens since the last special one
        begin = 0
        for token, (start, end) in zip(rendered["input_ids"], rendered["offset_mapping"], strict=True):
            if self._special_ids.get(text[start:end].strip()) != token:  # one for an unknown word may be special too
                pending.append(token)
                continue
            ids += [*self._plain_ids(text[begin:start], pending, originals), token]
            pending, begin = [], end
        return ids + self._plain_ids(text[begin:], pending, originals)

    def _plain_ids(self, text: str, tokens: list[int], originals: dict[str, str]) -> list[int]:
        """Token ids of a text between special tokens; `tokens` are those of the text with its stand-ins."""
        original = _replace_all(text, originals)
        if original == text:
            return tokens
        ids = self.tokenizer(original, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        for token in originals.values():
            if self._special_ids[token] in ids:
                raise DataError(
                    f"a text holds {token!r}, which this model's tokenizer cannot take as plain text. Take it out."
                )
        return ids


def _replace_all(text: str, replacements: dict[str, str]) -> str:
    for old, new in replacements.items():
        text = text.replace(old, new)
    return text
