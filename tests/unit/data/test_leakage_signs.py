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


@pytest.mark.parametrize(
    ("reward", "finished", "first", "answer"),
    [
        ("answer", "5</answer> or rather <answer>7</answer>", "<answer>5</answer>", "5"),
        ("auto", "5</answer></think><answer>7</answer>", "<answer>5</answer>", "5"),
        ("boxed", "\\frac{1}{2}}. Let me check: \\boxed{7}", "\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("math", "7}", "\\boxed{7}", "7"),
        ("boxed", "7 and more", "\\boxed{7 and more", None),
        ("gsm8k", " 12\nCheck: 3", "#### 12", "12"),
        ("letter", " B\nBecause the", "Answer: B", "B"),
    ],
)
def test_an_early_answer_ends_where_it_is_closed(reward: str, finished: str, first: str, answer: str | None) -> None:
    form = ANSWER_FORMS[reward]
    assert form.first_answer(form.opening + finished) == first
    assert form.extract(first) == answer


def test_an_early_answer_begins_in_the_form_of_the_reward() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    prompt = PromptBuilder(tokenizer).student(Question("q/1", "2+2?", "4", "physics"))
    for form in ANSWER_FORMS.values():
        (forced,) = early_answer_prompts([prompt], tokenizer, form.opening)
        assert not form.opening.endswith(" ")
        assert len(forced.tokens) > len(prompt.tokens)
