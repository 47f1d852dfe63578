"""Answers, thoughts and cases as they were measured to go wrong once: each with its right value."""

from __future__ import annotations

import pytest

from demopsd_dist.data.records import Question
from demopsd_dist.data.rewards import resolve_reward, same_answer
from demopsd_dist.data.thinking import strip_thinking

WRAPPED_TWELVE = [
    *("$12$", r"\(12\)", r"\[12\]", "$$12$$", r"\boxed{12}", "**12**", "*12*", "`12`", '"12"', "'12'", "(12)"),
    *(r"\text{12}", r"\mathrm{12}", "12!", "= 12", "x = 12"),
]
WRAPPED_TRUE = ["True.", "**True**", "(True)", r"\text{True}"]
BOXED_PAIRS = [
    (r"\dfrac12", r"\frac{1}{2}"),
    (r"\frac12", r"\frac{1}{2}"),
    (r"x^{2}", "x^2"),
    (r"\left(1,2\right)", "(1,2)"),
    ("(1, 2)", "(1,2)"),
    (r"-\frac{1}{2}", r"\frac{-1}{2}"),
    (r"\pi", "π"),
    (r"2\sqrt3", r"2\sqrt{3}"),
    ("1/2", "0.5"),
    ("1e3", "1000"),
]


def reward(name: str, response: str, expected: str) -> float:
    return resolve_reward(name)(response, Question("q/1", "?", expected, "all")).reward


@pytest.mark.parametrize("answer", WRAPPED_TWELVE)
def test_a_wrapped_number_is_right(answer: str) -> None:
    assert reward("answer", f"So <answer>{answer}</answer>", "12") == 1
    assert reward("answer", f"So <answer>{answer}</answer>", "13") == 0


@pytest.mark.parametrize("answer", WRAPPED_TRUE)
def test_a_wrapped_truth_value_is_right(answer: str) -> None:
    assert reward("answer", f"<answer>{answer}</answer>", "True") == 1
    assert reward("answer", f"<answer>{answer}</answer>", "False") == 0


@pytest.mark.parametrize(("answer", "expected"), BOXED_PAIRS)
def test_two_spellings_of_a_boxed_answer_are_the_same(answer: str, expected: str) -> None:
    assert reward("boxed", rf"Thus \boxed{{{answer}}}.", expected) == 1
    assert reward("boxed", rf"Thus \boxed{{{expected}}}.", answer) == 1


@pytest.mark.parametrize(("answer", "expected"), [("CO", "Co"), ("mW", "MW"), ("Mg", "mg")])
def test_case_that_carries_meaning_counts(answer: str, expected: str) -> None:
    assert not same_answer(answer, expected)
    assert same_answer(answer, answer)


@pytest.mark.parametrize(
    ("name", "response", "expected", "value"),
    [
        ("answer", "<think>try <answer>5</answer> maybe, or 6…", "5", 0),
        ("answer", "<think>maybe <answer>5</answer>?</think> I can not say", "5", 0),
        ("answer", "<think>maybe 6?</think> <answer>5</answer>", "5", 1),
        ("auto", r"<think>maybe <answer>4</answer></think> \boxed{5}", "5", 1),
        ("auto", r"<think>maybe <answer>4</answer></think> \boxed{5}", "4", 0),
    ],
)
def test_an_answer_counts_outside_the_thought_alone(name: str, response: str, expected: str, value: float) -> None:
    assert reward(name, response, expected) == value


def test_a_cut_thought_is_no_solution() -> None:
    assert strip_thinking("<think>try <answer>5</answer> maybe, or 6…") == ""
