"""From rollouts to a training batch: the choice of siblings, and every sample in exactly one shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demopsd_dist.config import TruncatedReward
from demopsd_dist.config.method_settings import MixedConfig, Routing
from demopsd_dist.data.examples import (
    ContextChooser,
    RewardedGroup,
    examples_for_mixture,
    examples_from_rewards,
    examples_from_siblings,
    mixture_terms,
    reward_group,
)
from demopsd_dist.data.packing import Row, padded_batches
from demopsd_dist.data.prefix_tree import build_prefix_tree
from demopsd_dist.data.prompts import PromptBuilder
from demopsd_dist.data.records import Question, RewardResult, ScoredExample, TrainingExample
from demopsd_dist.data.rewards import Reward, resolve_reward
from demopsd_dist.minisci.tokenizer import byte_tokenizer
from tests.unit.run_record.sample_rows import packed, prompt, rollout, scored

RIGHT, WRONG = "so <answer>1</answer>", "hm <answer>2</answer>"


@pytest.fixture(scope="module")
def builder() -> PromptBuilder:
    return PromptBuilder(byte_tokenizer())


def group(name: str, texts: list[str]) -> RewardedGroup:
    question = prompt(name)
    return reward_group(
        [rollout(question, i, f"{text} [{i}]") for i, text in enumerate(texts)], resolve_reward("answer")
    )


def sibling_in(builder: PromptBuilder, view: object) -> int:
    """Sample number of the solution in the teacher's prompt."""
    text = builder.tokenizer.decode(view)
    return int(text.partition("Correct solution:")[2].partition("[")[2].partition("]")[0])


def sibling_examples(
    builder: PromptBuilder, groups: list[RewardedGroup], *, exclude_own_success: bool = True
) -> list[TrainingExample]:
    return examples_from_siblings(groups, builder, exclude_own_success=exclude_own_success, seed="0").examples


def test_a_rollout_learns_from_a_correct_sibling_and_never_from_itself(builder: PromptBuilder) -> None:
    groups = [group(str(g), [RIGHT, WRONG, RIGHT, WRONG]) for g in range(20)]
    assert groups[0].rewards == [1.0, 0.0, 1.0, 0.0]
    examples = sibling_examples(builder, groups)
    assert len(examples) == 80
    chosen = Counter((example.rollout.sample, sibling_in(builder, example.privileged_tokens)) for example in examples)
    assert {pair for pair in chosen if pair[0] in (0, 2)} == {(0, 2), (2, 0)}
    assert {pair for pair in chosen if pair[0] in (1, 3)} == {(1, 0), (1, 2), (3, 0), (3, 2)}  # either, at random


def test_a_truncated_success_is_a_solution_or_has_no_reward(builder: PromptBuilder) -> None:
    question = prompt("a")
    rollouts = [rollout(question, i, f"{text} [{i}]") for i, text in enumerate([RIGHT, RIGHT, WRONG])]
    rollouts[0] = replace(rollouts[0], truncated=True)
    kept = reward_group(rollouts, resolve_reward("answer"))
    assert kept.rewards == [1.0, 1.0, 0.0]
    zeroed = reward_group(rollouts, resolve_reward("answer", truncated=TruncatedReward.zero))
    assert zeroed.rewards == [0.0, 1.0, 0.0]
    examples = sibling_examples(builder, [zeroed])
    assert [(one.rollout.sample, sibling_in(builder, one.privileged_tokens)) for one in examples] == [(0, 1), (2, 1)]


def test_a_lone_success_is_shown_to_its_siblings_only(builder: PromptBuilder) -> None:
    groups = [group("a", [WRONG, RIGHT, WRONG]), group("b", [WRONG] * 3), group("c", [RIGHT] * 3)]
    ids = [example.id for example in sibling_examples(builder, groups)]
    assert ids == ["a#0", "a#2", "c#0", "c#1", "c#2"]
    own = [example.id for example in sibling_examples(builder, groups, exclude_own_success=False)]
    assert own == ["a#0", "a#1", "a#2", "c#0", "c#1", "c#2"]


def test_the_choice_does_not_depend_on_the_order_of_groups(builder: PromptBuilder) -> None:
    groups = [group(str(g), [RIGHT] * 4) for g in range(10)]
    views = {example.id: example.privileged_tokens.tolist() for example in sibling_examples(builder, groups)}
    again = {example.id: example.privileged_tokens.tolist() for example in sibling_examples(builder, groups[::-1])}
    assert views == again


def hint(response: str, question: Question) -> RewardResult:
    return RewardResult(float(RIGHT in response), None if RIGHT in response else f"{{solution}}? not {response[-4:]}")


def test_feedback_is_that_of_the_own_attempt_and_is_enough_for_an_example(builder: PromptBuilder) -> None:
    """A wrong response gets its own feedback; without a right sibling, the feedback alone and no solution heading."""
    reward = Reward("hint", hint, lambda response: None)
    texts = {"a": [WRONG, RIGHT, WRONG], "b": [WRONG] * 2, "c": [RIGHT] * 2}
    groups = [
        reward_group([rollout(prompt(name), i, f"{text} [{i}]") for i, text in enumerate(row)], reward)
        for name, row in texts.items()
    ]
    examples = examples_from_siblings(groups, builder, exclude_own_success=True, seed="0", feedback=True).examples
    views = {example.id: builder.tokenizer.decode(example.privileged_tokens) for example in examples}
    assert list(views) == ["a#0", "a#2", "b#0", "b#1", "c#0", "c#1"], "a#1 has neither a sibling nor feedback"
    for name, view in views.items():
        assert ("Correct solution:" in view) == (name[0] != "b")
        assert ("Feedback" in view) == (name[0] != "c")
        assert (f"{{solution}}? not  [{name[2]}]" in view) == (name[0] != "c"), "its own feedback, unchanged"
    without = [example.id for example in sibling_examples(builder, groups)]
    assert without == ["a#0", "a#2", "c#0", "c#1"], "feedback makes no example unless it is enabled"


def test_advantages_of_a_group() -> None:
    """Three right of four: mean 3/4, population deviation sqrt(3)/4."""
    mixed = group("a", [RIGHT, RIGHT, WRONG, RIGHT])
    assert mixed.advantages(scaled=False) == [0.25, 0.25, -0.75, 0.25]
    assert mixed.advantages(scaled=True) == pytest.approx([3**-0.5] * 2 + [-(3**0.5)] + [3**-0.5], rel=1e-5)
    assert group("b", [RIGHT] * 3).advantages(scaled=True) == [0.0] * 3
    tenths = RewardedGroup(mixed.rollouts[:3], [RewardResult(0.1)] * 3)  # whose mean is not 0.1 in floating point
    assert tenths.advantages(scaled=True) == [0.0] * 3


def test_responses_without_advantage_are_left_out_but_count_in_the_size() -> None:
    groups = [group("a", [RIGHT, WRONG]), group("b", [RIGHT, RIGHT])]
    short = examples_from_rewards(groups, scaled=True, drop_zero_advantage=True)
    assert [example.id for example in short.examples] == ["a#0", "a#1"]
    assert (short.size.sequences, short.size.tokens) == (4, 16)
    every = examples_from_rewards(groups, scaled=True, drop_zero_advantage=False)
    assert len(every.examples) == 4
    assert every.size == short.size
    assert all(len(example.privileged_tokens) == 0 for example in every.examples)


@given(
    lengths=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60), st.integers(1, 4)), max_size=20),
    dp_size=st.integers(1, 5),
    micro_batch_tokens=st.integers(1, 300),
    tree_tokens=st.integers(0, 200),
)
def test_every_sample_is_in_one_shard_and_ranks_have_equal_micro_batches(
    lengths: list[tuple[int, int, int]], dp_size: int, micro_batch_tokens: int, tree_tokens: int
) -> None:
    items = [scored(str(i), p, r) for i, (p, r, siblings) in enumerate(lengths) for _ in range(siblings)]
    batch = packed(items, dp_size, micro_batch_tokens, tree_tokens)
    assert len(batch.shards) == dp_size
    assert len({len(rank) for rank in batch.shards}) == 1, (
        "ranks meet in collectives: the same number of micro-batches each"
    )
    rows = [row for rank in batch.shards for micro in rank for row in micro]
    packed_items = [item for row in rows for item in row]
    assert sorted(map(id, packed_items)) == sorted(map(id, items))
    assert batch.token_count == sum(r * siblings for _, r, siblings in lengths)
    for row in rows:
        assert len({item.prompt.id for item in row}) == 1, "only responses to one question share a row"
        assert len(row) == 1 or nodes(row) <= tree_tokens
    for micro in (micro for rank in batch.shards for micro in rank):
        assert len(micro) <= 1 or len(micro) * max(map(nodes, micro)) <= micro_batch_tokens
    loads = [sum(nodes(row) for micro in rank for row in micro) for rank in batch.shards]
    assert max(loads) - min(loads) <= max(map(nodes, rows), default=0)


def test_rows_are_cut_to_balance_ranks_and_never_for_one() -> None:
    """Four responses of 10 tokens to a prompt of 50: one row, or for two ranks rows that repeat the prompt."""
    items = [scored("q", 50, 10) for _ in range(4)]
    (rank,) = packed(items, 1, 300, 200).shards
    assert [[len(row) for row in micro] for micro in rank] == [[4]]
    assert [sum(len(row) for micro in rank for row in micro) for rank in packed(items, 2, 300, 200).shards] == [2, 2]


def nodes(row: Sequence[ScoredExample]) -> int:
    return len(build_prefix_tree([item.example.student_input for item in row]).tokens_L)


def test_padded_batches_go_from_long_to_short_rows() -> None:
    batches = padded_batches([Row((tokens,), tokens) for tokens in (3, 9, 1, 8, 2)], 18)
    assert [[row.tokens for row in batch] for batch in batches] == [[9, 8], [3, 2, 1]]


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=8), min_size=1, max_size=8))
def test_a_tree_holds_each_prefix_once_and_each_sequence_completely(lists: list[list[int]]) -> None:
    tree = build_prefix_tree([np.asarray(tokens, np.int32) for tokens in lists])
    prefixes = {tuple(tokens[: end + 1]) for tokens in lists for end in range(len(tokens))}
    assert len(tree.tokens_L) == len(prefixes)
    for tokens, path in zip(lists, tree.paths, strict=True):
        assert tree.tokens_L[path].tolist() == tokens
        assert tree.depth_L[path].tolist() == list(range(len(tokens)))
        for position, node in enumerate(path):
            seen = np.tri(len(prefixes))[node] if tree.visible_LL is None else tree.visible_LL[node]
            assert np.flatnonzero(seen).tolist() == sorted(path[: position + 1]), "its ancestors and itself, no other"


@pytest.mark.parametrize(
    ("mix", "expected"),
    [  # sample: (policy, distillation, sees a solution); group a has one success of three, b none, c all
        (
            MixedConfig(weight=0.25),
            {
                "a#0": (0.75, 0.25, True),
                "a#1": (0.75, 0.0, False),  # the lone success sees no solution
                "a#2": (0.75, 0.25, True),
                "c#0": (0.75, 0.25, True),
                "c#1": (0.75, 0.25, True),
                "c#2": (0.75, 0.25, True),
            },
        ),
        (MixedConfig(weight=0.0), dict.fromkeys(("a#0", "a#1", "a#2"), (1.0, 0.0, False))),
        (
            MixedConfig(weight=1.0),
            dict.fromkeys(("a#0", "a#2", "c#0", "c#1", "c#2"), (0.0, 1.0, True)),
        ),
        (
            MixedConfig(routing=Routing.success),
            {"a#0": (0.0, 1.0, True), "a#1": (1.0, 0.0, False), "a#2": (0.0, 1.0, True)},
        ),
    ],
)
def test_a_mixed_loss_takes_each_response_by_its_signals(
    builder: PromptBuilder, mix: MixedConfig, expected: dict[str, tuple[float, float, bool]]
) -> None:
    groups = [group("a", [WRONG, RIGHT, WRONG]), group("b", [WRONG] * 3), group("c", [RIGHT] * 3)]
    contexts = ContextChooser(seed="0")
    batch = examples_for_mixture(groups, builder, contexts, mix, scaled=True)
    learnable = [
        one.prompt.id for one in groups if any(mixture_terms(one, i, contexts, mix)[0] is not None for i in range(3))
    ]
    assert learnable == sorted({example.prompt.id for example in batch.examples}), "one rule for groups and examples"
    found = {}
    for example in batch.examples:
        assert example.terms is not None
        found[example.id] = (example.terms.policy, example.terms.distillation, len(example.privileged_tokens) > 0)
    assert found == expected
    assert batch.size.sequences == 9, "the loss is a mean over all responses"
    by_id = {example.id: example.advantage for example in batch.examples}
    assert by_id["a#0"] == pytest.approx(-(0.5**0.5), abs=1e-4)
