"""What a response is worth: the built-in rewards, and a user's own by its dotted path. See docs/rewards.md."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from demopsd_dist.data.extraction import extract_answer, extract_any, extract_boxed, extract_letter, same_answer
from demopsd_dist.data.records import Mark, Question
from demopsd_dist.errors import ConfigError, RewardError

SIGNATURE = "def my_reward(response: str, question: Question) -> float | Mark"
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
    """

    name: str
    function: Callable[[str, Question], float | Mark]
    extract: Callable[[str], str | None]

    def __call__(self, response: str, question: Question) -> Mark:
        """
        Raises:
            RewardError: the function raised, or what it gave is no mark; the message shows the sample.
        """
        try:
            given = self.function(response, question)
            return given if isinstance(given, Mark) else Mark(given)
        except Exception as error:
            raise RewardError(
                f"reward={self.name} failed {_place(error)} with {type(error).__name__}: {_one_line(str(error))} "
                f"Question {question.id!r}, expected answer {question.answer[-_SHOWN_CHARS:]!r}, response of "
                f"{len(response)} characters ending in {response[-_SHOWN_CHARS:]!r}. Make it give a number from 0 to "
                "1, or a Mark, for this one too."
            ) from error


def reward_of(name: str) -> Reward:
    """The built-in of this name, or what a dotted path leads to.

    Raises:
        ConfigError: neither; or the path leads to nothing that can be called as `SIGNATURE`.
    """
    if name in FORMS:
        extract = FORMS[name].extract
        return Reward(name, lambda response, question: float(_is_right(extract(response), question.answer)), extract)
    return Reward(name, _imported(name), _whole)


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


def _imported(name: str) -> Callable[[str, Question], float | Mark]:
    module_name, dot, attribute = name.rpartition(".")
    if not dot:
        near = difflib.get_close_matches(name, FORMS, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"For your own give its dotted path, package.name: {SIGNATURE}"
        raise ConfigError(f"reward={name} is not built in ({', '.join(FORMS)}). {hint}")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"reward={name}: there is no module {error.name} to import from {os.getcwd()}. Start the run where `import "
            f"{module_name}` works, or install it. What is looked for: {SIGNATURE}"
        ) from None
    except Exception as error:
        raise ConfigError(
            f"reward={name}: importing {module_name} failed with {type(error).__name__}: {_one_line(str(error))}"
        ) from error
    function = getattr(module, attribute, None)
    if function is None:
        near = difflib.get_close_matches(attribute, dir(module), n=1)
        hint = f" Did you mean {module_name}.{near[0]}?" if near else ""
        raise ConfigError(f"reward={name}: {module_name} has no {attribute}.{hint} What is looked for: {SIGNATURE}")
    if not callable(function) or not _takes_two(function):
        raise ConfigError(f"reward={name} cannot be called with a response and its question. Write it as {SIGNATURE}")
    return function


def _takes_two(function: Callable) -> bool:
    if inspect.iscoroutinefunction(function):
        return False
    try:
        inspect.signature(function).bind("", None)
    except TypeError:
        return False
    except ValueError:  # written in C, without a signature to read
        return True
    return True


def _place(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"at {os.path.basename(frame.filename)}:{frame.lineno}"


def _one_line(text: str) -> str:
    return " ".join(text.split())[:_SHOWN_CHARS]
