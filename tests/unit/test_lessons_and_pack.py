"""From rollouts to a training batch: who learns from whom, and that every sample is placed exactly once."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demopsd_dist.data.lessons import grade
from demopsd_dist.data.pack import pack, rectangles
from demopsd_dist.data.prompts import PromptBuilder
from demopsd_dist.data.records import Rollout
from demopsd_dist.data.rewards import answer_reward
from demopsd_dist.minisci.tokenizer import byte_tokenizer
from tests.unit.samples import prompt, rollout, scored

RIGHT, WRONG = "so <answer>1</answer>", "hm <answer>2</answer>"


@pytest.fixture(scope="module")
def builder() -> PromptBuilder:
    return PromptBuilder(byte_tokenizer())


def group(name: str, texts: list[str]) -> list[Rollout]:
    of = prompt(name)
    return [rollout(of, i, f"{text} [{i}]") for i, text in enumerate(texts)]


def shown(builder: PromptBuilder, view: object) -> int:
    text = builder.tokenizer.decode(view)
    return int(text.partition("Correct solution:")[2].partition("[")[2].partition("]")[0])


def test_a_rollout_learns_from_a_correct_sibling_and_never_from_itself(builder: PromptBuilder) -> None:
    groups = [group(str(g), [RIGHT, WRONG, RIGHT, WRONG]) for g in range(20)]
    graded = grade(groups, answer_reward, builder, exclude_own_success=True, seed="0")
    assert graded.rewards == [1.0, 0.0, 1.0, 0.0] * 20
    assert graded.active_fraction == 1.0
    chosen = Counter((lesson.rollout.sample, shown(builder, lesson.privileged_tokens)) for lesson in graded.lessons)
    assert {pair for pair in chosen if pair[0] in (0, 2)} == {(0, 2), (2, 0)}
    assert {pair for pair in chosen if pair[0] in (1, 3)} == {(1, 0), (1, 2), (3, 0), (3, 2)}  # either, at random


def test_a_lone_success_teaches_the_others_only(builder: PromptBuilder) -> None:
    groups = [group("a", [WRONG, RIGHT, WRONG]), group("b", [WRONG] * 3), group("c", [RIGHT] * 3)]
    graded = grade(groups, answer_reward, builder, exclude_own_success=True, seed="0")
    assert [lesson.rollout.id for lesson in graded.lessons] == ["a#0", "a#2", "c#0", "c#1", "c#2"]
    assert graded.active_fraction == pytest.approx(5 / 9)
    own = grade(groups, answer_reward, builder, exclude_own_success=False, seed="0")
    assert [lesson.rollout.id for lesson in own.lessons] == ["a#0", "a#1", "a#2", "c#0", "c#1", "c#2"]


def test_the_choice_does_not_depend_on_the_order_of_groups(builder: PromptBuilder) -> None:
    groups = [group(str(g), [RIGHT] * 4) for g in range(10)]
    one = grade(groups, answer_reward, builder, exclude_own_success=True, seed="0")
    other = grade(groups[::-1], answer_reward, builder, exclude_own_success=True, seed="0")
    views = {lesson.rollout.id: lesson.privileged_tokens.tolist() for lesson in one.lessons}
    assert views == {lesson.rollout.id: lesson.privileged_tokens.tolist() for lesson in other.lessons}


@given(
    lengths=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), max_size=40),
    dp_size=st.integers(1, 5),
    micro_batch_tokens=st.integers(1, 300),
)
def test_every_sample_is_placed_once_and_ranks_meet(
    lengths: list[tuple[int, int]], dp_size: int, micro_batch_tokens: int
) -> None:
    items = [scored(str(i), p, r) for i, (p, r) in enumerate(lengths)]
    batch = pack(items, dp_size, micro_batch_tokens)
    assert len(batch.shards) == dp_size
    assert len({len(rank) for rank in batch.shards}) == 1, "ranks meet in collectives: as many micro-batches each"
    placed = [item.lesson.rollout.prompt.id for rank in batch.shards for micro in rank for item in micro]
    assert sorted(placed, key=int) == [str(i) for i in range(len(items))]
    assert batch.token_count == sum(r for _, r in lengths)
    for rank in batch.shards:
        for micro in rank:
            longest = max((item.student_length_tokens for item in micro), default=0)
            assert len(micro) <= 1 or len(micro) * longest <= micro_batch_tokens
    loads = [sum(item.student_length_tokens for micro in rank for item in micro) for rank in batch.shards]
    assert max(loads) - min(loads) <= max((p + r for p, r in lengths), default=0)


def test_rectangles_go_from_long_to_short() -> None:
    assert rectangles([3, 9, 1, 8, 2], lambda x: x, 18) == [[9, 8], [3, 2, 1]]
