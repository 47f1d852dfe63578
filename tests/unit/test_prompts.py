"""The two views of a question: nothing in a question or solution can break them, and only a solution is ever cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demopsd_dist.config.tree import PrivilegedConfig
from demopsd_dist.data.prompts import PRIVILEGED_TEMPLATE, PromptBuilder, fill, strip_thinking
from demopsd_dist.data.records import Question
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
def test_hostile_text_goes_through_untouched(builder: PromptBuilder, text: str) -> None:
    decode = builder.tokenizer.decode
    assert text in decode(builder.student(ask(text)).tokens)
    view = decode(builder.privileged(ask(text), text))
    assert view.count(text) == 2
    assert fill(PRIVILEGED_TEMPLATE, prompt=text, solution="S") in view.replace(text, "S", 2).replace("S", text, 1)


@given(prompt=st.text(), solution=st.text())
def test_fill_is_plain_substitution(prompt: str, solution: str) -> None:
    assert fill("<{prompt}|{solution}>", prompt=prompt, solution=solution) == f"<{prompt}|{solution}>"


def test_the_system_message_is_kept_in_both_views(builder: PromptBuilder) -> None:
    question = ask("Why?", system="Answer in one word.")
    for tokens in (builder.student(question).tokens, builder.privileged(question, "Because.")):
        assert "Answer in one word." in builder.tokenizer.decode(tokens)


def test_only_the_solution_is_cut_to_fit_and_from_the_right(builder: PromptBuilder) -> None:
    question = ask("What is the mass of 水?")
    bare = len(builder.privileged(question, ""))
    small = PromptBuilder(builder.tokenizer, max_privileged_tokens=bare + 20)
    solution = "".join(f"step {i}; " for i in range(100))
    tokens = small.privileged(question, solution)
    text = builder.tokenizer.decode(tokens)
    assert len(tokens) == bare + 20
    assert question.text in text
    assert "Correctly solve the original question." in text
    assert solution[:20] in text
    assert solution[:21] not in text
    assert len(small.privileged(question, solution[:20])) == len(tokens)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("plain", "plain"),
        ("<think>hm</think>yes", "yes"),
        ("a<think>b</think>c<think>d</think>e", "ace"),
        ("hm</think>yes", "yes"),
        ("yes<think>and then", "yes"),
        ("<think>", ""),
    ],
)
def test_thinking_is_dropped(text: str, kept: str) -> None:
    assert strip_thinking(text) == kept


def test_the_default_template_is_the_one_of_the_config() -> None:
    assert PrivilegedConfig().template == PRIVILEGED_TEMPLATE
