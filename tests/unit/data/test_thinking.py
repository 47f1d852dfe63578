"""Thoughts: an answer counts outside of them alone, and only a solution that is right without its thought is shown."""

from __future__ import annotations

import time

import pytest

from demopsd_dist.config import RewardErrors
from demopsd_dist.data.examples import RewardedGroup, examples_from_siblings, reward_group
from demopsd_dist.data.leakage_signs import early_answer_prompts
from demopsd_dist.data.prompts import PromptBuilder
from demopsd_dist.data.records import Question
from demopsd_dist.data.rewards import Reward, resolve_reward
from demopsd_dist.data.thinking import strip_thinking
from demopsd_dist.minisci.tokenizer import byte_tokenizer
from tests.unit.run_record.sample_rows import rollout

QUESTION = Question(id="q", text="2+3?", answer="5", field="sums")
BUILDER = PromptBuilder(byte_tokenizer())
CUT = "<think>try <answer>5</answer> maybe, or 6? let me check ag"
WRONG = "<think>2+3=6</think><answer>6</answer>"
RIGHT = "<think>2+3=5</think><answer>5</answer>"


def opening_builder() -> PromptBuilder:
    """Builder whose chat template writes `<think>` at the end of the generation prompt."""
    tokenizer = byte_tokenizer()
    assert isinstance(tokenizer.chat_template, str)
    tokenizer.chat_template += "{% if add_generation_prompt %}{{ '<think>\\n' }}{% endif %}"
    return PromptBuilder(tokenizer)


def group(*texts: str, reward: str | Reward = "answer", builder: PromptBuilder = BUILDER) -> RewardedGroup:
    prompt = builder.student(QUESTION)
    function = resolve_reward(reward) if isinstance(reward, str) else reward
    return reward_group([rollout(prompt, i, text) for i, text in enumerate(texts)], function)


def shown(rewarded: RewardedGroup, builder: PromptBuilder = BUILDER) -> dict[int, str]:
    """Solution in the teacher's view of each response that gives an example."""
    examples = examples_from_siblings([rewarded], builder, exclude_own_success=True, seed="0").examples
    views = {example.rollout.sample: builder.tokenizer.decode(example.privileged_tokens) for example in examples}
    return {
        sample: view.partition("Correct solution:\n\n")[2].partition("\n\nCorrectly solve")[0]
        for sample, view in views.items()
    }


def test_a_cut_thought_is_no_answer_and_no_solution() -> None:
    rewarded = group(CUT, WRONG, "<think>I guess <answer>5</answer> but then")
    assert rewarded.rewards == [0.0, 0.0, 0.0]
    assert shown(rewarded) == {}


@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        ("[THINK]", "[/THINK]"),
        ("<|channel>thought\n", "<channel|>"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<seed:think>", "</seed:think>"),
        ("◁think▷", "◁/think▷"),
    ],
)
def test_thoughts_of_other_models_are_thoughts(opening: str, closing: str) -> None:
    thought = f"{opening}maybe <answer>6</answer>"
    assert strip_thinking(f"{thought}{closing}<answer>5</answer>") == "<answer>5</answer>"
    assert strip_thinking(thought) == ""
    assert strip_thinking(f"<think>unopened{closing}It is 5.") == "It is 5."
    assert group(thought, f"{thought}{closing}<answer>5</answer>").rewards == [0.0, 1.0]


def test_an_answer_inside_the_thought_alone_is_none() -> None:
    rewarded = group("<think>maybe <answer>5</answer>?</think> I can not say", "<think>x</think><answer>6</answer>")
    assert rewarded.rewards == [0.0, 0.0]
    assert shown(rewarded) == {}


def test_a_solution_is_shown_without_its_thought() -> None:
    rewarded = group(RIGHT, WRONG, "It is <think>hm</think> <answer>5</answer>")
    assert rewarded.rewards == [1.0, 0.0, 1.0]
    solutions = shown(rewarded)
    assert solutions[0] == "It is\n<answer>5</answer>"
    assert solutions[2] == "<answer>5</answer>"
    assert solutions[1] in solutions.values()


def whole_text(response: str, question: Question) -> float:
    return float(f"<answer>{question.answer}</answer>" in response)


def test_a_success_that_is_wrong_without_its_thought_is_not_shown() -> None:
    """A user's own reward may read the thought; its text is then rewarded again without it."""
    own = Reward("own", whole_text, lambda response: None)
    thought, shown_right = "<think><answer>5</answer></think> I can not say", "<think>2+3</think><answer>5</answer>"
    rewarded = group(thought, thought, "<answer>6</answer>", reward=own)
    assert rewarded.rewards == [1.0, 1.0, 0.0]
    assert rewarded.successes == [0, 1]
    assert shown(rewarded) == {}, "no sibling can be shown"
    assert shown(group(thought, shown_right, reward=own)) == {0: "<answer>5</answer>"}
    assert shown(group("<think><answer>5</answer>", "<answer>6</answer>", reward=own)) == {}, "nothing is left"


def test_a_reward_that_fails_without_the_thought_makes_no_solution() -> None:
    def fails_outside(response: str, question: Question) -> float:
        if "<think>" not in response:
            raise KeyError("no thought")
        return 1.0

    reward = Reward("own", fails_outside, lambda response: None, RewardErrors.drop)
    rewarded = group(RIGHT, RIGHT, reward=reward)
    assert rewarded.rewards == [1.0, 1.0]
    assert shown(rewarded) == {}


def test_a_template_that_opens_the_thought() -> None:
    builder = opening_builder()
    prompt = builder.student(QUESTION)
    assert prompt.opens_thought
    assert not BUILDER.student(Question("q", "why <think>", "5", "sums", system="<think>")).opens_thought
    cut, whole = "so <answer>5</answer> or", "2+3 is 5</think><answer>5</answer>"
    rewarded = group(cut, whole, "6</think><answer>6</answer>", builder=builder)
    assert rewarded.rewards == [0.0, 1.0, 0.0]
    assert shown(rewarded, builder) == {0: "<answer>5</answer>", 2: "<answer>5</answer>"}
    assert group(cut, reward=Reward("own", whole_text, lambda _: None), builder=builder).rewards == [1.0]
    assert shown(group(cut, cut, reward=Reward("own", whole_text, lambda _: None), builder=builder), builder) == {}
    assert not early_answer_prompts([prompt], builder.tokenizer)[0].opens_thought, "its answer stands in the thought"


def test_an_own_reward_sees_the_thought_that_the_template_opened() -> None:
    seen: list[str] = []

    def record(response: str, question: Question) -> float:
        seen.append(response)
        return 0.0

    group("so 5", reward=Reward("own", record, lambda _: None), builder=opening_builder())
    group("so 5", reward=Reward("own", record, lambda _: None))
    assert seen == ["<think>so 5", "so 5"]


HOSTILE = {"opened": "<think>" * 150_000, "closed": "</think>" * 130_000, "both": "<think></think>" * 70_000}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_megabyte_is_stripped_in_linear_time(name: str) -> None:
    started = time.process_time()
    strip_thinking(HOSTILE[name] + "<answer>5</answer>")
    assert time.process_time() - started < 2.0
