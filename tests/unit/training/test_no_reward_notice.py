"""Notice of a run without reward: its counts, the likely cause, and the response that shows it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from demopsd_dist.config import TruncatedReward
from demopsd_dist.data.records import Rollout
from demopsd_dist.data.rewards import Reward, resolve_reward
from demopsd_dist.data.rewards.no_reward_notice import notice
from tests.unit.run_record.sample_rows import prompt, rollout

OTHER, NONE = "<answer>7</answer>", "I can not say"


def responses(other: int = 0, none: int = 0, cut: int = 0) -> list[Rollout]:
    """Responses with another answer, without one, and cut before one, in this order."""
    question = prompt("q", answer="12")
    texts = [OTHER] * other + [NONE] * none + [f"{NONE}, since"] * cut
    made = [rollout(question, i, f"{text} [{i}]") for i, text in enumerate(texts)]
    return [replace(one, truncated=i >= other + none) for i, one in enumerate(made)]


@pytest.mark.parametrize(
    ("other", "none", "cut", "cause", "shown"),
    [
        (1, 2, 5, "5 of 8 were cut at rollout.max_response_tokens=64 before an answer", "I can not say, since [3]"),
        (1, 5, 2, "no answer in the form of reward=answer (<answer>...</answer>) in 7 of 8", "I can not say [1]"),
        (0, 4, 4, "no answer in the form of reward=answer (<answer>...</answer>) in 8 of 8", "I can not say [0]"),
        (6, 1, 1, "6 of 8 have an answer, another than the expected one", "<answer>7</answer> [0]"),
        (4, 4, 0, "4 of 8 have an answer, another than the expected one", "<answer>7</answer> [0]"),
    ],
)
def test_the_likely_cause_is_that_of_most_responses(other: int, none: int, cut: int, cause: str, shown: str) -> None:
    lines = notice(responses(other, none, cut), resolve_reward("answer"), 64, 2)
    assert lines[0].startswith("warning: no reward in the first 2 steps. Likely cause, from step 2: ")
    assert cause in lines[0]
    assert lines[1] == (
        f"  8 responses: {none + cut} without an answer ({cut} of them cut), {other} with a different one"
    )
    assert lines[2:] == [f"  response to q: {shown}", "  expected answer: 12"]


def test_cut_responses_without_a_reward_are_the_cause_whatever_they_answer() -> None:
    cut = [replace(one, truncated=True) for one in responses(other=3)] + responses(none=1)
    reward = resolve_reward("answer", truncated=TruncatedReward.zero)
    lines = notice(cut, reward, 64, 2)
    assert "3 of 4 were cut at rollout.max_response_tokens=64, and truncated_reward=zero. Raise it" in lines[0]
    assert lines[1] == "  4 responses: 1 without an answer (0 of them cut), 3 with a different one"
    assert "another than the expected one" in notice(cut, resolve_reward("answer"), 64, 2)[0]


def test_a_reward_that_reads_the_responses_is_named() -> None:
    question = prompt("q", answer="12")
    texts = [r"so \boxed{12}", r"so \boxed{12}", r"so \boxed{7}", "no idea"]
    lines = notice([rollout(question, i, text) for i, text in enumerate(texts)], resolve_reward("answer"), 64, 2)
    assert "that the responses have: reward=boxed would find 2 of these 4 right." in lines[0]
    none = notice([rollout(question, i, "no idea") for i in range(4)], resolve_reward("answer"), 64, 2)
    assert "would find" not in none[0]


def test_of_an_own_reward_only_the_cut_responses_are_known() -> None:
    reward = Reward("my.reward", lambda response, question: 0.0, lambda response: response or None)
    lines = notice(responses(3, 2, 1), reward, 64, 1)
    assert "reward=my.reward gave 0 to each" in lines[0]
    assert "in the first 1 steps" not in lines[0]
    assert lines[1] == "  6 responses: 1 cut"


def test_a_long_and_hostile_response_is_shortened_and_escaped() -> None:
    text = "\n".join(f"line {i} \x1b[2J" for i in range(50)) + "x" * 5000
    long = rollout(prompt("q", answer="a\nb\x1b"), 0, text)
    lines = notice([long], resolve_reward("boxed"), 64, 2)
    assert r"reward=boxed (\boxed{...})" in lines[0]
    assert len(lines) <= 9
    assert max(map(len, lines)) < 400
    assert "\x1b" not in "".join(lines)
    assert "\n" not in "".join(lines)
