"""Signs that the student learned from a solution it cannot see."""

from __future__ import annotations

import re

import pytest

from demopsd_dist.data.leakage_signs import (
    answer_unsupported,
    answers_first,
    early_answer_prompts,
    mentions_solution,
    sign_fractions,
)
from demopsd_dist.data.prompts import PRIVILEGED_TEMPLATE, SOLUTION_TEMPLATE, PromptBuilder
from demopsd_dist.data.records import Question
from demopsd_dist.data.rewards import ANSWER_FORMS
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.minisci.tasks import solution_text, work_out


@pytest.mark.parametrize(
    ("response", "mentions"),
    [
        ("As the Correct\nSolution shows, it is 4.", True),
        ("The reference solution has 4.", True),
        ("Following the solution given above: 4", True),
        ("The salt solution has 4 g.", False),
        ("The solution is 4.", False),
        ("", False),
    ],
)
def test_mentions_solution(response: str, mentions: bool) -> None:
    assert mentions_solution(response) is mentions


def test_the_phrases_of_the_teachers_template_count() -> None:
    for template in (PRIVILEGED_TEMPLATE, SOLUTION_TEMPLATE):
        assert mentions_solution(re.sub(r"\{\w+\}", "", template))


@pytest.mark.parametrize(
    ("response", "first"),
    [
        ("<answer>4</answer>", True),
        ("<reasoning> \n</reasoning>\n<answer>4</answer>", True),
        ("<answer>4</answer> since 2+2=4 <answer>4</answer>", True),
        ("<reasoning>2+2=4</reasoning><answer>4</answer>", False),
        ("no answer", False),
        ("", False),
    ],
)
def test_answers_first(response: str, first: bool) -> None:
    assert answers_first(response) is first


@pytest.mark.parametrize(
    ("response", "unsupported"),
    [
        ("<reasoning>2+2=4</reasoning><answer>4</answer>", False),
        ("<reasoning>2+2=5</reasoning><answer>4</answer>", True),
        ("<reasoning>2.50</reasoning><answer>2.5</answer>", False),
        ("<reasoning>easy</reasoning><answer>4</answer>", None),
        ("<reasoning>2+2=4</reasoning><answer>B</answer>", None),
        ("2+2=4", None),
    ],
)
def test_answer_unsupported(response: str, unsupported: bool | None) -> None:
    assert answer_unsupported(response) is unsupported


def test_worked_solutions_show_no_sign() -> None:
    responses = [solution_text(*work_out(expression)) for expression in ("35+3*3", "4*(2+5)", "99-11")]
    assert sign_fractions(responses) == {"mentions_solution": 0.0, "answers_first": 0.0, "unsupported": 0.0}
    assert sign_fractions([*responses, "<answer>4</answer>"])["answers_first"] == 0.25


def test_an_early_answer_prompt_ends_with_the_answer_tag() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    prompt = PromptBuilder(tokenizer).student(Question("q/1", "2+2?", "4", "physics"))
    (forced,) = early_answer_prompts([prompt], tokenizer)
    assert tokenizer.decode(forced.tokens) == tokenizer.decode(prompt.tokens) + "<answer>"
    assert forced.question == prompt.question


@pytest.mark.parametrize("name", ANSWER_FORMS)
def test_an_early_answer_begins_in_the_form_of_its_reward(name: str) -> None:
    form = ANSWER_FORMS[name]
    assert form.opening == form.opening.strip()
    answer = "A" if name == "letter" else "12"
    space = form.before[len(form.opening) :]
    assert form.extract(form.opening + space + answer + form.after) == answer
