"""Tests of drawn batches and simulated engines: rows equal the run's own packing, every token is decoded once."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demopsd_dist.data.packing import RowLayout
from demopsd_dist.data.records import Tokens
from demopsd_dist.planning.drawn_batch import (
    DrawnResponse,
    draw_lengths,
    draw_responses,
    learned_responses,
    learner_batches,
    student_layout,
    teacher_layout,
)
from demopsd_dist.planning.roofline import ASSUMED, Power
from demopsd_dist.planning.sampling_time import sampling_time, sequence_capacity, simulate_engines
from demopsd_dist.planning.workload import Traffic, Workload
from tests.unit.planning.example_workloads import ALIKE, example_workload, gpu


def tokens_of(workload: Workload, response: DrawnResponse, solution: int) -> Tokens:
    """Token ids with the drawn sharing: of the prompt, of the solution, and of the response's beginning."""
    alike = round(workload.traffic.shared_fraction * response.tokens)
    pieces = [
        np.full(round(workload.traffic.prompt_tokens), 1),
        np.full(solution, 10 + (response.solution_id or 0)),
        np.full(alike, 100),
        np.full(response.tokens - alike, 200 + response.sample),
    ]
    return np.concatenate(pieces).astype(np.int32)[:-1]


@settings(max_examples=60)
@given(
    distribution=st.sampled_from([0.0, 0.7]),
    tree_tokens=st.sampled_from([0, 150, 400, 4000]),
    bound=st.sampled_from([None, 120, 300]),
    privileged=st.booleans(),
    shared=st.sampled_from([0.0, 0.5]),
)
def test_rows_are_those_of_the_runs_packing(
    distribution: float, tree_tokens: int, bound: int | None, privileged: bool, shared: float
) -> None:
    """Row lengths of drawn tokens equal those of real ones. Siblings differ in length only where they share nothing of
    a response, as the order could differ otherwise."""
    traffic = replace(ALIKE, response_spread=0.0 if shared else distribution, shared_fraction=shared)
    workload = example_workload("rollout.prompts_per_step=6", traffic=traffic, tree_tokens=tree_tokens)
    solution = 50 if privileged else 0
    drawn = teacher_layout(workload) if privileged else student_layout(workload)
    real: RowLayout[DrawnResponse] = RowLayout(
        lambda item: item.group, lambda item: tokens_of(workload, item, solution), tree_tokens
    )
    lengths = sorted(row.tokens for row in drawn.rows(learned_responses(workload), bound))
    assert lengths == sorted(row.tokens for row in real.rows(learned_responses(workload), bound))


@settings(max_examples=50)
@given(mean=st.floats(1, 900), distribution=st.floats(0, 1.5), longest=st.integers(1, 1000), count=st.integers(20, 400))
def test_lengths_have_the_mean_and_the_bound(mean: float, distribution: float, longest: int, count: int) -> None:
    lengths = draw_lengths(Traffic(response_tokens=mean, response_spread=distribution), count, longest)
    assert len(lengths) == count
    assert max(lengths) <= longest
    assert np.mean(lengths) == pytest.approx(min(mean, longest), rel=0.02, abs=0.6)


def test_a_response_is_learned_from_if_a_sibling_is_right() -> None:
    workload = example_workload("rollout.prompts_per_step=200", traffic=replace(ALIKE, right_fraction=0.2))
    share = len(learned_responses(workload)) / workload.samples
    assert share == pytest.approx(1 - 0.8**7, abs=0.03)  # any of the seven others
    assert all(item.solution_id != item.sample for item in learned_responses(workload))
    assert not learned_responses(example_workload(traffic=replace(ALIKE, right_fraction=0.0)))


def test_every_response_is_in_one_batch_and_batches_keep_their_bound() -> None:
    workload = example_workload(traffic=replace(ALIKE, response_spread=0.6), micro_batch_tokens=600)
    ranks = learner_batches(workload, 3)
    assert sum(batch.responses for rank in ranks for batch in rank) == len(learned_responses(workload))
    assert sum(batch.predicted for rank in ranks for batch in rank) == sum(
        item.tokens for item in learned_responses(workload)
    )
    assert all(batch.tokens <= 600 or batch.rows == 1 for rank in ranks for batch in rank)


def test_an_engine_with_capacity_for_all_takes_as_many_steps_as_a_response_has_tokens() -> None:
    workload = example_workload("rollout.prompts_per_step=4", engine_sequences=32)
    (engine,) = simulate_engines(workload, 1, False, 32)
    assert engine.steps == 40
    assert set(engine.sequences) == {32}
    assert engine.ends == (40,) * 4
    assert engine.prefilled.sum() == 4 * (96 + 8 * 4)  # 96 of 100 tokens are whole blocks that siblings share
    assert engine.context[0] == 32 * 100
    assert engine.context[-1] == 32 * (100 + 39)


def test_groups_wait_for_capacity_and_go_to_the_emptiest_engine() -> None:
    workload = example_workload("rollout.prompts_per_step=4")
    (alone,) = simulate_engines(workload, 1, False, 16)
    assert alone.ends == (40, 40, 80, 80)
    both = simulate_engines(workload, 2, False, 8)
    assert [engine.ends for engine in both] == [(40, 80), (40, 80)]


@pytest.mark.parametrize("engines", [1, 2, 3])
def test_every_token_is_decoded_once(engines: int) -> None:
    workload = example_workload(traffic=replace(ALIKE, response_spread=0.8))
    histories = simulate_engines(workload, engines, True, 24)
    assert sum(engine.sequences.sum() for engine in histories) == sum(item.tokens for item in draw_responses(workload))
    assert sum(len(engine.ends) for engine in histories) == workload.prompts


def test_capacity_is_limited_by_the_cache() -> None:
    workload = example_workload("rollout.max_batch_sequences=256")
    each = (100 + 40) * workload.shape.kv_bytes(4)
    weights_and_work = gpu(memory_gib=1000).memory_gib
    assert sequence_capacity(workload, Power(gpu(memory_gib=weights_and_work))) == 256
    cpu = replace(gpu(), shared=True)
    assert sequence_capacity(replace(workload, kv_cache_gib=10 * each / 2**30), Power(cpu)) == 10


def test_groups_are_done_in_the_order_and_at_the_share_of_the_time() -> None:
    workload = example_workload("rollout.prompts_per_step=4")
    one_wave = sampling_time(workload, Power(gpu()), 1, ASSUMED["sample"])
    assert one_wave.done == pytest.approx((1.0,) * 4)
    two_waves = sampling_time(replace(workload, engine_sequences=16), Power(gpu()), 1, ASSUMED["sample"])
    assert two_waves.done[:2] == pytest.approx((0.5, 0.5), abs=0.02)
    assert two_waves.done[2:] == pytest.approx((1.0, 1.0))
    assert two_waves.load.calls == 80
