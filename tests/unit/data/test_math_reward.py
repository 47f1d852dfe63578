"""The reward `math`: answers by value, words exactly, and hostile answers within a bounded time."""

from __future__ import annotations

import os
import signal
import sys
import time

import psutil
import pytest

from demopsd_dist.config import Limits, RewardErrors
from demopsd_dist.data.examples import reward_group
from demopsd_dist.data.records import Question, RewardResult
from demopsd_dist.data.rewards import resolve_reward
from demopsd_dist.data.rewards.builtin import Reward
from demopsd_dist.data.rewards.math_reward import KILL_AFTER_S, KILL_FACTOR, MATH_CHARS, MathReward
from demopsd_dist.util.errors import ConfigError
from tests.unit.data.answer_cases.same_answer_cases import SAME
from tests.unit.data.answer_cases.spelled_answer_cases import CASE_FOLDED, SPELLED, WRAPPED
from tests.unit.run_record.sample_rows import prompt, rollout

LIMIT_S = 0.5
RIGHT = [
    ("x^2+2x+1", "(x+1)^2"),
    (r"2\sqrt{3}", r"\sqrt{12}"),
    ("10^3", "1000"),
    ("50%", "0.5"),
    (r"\frac{x+1}{2}", r"0.5x + 0.5"),
    (r"\{2, 1\}", r"\{1, 2\}"),
    (r"$\frac{2}{4}$", r"\frac12"),
    (r"x \in [1,2]", "[1,2]"),
    ("5!", "120"),
    (r"\begin{pmatrix} 1 & 2 \end{pmatrix}", r"\begin{pmatrix}1&2\end{pmatrix}"),
    ("y = 2x + 1", "y=1+2x"),
    ("ba", "ab"),
    ("1 1/2", "1.5"),
    ("1½", "1.5"),
    ("√12", r"2\sqrt{3}"),
    ("1.6e-19", r"1.6\times10^{-19}"),
    ("0.333333", "1/3"),
    (r"1011_2", "1011"),
    ("1-1", "0"),
    (r"\sin(\pi)", "0"),
    (r"\cos^2(1)+\sin^2(1)-1", "0"),
    ("-1+2e", "2e-1"),
    ("0.016667", r"\frac{1}{60}"),
    ("0.000278", "1/3600"),
    ("f'(x)=3x^2", "3x^2"),
    ("y'=2x", "2x"),
    (r"5\text{ million}", "5"),
]
WRONG = [
    ("x^2+2x", "(x+1)^2"),
    ("0.333", "1/3"),
    ("[1,2]", "(1,2)"),
    ("-5", "5"),
    ("silent", "listen"),
    ("no solution", "a solution"),
    ("x = 12", "13"),
    ("", "12"),
    ("1 1/2", "1"),
    (r"1.6\times10^{-19}", r"9.11\times10^{-31}"),
    ("0.0001234", "0.0001233"),
    ("0.0000001", "-0.0000003"),
    (r"\neq 3", "3"),
    ("> 5", "5"),
    ("x'", "x"),
    ("f'(x)", "f(x)"),
    ("f''(x)", "f'(x)"),
    ("y''=2x", "y'=2x"),
    ("0.000278", "1/3500"),
    ("A^T", "A"),
    ("1011_2", "1011_3"),
    (r"5\text{ billion}", r"5\text{ million}"),
]
HOSTILE = {
    "tower of powers": "9^{9^{9}}",
    "higher tower": "10^{10^{10^{10}}}",
    "factorial": "(10^{8})!",
    "factorials": "9!!!!!!",
    "open braces": "{" * 900,
    "brackets": "(" * 450 + "1" + ")" * 450,
    "sizes": r"\left(" * 120,
    "roots": r"\sqrt{" * 120 + "2" + "}" * 120,
    "fractions": r"\frac{1}{1+" * 80 + "2" + "}" * 80,
    "sum": r"\sum_{k=1}^{10^{9}} \frac{1}{k^2}",
    "integral": r"\int_0^{\infty} e^{-x^2} \sin(x^3)\cos(x^5) dx",
    "product": "*".join(f"(x+{i})" for i in range(100)),
    "expansion": "(x+y+z+1)^{200}",
    "functions": r"\sin(" * 60 + "x" + ")" * 60,
    "powers": "x^" * 250 + "x",
    "binomial": r"\binom{10^9}{5\cdot 10^8}",
    "remainder": r"7^{10^{15}} \mod 13",
    "gamma": r"\Gamma(10^{7})",
    "spaces": "1 " * 450,
    "digits": "9" * 990,
    "code": "__import__('os').abort()",
    "dollars": "$" * 900,
    "a long answer": "1+" * 500_000 + "1",
}


@pytest.fixture(scope="module")
def patient() -> Reward:
    return resolve_reward("math", Limits(math_s=60.0))


@pytest.fixture(scope="module")
def reward() -> Reward:
    return resolve_reward("math", Limits(math_s=LIMIT_S))


def asked(expected: str) -> Question:
    return Question(id="q", text="", answer=expected, field="all")


@pytest.mark.parametrize(("given", "expected"), RIGHT)
def test_answers_are_compared_by_value(patient: Reward, given: str, expected: str) -> None:
    assert patient(f"<answer>{given}</answer>", asked(expected)) == RewardResult(1.0)
    assert patient(rf"so \boxed{{{given}}}.", asked(expected)) == RewardResult(1.0)


@pytest.mark.parametrize(("given", "expected"), WRONG)
def test_other_values_and_other_words_are_wrong(patient: Reward, given: str, expected: str) -> None:
    assert patient(f"<answer>{given}</answer>", asked(expected)) == RewardResult(0.0)
    assert patient("no answer in this form: 12", asked(expected)) == RewardResult(0.0)


def test_what_is_the_same_to_the_exact_comparison_never_reaches_math_verify(reward: Reward) -> None:
    process = process_of(reward)
    process.suspend()
    try:
        for given, expected in [*SAME, *WRAPPED, *SPELLED, *CASE_FOLDED]:
            assert reward(f"<answer>{given}</answer>", asked(expected)) == RewardResult(1.0)
    finally:
        process.resume()


def test_the_answer_is_read_outside_the_thought_from_a_tag_or_a_box(reward: Reward) -> None:
    for response, answer in (
        (r"\boxed{1} <answer>2</answer> \boxed{3}", "2"),
        (r"<answer>so $\boxed{2}$</answer>", "2"),
        (r"<think>\boxed{1}</think> it is \boxed{2}", "2"),
        (r"<think>\boxed{1}", None),
        ("The answer is 2.", None),
    ):
        assert reward.extract(response) == answer


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_answer_is_wrong_within_the_limit(reward: Reward, name: str) -> None:
    started = time.monotonic()
    for expected in ("12", "12x + 5"):
        assert reward(f"<answer>{HOSTILE[name]}</answer>", asked(expected)).reward == 0.0
    assert time.monotonic() - started < 2 * (KILL_FACTOR * LIMIT_S + KILL_AFTER_S) + 5
    assert process_of(reward).status() != psutil.STATUS_ZOMBIE


def test_a_hanging_comparison_is_counted_and_remembered(reward: Reward) -> None:
    tower = rf"\boxed{{{HOSTILE['tower of powers']}}}"
    assert reward(tower, asked("15")) == RewardResult(0.0, undecided=True)
    started = time.monotonic()
    assert reward(tower, asked("15")).undecided
    assert time.monotonic() - started < LIMIT_S / 2
    question = prompt("q")
    group = reward_group([rollout(question, i, text) for i, text in enumerate([tower, "no", tower])], reward)
    assert (group.undecided, group.rewards, group.failures) == (2, [0.0] * 3, [])


def test_a_process_that_does_not_end_its_comparison_is_killed_and_started_again(reward: Reward) -> None:
    """A stopped process stands for one that hangs where no signal reaches it."""
    process = process_of(reward)
    os.kill(process.pid, signal.SIGSTOP)
    assert reward("<answer>2 + 2</answer>", asked("5")) == RewardResult(0.0, undecided=True)
    assert not process.is_running()
    assert not reward("<answer>2 + 2</answer>", asked("6")).undecided
    assert process_of(reward).pid != process.pid


def test_long_answers_are_compared_exactly(reward: Reward) -> None:
    long = "1" + "+1" * (MATH_CHARS // 2)
    assert reward(f"<answer>{long}</answer>", asked(str(MATH_CHARS // 2 + 1))) == RewardResult(0.0)
    assert reward(f"<answer>{long}</answer>", asked(long)) == RewardResult(1.0)


def test_a_missing_package_is_refused_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)  # as Python marks a package that cannot be imported
    with pytest.raises(ConfigError, match=r"reward=math needs math-verify, .* pip install math-verify==0\.9\.0"):
        resolve_reward("math")


def test_its_process_ends_with_the_reward() -> None:
    reward = resolve_reward("math", errors=RewardErrors.stop)
    process = process_of(reward)
    del reward
    assert not process.is_running()


def process_of(reward: Reward) -> psutil.Process:
    assert isinstance(reward.function, MathReward)
    return psutil.Process(reward.function.process.pid)
