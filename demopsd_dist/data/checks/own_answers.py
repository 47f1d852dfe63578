r"""Check before a run: the reward marks each record's expected answer, written in the form that its prompt asks for.

A prompt asks for a form where it holds `<answer>`, `\boxed` or `####`; else the reward's own form counts. A record of
which the reward marks the expected answer wrong can never be answered right.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from demopsd_dist.data.examples import SUCCESS
from demopsd_dist.data.records import Question, RewardResult
from demopsd_dist.data.rewards import ANSWER_FORMS, Reward, answer_form, same_answer
from demopsd_dist.data.rewards.extraction import lone_letter
from demopsd_dist.util.errors import RewardError

CHECK_S = 20.0
"""Time after which the check of a data set ends; the records are checked in a random order, always the same."""
OWN_REWARD_RECORDS = 8
"""Number of records of a data set on which a reward of the user's own is called."""
MOST = 0.5
"""Share of wrong records above which a run with a built-in reward is refused."""
ASKED = {
    "answer": re.compile("<answer>"),
    "boxed": re.compile(r"\\boxed(?!\s?\{[^{}\n]{1,200}\}(?:-|\s?[+*/^=<>]\s?)[\w\\(])"),
    "gsm8k": re.compile(
        r"(?<!#)####(?!#)(?!(?<![^\n]####)[ \t]+(?![^\n]*[Aa]nswer)[A-Za-z][A-Za-z ,:'-]{0,80}\n\s*\S)"
    ),
}
"""Mark of each form in a prompt that asks for it: no box that is part of a formula, and no heading of Markdown."""
_ANY_FORM = ("answer", "boxed", "gsm8k", "letter")
_ALONE = "Name the field of the answer alone in data.fields.answer."
_QUOTED_CHARS = 80
_TRIED = 200  # records on which other rewards are tried, for the fix


@dataclass(frozen=True)
class WrongRecord:
    """A record of which the reward marks its own expected answer wrong.

    Attributes:
        written: the last response that was tried.
        read: the answer that the reward reads in it; None where it reads none.
    """

    question: Question
    reason: str
    written: str
    read: str | None


@dataclass(frozen=True)
class OwnAnswers:
    """Result of the check of one data set.

    Attributes:
        questions: number of its questions.
        checked: number of questions that were checked.
        unasked: number of questions whose prompt asks for no form of an answer. A letter needs none where the reward
            is `auto`.
    """

    questions: int
    checked: int
    wrong: Sequence[WrongRecord] = ()
    unasked: int = 0
    reasons: dict[str, int] = field(default_factory=dict)

    @property
    def mostly_wrong(self) -> bool:
        """True where more than `MOST` of the checked records are wrong."""
        return len(self.wrong) > MOST * self.checked


def check_own_answers(questions: Sequence[Question], reward: Reward, within_s: float = CHECK_S) -> OwnAnswers:
    """Put the expected answer of each question through the reward.

    A built-in reward is called on every question, one of the user's own on `OWN_REWARD_RECORDS` of them, in every form
    until one is a success. After `within_s` seconds the rest is left.
    """
    started = time.monotonic()
    order = list(range(len(questions)))
    random.Random("own answers").shuffle(order)
    if not is_built_in(reward):
        order = order[:OWN_REWARD_RECORDS]
    wrong: dict[int, WrongRecord] = {}
    checked = 0
    for index in order:
        if time.monotonic() - started > within_s:
            break
        checked += 1
        if (record := _wrong_record(questions[index], reward)) is not None:
            wrong[index] = record
    reasons: dict[str, int] = {}
    for index in sorted(wrong):
        reasons[wrong[index].reason] = reasons.get(wrong[index].reason, 0) + 1
    unasked = sum(not asked_forms(question) and not _is_plain_letter(question, reward) for question in questions)
    return OwnAnswers(len(questions), checked, [wrong[index] for index in sorted(wrong)], unasked, reasons)


def is_built_in(reward: Reward) -> bool:
    return reward.name in ANSWER_FORMS


def asked_forms(question: Question) -> list[str]:
    """Names of the forms that a question asks for in its texts."""
    texts = [question.system or "", *(said for _, said in question.history), question.text]
    return [name for name, mark in ASKED.items() if any(mark.search(text) for text in texts)]


def _is_plain_letter(question: Question, reward: Reward) -> bool:
    return reward.name == "auto" and lone_letter(question.answer) is not None


def _wrong_record(question: Question, reward: Reward) -> WrongRecord | None:
    """The question with the reason that its own answer is wrong; None where the reward marks it right."""
    asked = asked_forms(question)
    if is_built_in(reward):
        responses = [answer_form(name).write(question.answer) for name in asked or [reward.name]]
    else:
        names = list(dict.fromkeys([*asked, *_ANY_FORM]))
        responses = [question.answer, *(answer_form(name).write(question.answer) for name in names)]
    reason = ""
    for response in responses:
        try:
            result: RewardResult | RewardError = reward(response, question)
        except RewardError as error:
            result = error
        if isinstance(result, RewardResult) and result.reward >= SUCCESS:
            return None
        reason = _reason(reward, response, result, asked)
    return WrongRecord(question, reason, responses[-1], reward.extract(responses[-1]))


def _reason(reward: Reward, response: str, result: RewardResult | RewardError, asked: Sequence[str]) -> str:
    """Reason for a wrong answer, the same for all records of its kind."""
    if isinstance(result, RewardError):
        return "the reward fails"
    if not is_built_in(reward):
        return "the reward is below 0.5 in every form"
    if reward.extract(response) is not None:
        return "another answer is read in it"
    forms = " or ".join(answer_form(name).write("...") for name in asked)
    return f"the prompt asks for {forms}, in which none is read" if forms else "no answer is read in it"


def likely_fix(reward: Reward, wrong: Sequence[WrongRecord]) -> str:
    """The setting that would mark most of these records right, as a sentence."""
    tried = [record.question for record in wrong[:_TRIED]]
    asked = any(asked_forms(question) for question in tried)
    holds_form = sum(any(mark.search(question.answer) for mark in ASKED.values()) for question in tried)
    if holds_form > MOST * len(tried):
        return _ALONE
    for name in ("answer", "boxed", "gsm8k", "letter"):
        form, right = ANSWER_FORMS[name], 0
        for question in tried:
            responses = [answer_form(one).write(question.answer) for one in asked_forms(question) or [name]]
            answers = [form.extract(response) for response in responses]
            right += any(answer is not None and same_answer(answer, question.answer) for answer in answers)
        if name != reward.name and right > MOST * len(tried):
            request = "" if asked else f", with a data.suffix that asks for {form.write('X')}"
            return f"Set reward={name}{request}."
    return _ALONE


def quoted(text: str) -> str:
    """A text for a message, at most `_QUOTED_CHARS` characters of it."""
    return repr(text) if len(text) <= _QUOTED_CHARS else f"{text[:_QUOTED_CHARS]!r}..."
