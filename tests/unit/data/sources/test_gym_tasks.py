"""Tasks of reasoning-gym as data sets: the real generators and scorers, which `make test` installs."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from demopsd_dist.config import DataConfig, Limits
from demopsd_dist.data.records import Question, RewardResult
from demopsd_dist.data.rewards import resolve_reward
from demopsd_dist.data.sources import LoadedData, load_data, load_split
from demopsd_dist.util.errors import ConfigError, DataError

TASKS = "gym:chain_sum?size=30&level=1,leg_counting?size=10"


def loaded(train: object, test: str | None = None, **settings: object) -> LoadedData:
    return load_data(DataConfig(train=train, test=test, ood=None, **settings))  # type: ignore[arg-type]


def texts(questions: list[Question]) -> set[str]:
    return {question.text for question in questions}


def test_several_tasks_have_their_fields_sizes_and_own_answers() -> None:
    source = load_split(DataConfig(train=TASKS, system="Be short.", suffix=" Answer?"), "train")
    assert source.records == 40
    assert {question.field for question in source.questions} == {"chain_sum", "leg_counting"}
    assert len({question.id for question in source.questions}) == len(source.questions)
    first = source.questions[0]
    assert first.id == "gym/chain_sum?size=30&level=1/1"
    assert (first.system, first.text.endswith(" = Answer?")) == ("Be short.", True)
    terms = re.findall(r"[-+]?\s*\d+", first.text.partition(": ")[2])
    assert sum(int(term.replace(" ", "")) for term in terms) == int(first.answer)
    assert source.places[first.id] == f"data.train={TASKS}, question 1 of chain_sum"


def test_the_same_words_are_the_same_questions_and_seed_and_level_change_them() -> None:
    plain = texts(load_split(DataConfig(train="gym:chain_sum?size=20"), "train").questions)
    assert plain == texts(load_split(DataConfig(train="gym:chain_sum?size=20"), "train").questions)
    for other in ("gym:chain_sum?size=20&seed=1", "gym:chain_sum?size=20&level=0", "gym:chain_sum?size=20&min_terms=5"):
        changed = texts(load_split(DataConfig(train=other), "train").questions)
        assert len(plain & changed) < 5, "short questions recur by chance"


def test_training_and_test_questions_are_disjoint() -> None:
    small = "gym:chain_sum?size={0}&min_terms=2&max_terms=2&max_digits=1"
    data = loaded(small.format(150), small.format(60))
    train, test = data.questions["train"], data.questions["test"]
    assert data.duplicates, "so small a space has questions in common"
    assert not texts(train) & texts(test)
    assert len(texts(train)) == len(train)
    reasons = data.splits["train"].refused
    assert reasons["chain_sum: repeats an earlier question"] > 0
    assert reasons["is also in a test set"] > 0
    assert len(train) + reasons.total() == 150
    split = loaded("gym:chain_sum?size=40", "split")
    assert not texts(split.questions["train"]) & texts(split.questions["test"])


def test_an_answer_is_read_as_the_reward_says_and_scored_by_its_task() -> None:
    data = loaded([{"path": TASKS, "weight": 1}, {"path": "minisci", "weight": 1}], minisci_train_size=4)
    forms = {"answer": "<answer>{}</answer>", "boxed": r"so \boxed{{{}}}", "gsm8k": "so {}", "math": r"\boxed{{{}}}"}
    for name, form in forms.items():
        reward = resolve_reward(name)
        for question in (data.questions["train"][0], data.questions["train"][-5], data.questions["train"][-1]):
            assert reward(form.format(question.answer), question) == RewardResult(1.0), (name, question.id)
            assert reward(form.format("987654"), question).reward < 0.5
            assert reward("no answer", question) == RewardResult(0.0)


def test_a_partial_score_is_the_tasks_own() -> None:
    question = load_split(DataConfig(train="gym:leg_counting?size=1"), "train").questions[0]
    result = resolve_reward("answer")(f"<answer>about {question.answer}</answer>", question)
    assert 0 < result.reward < 1


@pytest.mark.parametrize(
    ("task", "answer", "score"),
    [
        ("lcm?max_numbers=2&max_value=90", "{value:,}", 1.0),
        ("lcm?max_numbers=2&max_value=90", "**{value}**", 1.0),
        ("gcd?max_numbers=2", "1{value}", 0.0),
        ("leg_counting", "-{value}", 0.0),
        ("leg_counting", "{value}.5", 0.0),
    ],
)
def test_another_spelling_is_right_and_another_number_wrong(task: str, answer: str, score: float) -> None:
    """The library's default scorer gives 0.5 for 15 where 5 is expected, and for 1,260 where 1260 is."""
    every = load_split(DataConfig(train=f"gym:{task}{'&' if '?' in task else '?'}size=40"), "train").questions
    question = max(every, key=lambda one: int(one.answer))
    given = answer.format(value=int(question.answer))
    assert resolve_reward("answer")(f"<answer>{given}</answer>", question) == RewardResult(score)


def test_an_answer_that_cannot_be_scored_is_wrong_and_counted() -> None:
    question = load_split(DataConfig(train="gym:chain_sum?size=1"), "train").questions[0]
    other = Question(question.id, question.text, "-1", question.field, task=question.task)
    reward = resolve_reward("answer", Limits(reward_s=60.0))
    assert reward("<answer>3</answer>", other) == RewardResult(0.0, undecided=True)
    assert reward(f"<answer>{question.answer}</answer>", question) == RewardResult(1.0)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gym:chain_summ", r"reasoning-gym has no task chain_summ\. Did you mean chain_sum"),
        ("gym:", r"'' is no task\. Write name or name\?setting=value"),
        ("gym:chain_sum?level=99", r"level=99 of chain_sum must be a whole number between 0 and \d+\."),
        ("gym:chain_sum?size=0", r"size=0 of chain_sum must be a whole number between 1 and"),
        ("gym:chain_sum?sise=3", r"chain_sum has no setting sise; it has min_terms, .* Did you mean size\?"),
        ("gym:chain_sum?size=3&size=4", r"'size=4' of chain_sum must be one setting=value, and each once\."),
        ("gym:chain_sum,chain_sum", r"chain_sum is there twice\."),
        (
            "gym:chain_sum?min_terms=9",
            r"reasoning-gym's chain_sum fails with these settings, AssertionError: max_terms must be",
        ),
        (
            'gym:simple_equations?operators=["+","-"]',
            r"reasoning-gym's simple_equations fails at question 1, ValueError: The number of weights does not match "
            r"the population\. Change the settings of simple_equations\?operators=",
        ),
    ],
)
def test_a_wrong_task_or_setting_and_a_failing_generator_are_one_line(source: str, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(f"data.train={source}: ") + message) as caught:
        load_split(DataConfig(train=source), "train")
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_refused_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)  # as Python marks a package that cannot be imported
    with pytest.raises(ConfigError, match=r"reasoning-gym, which is not installed\. Install it: make gym"):
        load_split(DataConfig(train=TASKS), "train")
    lock = (Path(__file__).parents[4] / "requirements" / "gym.lock").read_text()
    assert "reasoning-gym==0.1.25\n" in lock
