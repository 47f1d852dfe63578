"""Prompts of student and teacher: no text in a question or solution breaks them, and the question is never cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demopsd_dist.config.schema import PrivilegedConfig
from demopsd_dist.data.prompts import (
    FEEDBACK_TEMPLATE,
    PRIVILEGED_TEMPLATE,
    SOLUTION_TEMPLATE,
    PromptBuilder,
    fill,
)
from demopsd_dist.data.records import Question
from demopsd_dist.data.thinking import strip_thinking
from demopsd_dist.minisci.tokenizer import byte_tokenizer

HOSTILE = [
    r"$\frac{a}{b}$ and \boxed{x}",
    "{prompt} {solution} {0} {} %s %(x)s ${HOME} $1 \\1 \\g<0>",
    "{{ jinja }} {% raw %}",
    "naïve 水 \u202e🎈 \x00 end",
]


@pytest.fixture(scope="module")
def builder() -> PromptBuilder:
    return PromptBuilder(byte_tokenizer())


def ask(text: str, system: str | None = None) -> Question:
    return Question(id="q", text=text, answer="1", field="physics", system=system)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_stays_unchanged(builder: PromptBuilder, text: str) -> None:
    decode = builder.tokenizer.decode
    assert text in decode(builder.student(ask(text)).tokens)
    assert decode(builder.privileged(ask(text), text)).count(text) == 2
    view = decode(builder.privileged(ask(text), text, text))
    head, tail = "\n\nCorrect solution:\n\n", "\n\nFeedback on your earlier attempt:\n\n"
    assert f"{text}{head}{text}{tail}{text}\n\nCorrectly solve the original question." in view


hostile = st.one_of(
    st.text(), st.lists(st.sampled_from(["{prompt}", "{solution}", "{feedback}", "{", "\\"])).map("".join)
)


@given(prompt=hostile, solution=hostile, feedback=hostile)
def test_fill_is_plain_substitution(prompt: str, solution: str, feedback: str) -> None:
    filled = fill("<{prompt}|{solution}|{feedback}>", prompt=prompt, solution=solution, feedback=feedback)
    assert filled == f"<{prompt}|{solution}|{feedback}>"


def test_a_missing_solution_or_feedback_leaves_no_heading(builder: PromptBuilder) -> None:
    decode, question = builder.tokenizer.decode, ask("Why?")
    bare = builder.privileged(question, None).tolist()
    assert "Why?\n\nCorrectly solve the original question." in decode(bare)
    for solution in ("", "  ", "<think>only"):
        assert builder.privileged(question, solution, None).tolist() == bare
    alone = decode(builder.privileged(question, None, "Too long."))
    assert "Why?\n\nFeedback on your earlier attempt:\n\nToo long.\n\nCorrectly" in alone


def test_the_system_message_is_in_both_prompts(builder: PromptBuilder) -> None:
    question = ask("Why?", system="Answer in one word.")
    for tokens in (builder.student(question).tokens, builder.privileged(question, "Because.")):
        assert "Answer in one word." in builder.tokenizer.decode(tokens)


def test_only_the_solution_is_cut_to_fit_and_from_the_right(builder: PromptBuilder) -> None:
    question = ask("What is the mass of 水?")
    solution = "".join(f"step {i}; " for i in range(100))
    limit = len(builder.privileged(question, solution[:20]))
    small = PromptBuilder(builder.tokenizer, max_privileged_tokens=limit)
    tokens = small.privileged(question, solution)
    text = builder.tokenizer.decode(tokens)
    assert len(tokens) == limit
    assert question.text in text
    assert "Correctly solve the original question." in text
    assert solution[:20] in text
    assert solution[:21] not in text
    assert len(small.privileged(question, solution[:20])) == len(tokens)


def test_the_solution_is_cut_before_the_feedback(builder: PromptBuilder) -> None:
    question, solution, feedback = ask("What?"), "s" * 300, "f" * 300

    def view(limit: int) -> str:
        small = PromptBuilder(builder.tokenizer, max_privileged_tokens=limit)
        tokens = small.privileged(question, solution, feedback)
        assert len(tokens) <= limit
        return builder.tokenizer.decode(tokens)

    whole, bare = len(builder.privileged(question, solution, feedback)), len(builder.privileged(question, None))
    assert view(whole - 100).count("s" * 200) == 1
    assert feedback in view(whole - 100)
    without = view(len(builder.privileged(question, None, feedback)))
    assert feedback in without
    assert "Correct solution" not in without
    shorter = view(len(builder.privileged(question, None, feedback)) - 50)
    assert "f" * 250 in shorter
    assert "f" * 251 not in shorter
    assert "Feedback" not in view(bare)


@pytest.mark.parametrize(
    ("text", "remaining"),
    [
        ("plain", "plain"),
        ("<think>hm</think>yes", "yes"),
        ("a<think>b</think>c<think>d</think>e", "a\nc\ne"),
        ("hm</think>yes", "yes"),
        ("hm</think>no</think>yes", "yes"),
        ("hm</think>yes<think>or", "yes"),
        ("<think>a<think>b</think>c</think>yes", "yes"),
        ("yes<think>and then", "yes"),
        ("<think>", ""),
    ],
)
def test_thinking_is_dropped(text: str, remaining: str) -> None:
    assert strip_thinking(text) == remaining


def test_the_default_template_is_the_one_of_the_config() -> None:
    config = PrivilegedConfig()
    assert (config.template, config.solution_template) == (PRIVILEGED_TEMPLATE, SOLUTION_TEMPLATE)
    assert config.feedback_template == FEEDBACK_TEMPLATE
