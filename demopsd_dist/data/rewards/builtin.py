"""The reward of a response: the built-in comparisons of answers, and a user's own function by its dotted path.

See docs/rewards.md.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from demopsd_dist.config import Limits, RewardErrors, TruncatedReward
from demopsd_dist.data.records import Question, RewardResult
from demopsd_dist.data.rewards.comparison import same_answer
from demopsd_dist.data.rewards.extraction import (
    extract_answer,
    extract_any,
    extract_boxed,
    extract_formula,
    extract_last_number,
    extract_letter,
)
from demopsd_dist.data.rewards.gym_reward import GymReward
from demopsd_dist.data.rewards.math_reward import MathReward
from demopsd_dist.data.rewards.own_reward import SIGNATURE, NoRewardError, OwnReward, call_reward
from demopsd_dist.util.errors import ConfigError, RewardError

MATH = "math"
_QUOTED_CHARS = 200


@dataclass(frozen=True)
class AnswerForm:
    """The notation of an answer in a response: a function that extracts it, and the text around a bare answer.

    Example: `ANSWER_FORMS["boxed"].write("12")` gives `r"\\boxed{12}"`.

    Attributes:
        before: text before a bare answer.
        after: text that closes it; empty where the answer lasts to the end of the response.
    """

    extract: Callable[[str], str | None]
    before: str
    after: str

    def write(self, answer: str) -> str:
        return f"{self.before}{answer}{self.after}"

    @property
    def opening(self) -> str:
        """Text that a response begins with to answer at once. Tokenizers join a space with the word after it, so there
        is none at its end; where they join `{` with what follows, as in `\\boxed{\\frac`, such answers are less likely
        than they should be."""
        return self.before.rstrip()

    def first_answer(self, response: str) -> str:
        """The response up to the end of its first answer: the text that closes it, or else the end of the line.

        Args:
            response: begins with `opening`.
        """
        if not self.after:
            return response.partition("\n")[0]
        if self.after != "}":
            answer, closed, _ = response.partition(self.after)
            return answer + closed
        depth = 0
        for i, character in enumerate(response):
            depth += (character == "{") - (character == "}")
            if character == "}" and depth <= 0:
                return response[: i + 1]
        return response


ANSWER_FORMS = {
    "answer": AnswerForm(extract_answer, "<answer>", "</answer>"),
    "boxed": AnswerForm(extract_boxed, "\\boxed{", "}"),
    "letter": AnswerForm(extract_letter, "Answer: ", ""),
    "gsm8k": AnswerForm(extract_last_number, "#### ", ""),
    MATH: AnswerForm(extract_formula, "\\boxed{", "}"),
    "auto": AnswerForm(extract_any, "<answer>", "</answer>"),
}
"""The built-in rewards by name: 1 for the right answer in this form, else 0."""


@dataclass(frozen=True)
class Reward:
    """A reward function with its name and its error policy; called as `reward(response, question)`.

    Attributes:
        name: the setting `reward`.
        function: gives a number from 0 to 1 or a RewardResult.
        extract: the answer that a response gives; None where it gives none.
        errors: whether `result_of` raises an error of the function or returns it.
        of_tasks: rewards the answer to a question that has a `task`, instead of the function.
        truncated: whether a response that was cut keeps its reward, or has 0.
    """

    name: str
    function: Callable[[str, Question], float | RewardResult]
    extract: Callable[[str], str | None]
    errors: RewardErrors = RewardErrors.stop
    of_tasks: Callable[[str | None, Question], RewardResult] | None = None
    truncated: TruncatedReward = TruncatedReward.keep

    def __call__(self, response: str, question: Question) -> RewardResult:
        """Reward one response.

        Raises:
            RewardError: the function raised, returned no reward, or took too long; the message shows the sample.
        """
        try:
            return call_reward(self._score, response, question)
        except NoRewardError as error:
            raise RewardError(
                f"reward={self.name} failed {error} Question {question.id!r}, expected answer "
                f"{question.answer[-_QUOTED_CHARS:]!r}, response of {len(response)} characters ending in "
                f"{response[-_QUOTED_CHARS:]!r}. Make it give a number from 0 to 1, or a RewardResult, for this one "
                "too."
            ) from error

    def _score(self, response: str, question: Question) -> float | RewardResult:
        if question.task is not None and self.of_tasks is not None:
            return self.of_tasks(self.extract(response), question)
        return self.function(response, question)

    def result_of(self, response: str, question: Question, *, is_truncated: bool = False) -> RewardResult | RewardError:
        """Reward one response; where `errors` is `drop`, an error is returned instead of raised.

        Args:
            is_truncated: the response was cut at the limit; with `truncated: zero` its reward is 0.
        """
        try:
            result = self(response, question)
        except RewardError as error:
            if self.errors is RewardErrors.stop:
                raise
            return error
        unrewarded = is_truncated and self.truncated is TruncatedReward.zero
        return replace(result, reward=0.0) if unrewarded else result


def resolve_reward(
    name: str,
    limits: Limits | None = None,
    errors: RewardErrors = RewardErrors.stop,
    truncated: TruncatedReward = TruncatedReward.keep,
) -> Reward:
    """The built-in reward of this name, or the user's function at this dotted path.

    Raises:
        ConfigError: neither exists, or the object at the path cannot be called as `SIGNATURE`; or the reward is `math`
            and math-verify cannot be imported.
    """
    reward = _resolve(name, limits or Limits())
    return replace(reward, errors=errors, truncated=truncated)


def _resolve(name: str, limits: Limits) -> Reward:
    if name == MATH:
        return Reward(name, MathReward(limits), ANSWER_FORMS[MATH].extract, of_tasks=GymReward(limits))
    if name in ANSWER_FORMS:
        extract = ANSWER_FORMS[name].extract
        return Reward(
            name,
            lambda response, question: float(_is_right(extract(response), question.answer)),
            extract,
            of_tasks=GymReward(limits),
        )
    module, _, attribute = name.rpartition(".")
    if not module or not attribute:
        near = difflib.get_close_matches(name, ANSWER_FORMS, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"For your own give its dotted path, package.name: {SIGNATURE}"
        raise ConfigError(f"reward={name} is not built in ({', '.join(ANSWER_FORMS)}). {hint}")
    return Reward(name, OwnReward(name, limits.start_s, limits.reward_s), _nonempty_response)


def answer_form(name: str) -> AnswerForm:
    """The form in which a reward reads answers; `auto` for a user's own reward."""
    return ANSWER_FORMS.get(name, ANSWER_FORMS["auto"])


def other_form(responses: Sequence[tuple[str, str]], name: str) -> str | None:
    """Hint at the built-in reward other than `name` that finds most of these responses right, as a clause; None where
    none finds any.

    Args:
        responses: texts with their expected answers.
    """
    right = {
        other: sum(_is_right(form.extract(text), expected) for text, expected in responses)
        for other, form in ANSWER_FORMS.items()
        if other not in (name, MATH)  # math-verify takes its time
    }
    best = max(right, key=lambda other: right[other])
    if not right[best]:
        return None
    return f"reward={best} would find {right[best]:,} of these {len(responses):,} right"


def answer_reward(response: str, expected: str) -> float:
    """1.0 where the last `<answer>` is right, 0.0 for a wrong or missing one."""
    return float(_is_right(extract_answer(response), expected))


def _is_right(answer: str | None, expected: str) -> bool:
    return answer is not None and same_answer(answer, expected)


def _nonempty_response(response: str) -> str | None:
    """The whole response: only a user's own reward knows the answer in it, and an empty response surely has none."""
    return response.strip() or None
