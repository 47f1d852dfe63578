"""What a response is worth: the built-in rewards, and a user's own by its dotted path. See docs/rewards.md."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from demopsd_dist.config import Limits, RewardErrors
from demopsd_dist.data.records import Question, RewardResult
from demopsd_dist.data.rewards.extraction import (
    extract_answer,
    extract_any,
    extract_boxed,
    extract_letter,
    same_answer,
)
from demopsd_dist.data.rewards.own_reward import SIGNATURE, NoRewardError, OwnReward, marked
from demopsd_dist.util.errors import ConfigError, RewardError

_SHOWN_CHARS = 200


@dataclass(frozen=True)
class Form:
    """How a response states its answer: what reads it, and what a bare answer looks like."""

    extract: Callable[[str], str | None]
    before: str
    after: str

    def write(self, answer: str) -> str:
        return f"{self.before}{answer}{self.after}"


FORMS = {
    "answer": Form(extract_answer, "<answer>", "</answer>"),
    "boxed": Form(extract_boxed, "\\boxed{", "}"),
    "letter": Form(extract_letter, "Answer: ", ""),
    "auto": Form(extract_any, "<answer>", "</answer>"),
}
"""The built-in rewards: 1 for the right answer in this form, else 0."""


@dataclass(frozen=True)
class Reward:
    """Marks a response: `reward(response, question)`.

    Attributes:
        name: as the config has it.
        function: the bare mark or score.
        extract: the answer that a response gives; None where it gives none.
        errors: what `mark` does where there is no mark.
    """

    name: str
    function: Callable[[str, Question], float | RewardResult]
    extract: Callable[[str], str | None]
    errors: RewardErrors = RewardErrors.stop

    def __call__(self, response: str, question: Question) -> RewardResult:
        """
        Raises:
            RewardError: the function raised, what it gave is no mark, or it gave nothing in time; the message shows
                the sample.
        """
        try:
            return marked(self.function, response, question)
        except NoRewardError as error:
            raise RewardError(
                f"reward={self.name} failed {error} Question {question.id!r}, expected answer "
                f"{question.answer[-_SHOWN_CHARS:]!r}, response of {len(response)} characters ending in "
                f"{response[-_SHOWN_CHARS:]!r}. Make it give a number from 0 to 1, or a RewardResult, for this one too."
            ) from error

    def mark(self, response: str, question: Question) -> RewardResult | RewardError:
        """The same, but where `errors` is `drop` the error is given back and not raised."""
        try:
            return self(response, question)
        except RewardError as error:
            if self.errors is RewardErrors.stop:
                raise
            return error


def reward_of(name: str, limits: Limits | None = None, errors: RewardErrors = RewardErrors.stop) -> Reward:
    """The built-in of this name, or what a dotted path leads to.

    Raises:
        ConfigError: neither; or the path leads to nothing that can be called as `SIGNATURE`.
    """
    if name in FORMS:
        extract = FORMS[name].extract
        return Reward(name, lambda response, question: float(_is_right(extract(response), question.answer)), extract)
    module, _, attribute = name.rpartition(".")
    if not module or not attribute:
        near = difflib.get_close_matches(name, FORMS, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"For your own give its dotted path, package.name: {SIGNATURE}"
        raise ConfigError(f"reward={name} is not built in ({', '.join(FORMS)}). {hint}")
    limits = limits or Limits()
    return Reward(name, OwnReward(name, limits.start_s, limits.reward_s), _whole, errors)


def form_of(name: str) -> Form:
    """The form that a reward reads; of a user's own, whatever form there is."""
    return FORMS.get(name, FORMS["auto"])


def answer_reward(response: str, expected: str) -> float:
    """1.0 where the last `<answer>` is right, 0.0 for a wrong or missing one."""
    return float(_is_right(extract_answer(response), expected))


def _is_right(given: str | None, expected: str) -> bool:
    return given is not None and same_answer(given, expected)


def _whole(response: str) -> str | None:
    """A user's own reward alone knows what is an answer to it: only an empty response surely has none."""
    return response.strip() or None
