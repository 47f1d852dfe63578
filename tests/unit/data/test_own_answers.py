"""Own answers before a run: each record's expected answer through the reward, in the form that its prompt asks for."""

from __future__ import annotations

import time
from typing import Any

import pytest

from demopsd_dist.data.checks.own_answers import OWN_REWARD_RECORDS, asked_forms, check_own_answers, likely_fix
from demopsd_dist.data.records import Question
from demopsd_dist.data.rewards import Reward, resolve_reward
from demopsd_dist.minisci.tasks import questions

IN_TAGS, IN_A_BOX, AFTER_MARK = "Use <answer>.", "Put it in \\boxed{}.", 'Give it after "####".'
BOX_READER = "Set reward=boxed."
ALONE = "Name the field of the answer alone in data.fields.answer."


def question(answer: str, text: str = "Why?", **parts: Any) -> Question:
    return Question(id="a/1", text=text, answer=answer, field="all", **parts)


def test_the_form_is_the_one_that_any_text_of_the_prompt_asks_for() -> None:
    assert asked_forms(question("1", IN_TAGS)) == ["answer"]
    assert asked_forms(question("1", system=IN_A_BOX)) == ["boxed"]
    assert asked_forms(question("1", history=(("user", AFTER_MARK), ("assistant", "1")))) == ["gsm8k"]
    assert asked_forms(question("1")) == []
    asking = (
        "End with #### X.",
        "Form:\n#### 42",
        "#### <number>",
        "Think.\nThen write ####",
        "#### <n>\n\nQuestion: 1+1?",
    )
    for text in (*asking, "2\n#### 2\n\nQ: 1+1?", "#### your answer\nGo on."):
        assert asked_forms(question("1", text)) == ["gsm8k"], text
        assert asked_forms(question("1", system=text)) == ["gsm8k"], text
    for text in (
        "\\boxed{42} at the end.",
        "\\boxed{5}?",
        "\\boxed{x=5}!",
        "\\boxed{123} - and nothing else",
        "\\boxed{}",
    ):
        assert asked_forms(question("1", text)) == ["boxed"], text


@pytest.mark.parametrize(
    "text",
    ["#### Task\nWhat is 1+1?", "##### Part\nWhat is 1+1?", "What is in it: \\boxed{3}+1?", "Is \\boxed{x=2} > 1?"],
)
def test_a_heading_or_a_box_in_a_formula_asks_for_no_form(text: str) -> None:
    assert asked_forms(question("2", text)) == []
    assert not check_own_answers([question("2", text)], resolve_reward("answer")).wrong


@pytest.mark.parametrize("reward", ["answer", "boxed", "gsm8k", "auto"])
def test_all_answers_of_minisci_are_right_in_every_form(reward: str) -> None:
    result = check_own_answers(questions("train", 500, seed=0), resolve_reward(reward))
    assert (result.checked, list(result.wrong), result.unasked) == (500, [], 500)


@pytest.mark.parametrize(
    ("reward", "record", "reason", "fix"),
    [
        ("answer", question("4", IN_A_BOX), "the prompt asks for \\boxed{...}, in which none is read", BOX_READER),
        ("answer", question("4", AFTER_MARK), "the prompt asks for #### ..., in which none is read", "reward=gsm8k."),
        ("boxed", question("4", IN_TAGS), "the prompt asks for <answer>...</answer>, in which", "Set reward=answer."),
        ("letter", question("B", IN_TAGS), "the prompt asks for <answer>...</answer>, in which", "Set reward=answer."),
        ("letter", question("24"), "no answer is read in it", "reward=answer, with a data.suffix that asks for <answ"),
        ("gsm8k", question("iron"), "no answer is read in it", "reward=answer, with a data.suffix that asks for"),
        ("gsm8k", question("4 of 5"), "another answer is read in it", "reward=answer, with a data.suffix that asks"),
        ("answer", question("<answer>24</answer>"), "another answer is read in it", ALONE),
        ("boxed", question("so } it is"), "another answer is read in it", "reward=answer, with a data.suffix"),
    ],
)
def test_a_wrong_record_has_its_reason_and_the_likely_fix(reward: str, record: Question, reason: str, fix: str) -> None:
    result = check_own_answers([record], resolve_reward(reward))
    (wrong,) = result.wrong
    assert wrong.question is record
    assert reason in wrong.reason
    assert result.mostly_wrong
    assert fix in likely_fix(resolve_reward(reward), result.wrong)


def test_wrong_records_are_counted_by_reason_in_their_order() -> None:
    records = [question(str(i)) for i in range(8)] + [question("iron"), question("4 of 5"), question("tin")]
    result = check_own_answers(records, resolve_reward("gsm8k"))
    assert [wrong.question.answer for wrong in result.wrong] == ["iron", "4 of 5", "tin"]
    assert result.reasons == {"no answer is read in it": 2, "another answer is read in it": 1}
    assert not result.mostly_wrong
    assert check_own_answers(records[8:], resolve_reward("gsm8k")).mostly_wrong


def test_an_own_reward_is_called_on_a_few_records_in_every_form() -> None:
    calls: list[str] = []

    def bare(response: str, question: Question) -> float:
        calls.append(response)
        return float(response == f"Answer: {question.answer}")

    records = [question(str(i), IN_A_BOX) for i in range(50)]
    result = check_own_answers(records, Reward("mine.bare", bare, lambda response: response))
    assert (result.questions, result.checked, list(result.wrong)) == (50, OWN_REWARD_RECORDS, [])
    assert {response.rstrip("0123456789}") for response in calls} >= {"\\boxed{", "#### ", "Answer: "}

    def broken(response: str, question: Question) -> float:
        raise KeyError(response)

    failed = check_own_answers(records, Reward("mine.broken", broken, lambda response: response))
    assert failed.reasons == {"the reward fails": OWN_REWARD_RECORDS}


def test_a_slow_reward_ends_the_check_with_the_number_checked() -> None:
    def slow(response: str, question: Question) -> float:
        time.sleep(0.05)
        return 1.0

    slow_answer = Reward("answer", slow, lambda response: response)
    result = check_own_answers([question("1")] * 1000, slow_answer, within_s=0.3)
    assert 1 <= result.checked <= 6
    assert result.questions == 1000
