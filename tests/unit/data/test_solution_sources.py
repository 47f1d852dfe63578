"""Source of the teacher's solution: what it sees in each setting, and what of the data may be shown."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from demopsd_dist.config import Config, SolutionSource
from demopsd_dist.config.cross_checks import check
from demopsd_dist.config.method_settings import MethodName
from demopsd_dist.data.dataset_solutions import ALL_THOUGHT, MISSING, OTHER_ANSWER, dataset_solutions
from demopsd_dist.data.examples import ContextChooser, RewardedGroup, examples_with_contexts, reward_group
from demopsd_dist.data.prompts import PromptBuilder
from demopsd_dist.data.records import Question, RewardResult, TrainingExample
from demopsd_dist.data.rewards import ANSWER_FORMS, Reward, resolve_reward
from demopsd_dist.minisci import tasks
from demopsd_dist.minisci.tokenizer import byte_tokenizer
from demopsd_dist.util.errors import ConfigError, DataError
from tests.unit.run_record.sample_rows import rollout

RIGHT, WRONG = "sib <answer>1</answer>", "hm <answer>2</answer>"
NAMES = ("a", "b", "c")
SOLUTIONS = {name: f"own {name}" for name in NAMES}
HEADING = "Correct solution:"


@pytest.fixture(scope="module")
def builder() -> PromptBuilder:
    return PromptBuilder(byte_tokenizer())


def ask(name: str, **more: Any) -> Question:
    return Question(id=name, text=f"question {name}", answer="1", field="physics", **more)


def group(builder: PromptBuilder, name: str, texts: list[str]) -> RewardedGroup:
    prompt = builder.student(ask(name))
    return reward_group([rollout(prompt, i, f"{text} [{i}]") for i, text in enumerate(texts)], resolve_reward("answer"))


def examples_of(builder: PromptBuilder, source: SolutionSource, **more: Any) -> dict[str, TrainingExample]:
    """Examples of three groups: two right of three, a lone right one, none right; `c` has no solution of its own."""
    groups = [
        group(builder, "a", [RIGHT, RIGHT, WRONG]),
        group(builder, "b", [WRONG, RIGHT]),
        group(builder, "c", [WRONG] * 2),
    ]
    settings = {"seed": "0/0", "solutions": SOLUTIONS, "others": [ask(name) for name in NAMES]} | more
    batch = examples_with_contexts(groups, builder, ContextChooser(source=source, **settings))
    assert batch.size.sequences == len(batch.examples)
    return {example.id: example for example in batch.examples}


def shown(builder: PromptBuilder, example: TrainingExample) -> list[str]:
    """Solutions in the teacher's prompt, in their order."""
    view = builder.tokenizer.decode(example.privileged_tokens)
    assert view.count(f"question {example.question.id}") == 1
    body, end, _ = view.partition("\n\nCorrectly solve the original question.")
    assert end
    return [part.strip().partition(" [")[0] for part in body.split(HEADING)[1:]]


A, B, C = ["a#0", "a#1", "a#2"], ["b#0", "b#1"], ["c#0", "c#1"]
SIBLING = RIGHT


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (SolutionSource.sibling, {name: [SIBLING] for name in [*A, "b#0"]}),
        (SolutionSource.dataset, {name: [f"own {name[0]}"] for name in A + B + C}),
        (
            SolutionSource.sibling_or_dataset,
            {name: [SIBLING] for name in [*A, "b#0"]} | {name: [f"own {name[0]}"] for name in ["b#1", *C]},
        ),
        (
            SolutionSource.sibling_and_dataset,
            {name: [SIBLING, f"own {name[0]}"] for name in [*A, "b#0"]}
            | {name: [f"own {name[0]}"] for name in ["b#1", *C]},
        ),
        (SolutionSource.answer_only, {name: ["<answer>1</answer>"] for name in A + B + C}),
    ],
)
def test_each_source_shows_its_solutions_to_the_responses_that_have_one(
    builder: PromptBuilder, source: SolutionSource, expected: dict[str, list[str]]
) -> None:
    examples = examples_of(builder, source)
    assert {name: shown(builder, example) for name, example in examples.items()} == {
        name: expected[name] for name in sorted(expected)
    }
    for name, example in examples.items():
        both = source is SolutionSource.sibling_and_dataset and len(expected[name]) == 2
        kinds = {True: "sibling", False: "dataset"}
        assert example.source == (
            "sibling_and_dataset"
            if both
            else source.value
            if source is SolutionSource.answer_only
            else kinds[expected[name] == [SIBLING]]
        )
        assert not example.cut
    assert {example.source for example in examples.values()} <= set(ContextChooser("0", source).sources)


def test_a_question_without_a_solution_gives_no_example_unless_a_sibling_does(builder: PromptBuilder) -> None:
    only_b = {"solutions": {"b": "own b"}}
    assert list(examples_of(builder, SolutionSource.dataset, **only_b)) == B
    assert list(examples_of(builder, SolutionSource.sibling_or_dataset, **only_b)) == A + B
    both = examples_of(builder, SolutionSource.sibling_and_dataset, **only_b)
    assert {name: example.source for name, example in both.items()} == {
        **dict.fromkeys(A, "sibling"),
        "b#0": "sibling_and_dataset",
        "b#1": "dataset",
    }


def test_equal_solutions_are_shown_once(builder: PromptBuilder) -> None:
    twin = {"solutions": {"b": f"{RIGHT} [1]"}}
    example = examples_of(builder, SolutionSource.sibling_and_dataset, **twin)["b#0"]
    assert shown(builder, example) == [SIBLING]
    assert example.source == "sibling_and_dataset"


def test_another_questions_solution_is_never_the_own_and_follows_the_seed(builder: PromptBuilder) -> None:
    many = [f"q{i}" for i in range(12)]
    more = {
        "solutions": {name: f"own {name}" for name in many} | SOLUTIONS,
        "others": [ask(name) for name in (*many, *NAMES)],
    }
    first = examples_of(builder, SolutionSource.other_question, **more)
    assert list(first) == A + B + C
    views = {name: shown(builder, example) for name, example in first.items()}
    assert all(len(texts) == 1 and texts[0] != f"own {name[0]}" for name, texts in views.items())
    assert {example.source for example in first.values()} == {"other_question"}
    again = examples_of(builder, SolutionSource.other_question, **more)
    assert {name: shown(builder, example) for name, example in again.items()} == views
    other = examples_of(builder, SolutionSource.other_question, **(more | {"seed": "0/1"}))
    assert {name: shown(builder, example) for name, example in other.items()} != views
    alone = {"solutions": {"a": "own a"}, "others": [ask("a")]}
    assert list(examples_of(builder, SolutionSource.other_question, **alone)) == B + C, "a has only its own"


def test_the_same_question_under_another_id_is_no_other_question(builder: PromptBuilder) -> None:
    twin = {"solutions": {"x": "own x"}, "others": [replace(ask("a"), id="x")]}
    assert list(examples_of(builder, SolutionSource.other_question, **twin)) == B + C


def test_feedback_stands_beside_any_source_and_alone_where_there_is_none(builder: PromptBuilder) -> None:
    reward = Reward("hint", lambda response, question: RewardResult(0.0, "Too short."), lambda response: None)
    prompt = builder.student(ask("c"))
    without = reward_group([rollout(prompt)], reward)
    for source, solutions, kind in (
        (SolutionSource.sibling, {}, "feedback"),
        (SolutionSource.dataset, {}, "feedback"),
        (SolutionSource.dataset, {"c": "own c"}, "dataset"),
    ):
        chooser = ContextChooser("0", source, feedback=True, solutions=solutions)
        (example,) = examples_with_contexts([without], builder, chooser).examples
        view = builder.tokenizer.decode(example.privileged_tokens)
        assert "Too short." in view
        assert (HEADING in view) == (kind == "dataset")
        assert example.source == kind
        assert kind in chooser.sources
        assert chooser.can_show(without)
        assert not replace(chooser, feedback=False, solutions={}).can_show(without)


def test_of_two_solutions_the_second_is_cut_first(builder: PromptBuilder) -> None:
    question, first, second = ask("a"), "s" * 200, "d" * 200
    whole = len(builder.privileged(question, (first, second)))

    def view(limit: int) -> tuple[str, bool]:
        tokens, cut = PromptBuilder(builder.tokenizer, max_privileged_tokens=limit).privileged_or_cut(
            question, (first, second)
        )
        assert len(tokens) <= limit
        return builder.tokenizer.decode(tokens), cut

    text, cut = view(whole)
    assert (text.count(first), text.count(second), cut) == (1, 1, False)
    text, cut = view(whole - 50)
    assert first in text
    assert "d" * 150 in text
    assert "d" * 151 not in text
    assert cut
    text, cut = view(whole - 300)
    assert "d" not in text.partition(HEADING)[2].partition("Correctly")[0], "its heading goes too"
    assert text.count(HEADING) == 1
    assert "s" * 100 in text
    assert cut


def own_reward(response: str, question: Question) -> float:
    """A reward that wants one form only, and would mark any solution of a data set wrong."""
    return float(response == "verdict: 1")


@pytest.mark.parametrize(
    ("reward", "solution", "reason"),
    [
        ("answer", None, MISSING),
        ("answer", "  \n", MISSING),
        ("answer", "<think>1 and 1, so", ALL_THOUGHT),
        ("answer", "4 - 3 = 1", None),  # it states no answer in the reward's form
        ("answer", "4 - 3 <answer>1</answer>", None),
        ("answer", "4 - 3 <answer>2</answer>", OTHER_ANSWER),
        ("answer", "<think>so <answer>1</answer></think>It is <answer>2</answer>", OTHER_ANSWER),
        ("answer", "<think>so <answer>2</answer></think>It is <answer>1</answer>", None),
        ("boxed", r"\boxed{2}", OTHER_ANSWER),
        ("boxed", r"so $\boxed{1}$", None),
        ("letter", "The answer is B.", OTHER_ANSWER),
        ("gsm8k", "1 bag for 7 days", None),  # its last number need not be the answer
        ("gsm8k", "1 bag\n#### 7", OTHER_ANSWER),
        ("gsm8k", "1 bag\n#### 1", None),
    ],
)
def test_a_solution_that_states_another_answer_is_not_shown(
    builder: PromptBuilder, reward: str, solution: str | None, reason: str | None
) -> None:
    config = Config()
    config.privileged.source = SolutionSource.dataset
    questions = [ask("good", solution="fine"), ask("q", solution=solution)]
    found = dataset_solutions(config, questions, builder, resolve_reward(reward))
    assert found.left_out == ({} if reason is None else {reason: ["q"]})
    assert ("q" in found.texts) == (reason is None)
    assert "<think>" not in "".join(found.texts.values())
    assert len(found.notes(config)) == (reason is not None)
    assert all("1 of 2 training questions" in line and "(q)" in line for line in found.notes(config))


def test_an_own_reward_is_asked_about_solutions_with_a_thought_alone(builder: PromptBuilder) -> None:
    config = Config()
    config.privileged.source = SolutionSource.dataset
    reward = Reward("my.reward", own_reward, lambda response: response or None)
    solutions = {"plain": "any text", "good": "<think>x</think>verdict: 1", "bad": "<think>x</think>verdict: 2"}
    found = dataset_solutions(config, [ask(name, solution=text) for name, text in solutions.items()], builder, reward)
    assert dict(found.texts) == {"plain": "any text", "good": "verdict: 1"}
    assert found.left_out == {OTHER_ANSWER: ["bad"]}


def test_data_without_a_solution_is_refused_in_one_line_with_the_field(builder: PromptBuilder) -> None:
    config = Config()
    questions = [ask("a"), ask("b", solution="<answer>2</answer>"), ask("c")]
    reward = resolve_reward("answer")
    for source in SolutionSource:
        config.privileged.source = source
        if not source.reads_data:
            assert dataset_solutions(config, questions, builder, reward).notes(config) == []
            continue
        with pytest.raises(DataError, match="of 3 questions") as caught:
            dataset_solutions(config, questions, builder, reward)
        text = str(caught.value)
        assert "\n" not in text
        assert f"privileged.source={source.value}" in text
        assert f"2 {MISSING}, 1 {OTHER_ANSWER}" in text
        assert "data.fields.solution" in text


def test_solutions_that_are_cut_are_counted_before_the_start(builder: PromptBuilder) -> None:
    config = Config()
    config.privileged.source = SolutionSource.dataset
    config.privileged.max_tokens = 200
    small = PromptBuilder(builder.tokenizer, max_privileged_tokens=200)
    questions = [ask(f"q{i}", solution="s" * (500 if i else 5)) for i in range(5)]
    found = dataset_solutions(config, questions, small, resolve_reward("answer"))
    (line,) = found.notes(config)
    assert "4 of 5 solutions are longer than privileged.max_tokens=200" in line
    assert "(q1, q2, q3, ...)" in line


@pytest.mark.parametrize("form", sorted(ANSWER_FORMS))
def test_the_bare_answer_has_the_form_that_the_reward_reads(builder: PromptBuilder, form: str) -> None:
    question = replace(ask("q"), answer="B")
    chooser = ContextChooser("0", SolutionSource.answer_only, form=ANSWER_FORMS[form])
    only = reward_group([rollout(builder.student(question))], resolve_reward("answer"))
    context = chooser.choose(only, 0)
    assert context is not None
    if form != "gsm8k":  # which reads numbers
        assert resolve_reward(form)(context.solutions[0], question).reward == 1.0


def test_settings_that_could_have_no_effect_are_refused() -> None:
    config = Config()
    config.privileged.source = SolutionSource.dataset
    config.rollout.group_size = 1  # no sibling is needed
    check(config)
    config.method = MethodName.grpo
    config.rollout.group_size = 2
    with pytest.raises(ConfigError, match=r"privileged\.source=dataset has no effect with method=grpo"):
        check(config)
    config = Config()
    config.privileged.source = SolutionSource.other_question
    config.rollout.prompts_per_step = 1
    with pytest.raises(ConfigError, match="a step has no other question"):
        check(config)


def test_minisci_has_solutions_that_its_reward_counts_as_right(builder: PromptBuilder) -> None:
    """Each with its working, `35+3*3=35+9=44` and such."""
    questions = tasks.questions("train", 200, 0)
    reward = resolve_reward("answer")
    assert all(question.solution and reward(question.solution, question).reward == 1.0 for question in questions)
    assert Counter("=" in (question.solution or "") for question in questions) == {True: 200}
    config = Config()
    config.privileged.source = SolutionSource.dataset
    assert len(dataset_solutions(config, questions, builder, reward).texts) == 200
