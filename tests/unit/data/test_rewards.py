"""Answer checking: extraction and comparison of answers, linear time on any response, and a user's own reward."""

from __future__ import annotations

import pickle
import re
import string
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from demopsd_dist.config import load
from demopsd_dist.data.records import Question, RewardResult
from demopsd_dist.data.rewards import ANSWER_FORMS, Reward, answer_form, answer_reward, resolve_reward
from demopsd_dist.data.rewards.comparison import ANSWER_CHARS, same_answer
from demopsd_dist.data.rewards.extraction import (
    BOX_CHARS,
    extract_answer,
    extract_any,
    extract_boxed,
    extract_last_number,
    extract_letter,
)
from demopsd_dist.util.errors import ConfigError, RewardError
from tests.unit.data.answer_cases.extraction_cases import ANSWER, ANY, BOXED, LAST_NUMBER, LETTER
from tests.unit.data.answer_cases.same_answer_cases import DIFFERENT, SAME
from tests.unit.data.answer_cases.spelled_answer_cases import CASE_FOLDED, SPELLED, STAY_DIFFERENT, WRAPPED

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"
EXTRACTORS = {"answer": extract_answer, "boxed": extract_boxed, "letter": extract_letter} | {
    "gsm8k": extract_last_number,
    "auto": extract_any,
}
TABLES = {"answer": ANSWER, "boxed": BOXED, "letter": LETTER, "gsm8k": LAST_NUMBER, "auto": ANY}
QUESTION = Question(id="physics/7", text="A car at 3 m/s ...", answer="B", field="physics")
PIECES = ["<answer>", "</answer>", "\\boxed", "{", "}", "\\", "answer is ", ": ", "A", "B", "(", ")", "\n", "é"]
pieces = st.lists(st.sampled_from(PIECES)).map("".join)


@pytest.mark.parametrize(
    ("form", "response", "expected"), [(form, *case) for form, cases in TABLES.items() for case in cases]
)
def test_the_answer_extracted_from_a_response(form: str, response: str, expected: str | None) -> None:
    assert EXTRACTORS[form](response) == expected


@pytest.mark.parametrize(("given", "expected"), [*SAME, *WRAPPED, *SPELLED, *CASE_FOLDED])
def test_equal_answers_are_rewarded(given: str, expected: str) -> None:
    assert same_answer(given, expected)
    assert answer_reward(f"so <answer>{given}</answer>", expected) == 1.0


@pytest.mark.parametrize(("given", "expected"), [*DIFFERENT, *STAY_DIFFERENT])
def test_different_answers_are_not_rewarded(given: str, expected: str) -> None:
    assert not same_answer(given, expected)
    assert answer_reward(f"so <answer>{given}</answer>", expected) == 0.0


def test_there_are_hundreds_of_cases_and_no_two_contradict() -> None:
    assert sum(map(len, TABLES.values())) + len(SAME) + len(DIFFERENT) > 400
    for cases in TABLES.values():
        assert len(dict(cases)) == len(set(cases)), "one response, two decisions"
    same, different = {*SAME, *WRAPPED, *SPELLED, *CASE_FOLDED}, {*DIFFERENT, *STAY_DIFFERENT}
    assert len(same) > 200
    assert len(different) > 140
    assert not same & different


@given(response=st.one_of(st.text(), pieces), expected=st.text(min_size=1))
def test_an_extracted_answer_is_part_of_the_response(response: str, expected: str) -> None:
    for extract in EXTRACTORS.values():
        answer = extract(response)
        assert answer is None or answer.strip() == answer != ""
    for answer in (extract_answer(response), extract_boxed(response), extract_any(response) and None):
        assert answer is None or answer in response
    assert same_answer(response, expected) in (True, False)


@given(before=st.text(), answer=st.text(alphabet=string.ascii_letters + string.digits + " .-{}\\", min_size=1))
def test_a_bare_answer_is_read_back(before: str, answer: str) -> None:
    answer = answer.strip()
    if answer:
        assert extract_answer(before + ANSWER_FORMS["answer"].write(answer)) == answer
    if answer and "{" not in answer and "}" not in answer and "\\" not in answer:
        text = before.replace("\\", "/") + ANSWER_FORMS["boxed"].write(answer)
        assert extract_boxed(text) == answer


@given(before=st.text(), letter=st.sampled_from(string.ascii_uppercase))
def test_a_claimed_letter_is_read_back_after_any_text(before: str, letter: str) -> None:
    assert extract_letter(f"{before}\n{ANSWER_FORMS['letter'].write(letter)}") == letter


@given(given=st.text(), expected=st.text(min_size=1))
def test_same_answer_goes_both_ways(given: str, expected: str) -> None:
    assert same_answer(expected, expected)
    if "!" not in given + expected and abs(len(given) - len(expected)) <= 200:
        assert same_answer(given, expected) == same_answer(expected, given)


HOSTILE = {
    "open tags": "<answer>" * 125_000,
    "close tags": "</answer>" * 110_000,
    "angles": "<" * 1_000_000,
    "digits": "9" * 1_000_000,
    "commas": "1" + ",111" * 250_000,
    "spaces": " " * 1_000_000,
    "lines": "\n" * 1_000_000,
    "open boxes": "\\boxed{" * 143_000,
    "boxes unclosed": "\\boxed{{}" * 111_000,
    "bare boxes": "\\boxed " * 143_000,
    "long boxes": ("\\boxed{" + "{" * (BOX_CHARS - 10)) * 100,
    "open braces": "{" * 1_000_000,
    "backslashes": "\\" * 1_000_000,
    "escaped braces": "\\{" * 500_000,
    "claims": "the answer is A " * 62_500,
    "wrapped": "(" * 500_000 + "B" + ")" * 500_000,
    "stars": "*" * 1_000_000,
    "combining marks": "\u0301\u0323" * 500_000,
    "ligatures": "\ufdfa" * 1_000_000,
    "invisible": "\u200b" * 1_000_000,
    "fractions": "\\frac" * 200_000,
    "open fractions": "\\frac{1" * 140_000,
    "roots": "\\sqrt 2" * 140_000,
    "styles": "\\text{" * 160_000,
    "nested styles": "\\text{" * 80_000 + "}" * 80_000,
    "scripts": "^{2" * 330_000,
    "commands": "\\" + "a" * 1_000_000,
    "spaced signs": "+ " * 500_000,
    "assignments": "x = " * 250_000,
    "exclamations": "a" * 999_999 + "!",
    "dollars": "$" * 1_000_000,
    "quotes": "“" * 500_000 + "”" * 500_000,
    "letters": "Co " * 330_000,
    "exponent": "1e" + "9" * 1_000_000,
}


@pytest.fixture(scope="module")
def rewards() -> dict[str, Reward]:
    return {form: resolve_reward(form) for form in ANSWER_FORMS}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("form", ANSWER_FORMS)
def test_a_megabyte_is_checked_in_linear_time(rewards: dict[str, Reward], form: str, name: str) -> None:
    """A quadratic search of these takes minutes, so a generous limit on processor time shows the difference."""
    reward, text = rewards[form], HOSTILE[name]
    started = time.process_time()
    for response in (text, ANSWER_FORMS[form].write(text), f"<answer>{text}</answer>"):
        reward(response, QUESTION)
    assert time.process_time() - started < 2.0


@pytest.mark.parametrize("name", HOSTILE)
def test_two_long_answers_are_compared_in_linear_time(name: str) -> None:
    """An expected answer as long as the hostile one, of which the comparison must read all."""
    text = HOSTILE[name][-(ANSWER_CHARS - 10) :]
    started = time.process_time()
    assert not same_answer(text + "x", text + "yz")
    same_answer(text.upper(), text.lower())
    assert not same_answer(HOSTILE[name] + "x", HOSTILE[name] + "yz")
    assert time.process_time() - started < 2.0


def test_built_in_rewards_read_their_own_form() -> None:
    responses = {
        "answer": "<answer>(b)</answer>",
        "boxed": r"So \boxed{\text{B}} it is",
        "letter": "The answer is (B).",
    }
    for form in ("answer", "boxed", "letter"):
        results = {name: resolve_reward(form)(response, QUESTION) for name, response in responses.items()}
        assert results == {name: RewardResult(float(name == form)) for name in responses}
    assert all(resolve_reward("auto")(response, QUESTION) == RewardResult(1.0) for response in responses.values())
    rolls = Question(id="q", text="q", answer="1024", field="all")
    for response in ("so 1,024 rolls.", "#### 1024", r"\boxed{1024.0}", "<think>7</think> 1024"):
        assert resolve_reward("gsm8k")(response, rolls) == RewardResult(1.0)
    assert resolve_reward("gsm8k")("1024, or 1025", rolls) == RewardResult(0.0)
    assert resolve_reward("boxed").extract(responses["boxed"]) == r"\text{B}"


@pytest.mark.parametrize("reward", [float("nan"), -0.1, 1.1, float("inf"), "1", None, [1], 1j])
def test_a_reward_is_a_number_from_0_to_1(reward: object) -> None:
    with pytest.raises((TypeError, ValueError), match=r"a reward is a number from 0 to 1, not"):
        RewardResult(reward)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "scalar", [np.float32(0.5), np.float64(0.5), np.float16(0.5), np.array(0.5), torch.tensor(0.5)]
)
def test_a_reward_may_be_a_scalar_of_an_array_library(scalar: Any) -> None:
    assert RewardResult(scalar) == RewardResult(0.5)
    assert type(RewardResult(scalar).reward) is float
    others: list[Any] = [np.True_, np.int64(0), np.array(True)]
    assert [RewardResult(value).reward for value in others] == [1.0, 0.0, 1.0]
    wrong: list[Any] = [np.array([0.5]), np.array("1"), np.float32(1.5), np.array([])]
    for value in wrong:
        with pytest.raises((TypeError, ValueError), match=r"a reward is a number from 0 to 1, not"):
            RewardResult(value)


def test_blank_feedback_is_none() -> None:
    assert RewardResult(True, " \n") == RewardResult(1.0)
    assert type(RewardResult(1).reward) is float
    with pytest.raises(TypeError, match="feedback is text or None, not int"):
        RewardResult(1.0, 3)  # type: ignore[arg-type]


MINE = """
from demopsd_dist.data.rewards import Question, RewardResult

def fraction(response: str, question: Question) -> float:
    return len(response) / 10

def with_feedback(response: str, question: Question) -> RewardResult:
    return RewardResult(0.25, f"{question.id}: think again")

def nan(response, question): return float("nan")
def nothing(response, question): pass
def raises(response, question): raise KeyError("a key\\nover two lines")
def one(response): return 1.0
async def later(response, question): return 1.0
number = 3
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Dotted paths into a module of the user's own; each test has a module of another name."""
    module = "mine_" + re.sub(r"\W", "_", tmp_path.name)
    (tmp_path / f"{module}.py").write_text(MINE)
    (tmp_path / f"{module}_broken.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    return lambda name: name.replace("mine", module)


def test_a_users_own_reward(mine: Callable[[str], str]) -> None:
    fraction, with_feedback = resolve_reward(mine("mine.fraction")), resolve_reward(mine("mine.with_feedback"))
    assert fraction("12345", QUESTION) == RewardResult(0.5)
    assert with_feedback("", QUESTION) == RewardResult(0.25, "physics/7: think again")
    assert fraction.extract(" ") is None
    assert fraction.extract("anything") == "anything", "only the user knows which text is an answer"
    assert answer_form(mine("mine.fraction")) == ANSWER_FORMS["auto"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nan", r"ValueError: a reward is a number from 0 to 1, not nan\."),
        ("nothing", r"TypeError: a reward is a number from 0 to 1, not NoneType\."),
        ("fraction", r"ValueError: a reward is a number from 0 to 1, not 39.8\."),
        ("raises", r"at mine_\w+\.py:\d+ with KeyError: 'a key\\nover two lines'"),
    ],
)
def test_a_reward_that_fails_shows_the_sample(mine: Callable[[str], str], name: str, message: str) -> None:
    response = "start" + "\n" * 200 + "x" * 190 + "\nthe end"
    with pytest.raises(RewardError, match=message) as caught:
        resolve_reward(mine(f"mine.{name}"))(response[-398:], QUESTION)
    message = str(pickle.loads(pickle.dumps(caught.value)))
    assert "\n" not in message
    assert mine(f"reward=mine.{name} failed") in message
    assert "Question 'physics/7', expected answer 'B', response of 398 characters ending in '" in message
    assert r"xxx\nthe end'" in message
    assert "start" not in message
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("anwser", "is not built in (answer, boxed, letter, gsm8k, math, auto). Did you mean answer?"),
        ("xyzzy", "For your own give its dotted path, package.name: def my_reward(response: str, question: Question)"),
        ("", "is not built in"),
        ("no_such_module.reward", "there is no module no_such_module to import from"),
        ("mine.fractoin", "has no fractoin. Did you mean mine.fraction? What is looked for: def my_reward("),
        ("mine.number", "cannot be called with a response and its question"),
        ("mine.one", "cannot be called with a response and its question"),
        ("mine.later", "cannot be called with a response and its question"),
        ("mine_broken.reward", "failed with ZeroDivisionError: division by zero"),
        (".reward", "reward=.reward"),
    ],
)
def test_an_invalid_reward_is_refused_at_the_start(mine: Callable[[str], str], name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(mine(message) if "mine." in message else message)) as caught:
        resolve_reward(mine(name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["privileged.feedback=true"], "has no effect with reward=answer, which gives none"),
        (["privileged.template='{prompt}{solution}{feedback}{feedback}'"], "holds {feedback} 2 times"),
        (
            ["privileged.template='{prompt}{solution}'", "privileged.feedback=true", "reward=my.own"],
            "holds {feedback} 0 times",
        ),
        (["privileged.solution_template=x"], "privileged.solution_template holds {solution} 0 times"),
        (["privileged.feedback_template=x"], "privileged.feedback_template holds {feedback} 0 times"),
    ],
)
def test_conflicting_settings_of_feedback_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(DEMO, words)


def test_feedback_alone_is_enough_for_a_group_of_one() -> None:
    load(DEMO, ["rollout.group_size=1", "privileged.feedback=true", "reward=my.own"])
