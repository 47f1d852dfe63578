"""The learner role in front of its ranks: support ids by the kind of support, and the metrics of a step."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from demopsd_dist.config import load
from demopsd_dist.data.records import Tokens, TrainingExample
from demopsd_dist.methods import check_engine_support, resolve_method
from demopsd_dist.util.errors import ConfigError, WeightSyncError, WorkerError
from tests.unit.run_record.sample_rows import prompt, rollout
from workers.actor_group import no_actors
from workers.learner.group import LearnerGroup, step_metrics
from workers.learner.observers.rank_report import RankReport

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"


def example(name: str, support_TK: Tokens | None) -> TrainingExample:
    """A training example whose rollout has these support ids."""
    return TrainingExample(
        replace(rollout(prompt(name)), support_TK=support_TK), 1.0, 0.0, np.arange(9, dtype=np.int32)
    )


def test_a_rollout_without_engine_support_is_refused_by_name() -> None:
    """A missing support must not shift the supports of later examples."""
    config = load(DEMO, ["demopsd.support=rollout", "demopsd.top_k=3"])
    learners = LearnerGroup(no_actors("learner"), config, resolve_method(config))
    ids = [np.full((4, 3), i, np.int32) for i in range(3)]
    complete = [example(f"q{i}", ids_TK) for i, ids_TK in enumerate(ids)]
    supports = asyncio.run(learners.support(complete))
    assert supports is not None
    assert [support_TK.tolist() for support_TK in supports] == [ids_TK.tolist() for ids_TK in ids]
    gaps = [complete[0], example("gap", None), complete[2], example("later", None)]
    with pytest.raises(
        WorkerError, match=r"rollout gap#0 of rollout worker 0 has no support ids, .* same configuration"
    ):
        asyncio.run(learners.support(gaps))


def test_an_engines_support_of_the_whole_vocabulary_is_refused() -> None:
    """The supports of learner and reference are cut to one token less than the vocabulary instead."""
    demo = Path(__file__).parents[3] / "configs" / "demo.yaml"
    engine, learner, whole = (
        resolve_method(load(demo, words))
        for words in (["demopsd.support=rollout"], ["demopsd.support=learner"], ["demopsd.top_k=null"])
    )
    with pytest.raises(ConfigError, match=r"top_k=100 with support=rollout .* has 100: .* Give top_k at most 99"):
        check_engine_support(engine, 100)
    check_engine_support(engine, 101)
    check_engine_support(learner, 100)
    check_engine_support(whole, 100)


def test_metrics_of_the_ranks_are_put_together() -> None:
    reports = [
        RankReport(True, {"a": 1.0}, {"m": 2.0}, {"demopsd/alpha": np.array([0.0, 1.0])}),
        RankReport(True, {"a": 2.0}, {"m": float("nan")}, {"demopsd/alpha": np.array([0.5])}),
    ]
    metrics = step_metrics(reports)
    assert metrics["a"] == 3.0
    assert np.isnan(metrics["m"])
    assert metrics["demopsd/alpha_p50"] == 0.5


def test_a_step_in_which_nothing_is_distilled_has_no_quantiles_of_alpha() -> None:
    nothing, some = np.zeros(0, np.float32), np.ones(3, np.float32)
    reports = [RankReport(True, distributions={"demopsd/alpha": nothing, "mismatch/logp_diff": some}) for _ in range(2)]
    found = step_metrics(reports)
    assert found["mismatch/logp_diff_p50"] == 1.0
    assert not any(name.startswith("demopsd/alpha") for name in found)


def test_sampled_tokens_of_other_weights_stop_the_step() -> None:
    """One token far off, or half of all by more than rounding; a step without fresh tokens compares nothing."""
    config = load(DEMO, ["model.precision=bfloat16"])
    learners = LearnerGroup(no_actors("learner"), config, resolve_method(config))
    learners._refuse_mismatch({})
    learners._refuse_mismatch({"mismatch/logp_diff_max": 0.6, "mismatch/logp_diff_p50": 0.01})
    for metrics, message in (
        ({"mismatch/logp_diff_max": 3.5}, "differ by 3.5 nats in .* weights.max_logp_diff=3[.]"),
        ({"mismatch/logp_diff_max": float("nan")}, "differ by nan nats"),
        ({"mismatch/logp_diff_p50": 0.25}, "differ by 0.25 nats .median. in .* weights.typical_logp_diff=0.2[.]"),
    ):
        with pytest.raises(WeightSyncError, match=message):
            learners._refuse_mismatch(metrics)


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_rank_without_examples_changes_no_metric(ranks: int) -> None:
    """Whichever rank it is; all ranks report the learning rate and the norm of the gradient."""
    everywhere = {"learner/grad_norm": 0.5}
    sums = {"learner/loss": 1.0, "leakage/teacher_nats": 2.0, "leakage/target_nats": 1.0}
    distributions = {"demopsd/alpha": np.array([0.0, 1.0]), "demopsd/disagreement_nats": np.array([2.0, 4.0])}
    busy = RankReport(True, sums, {**everywhere, "mismatch/logp_diff_max": 0.1}, distributions)
    alone = step_metrics([busy])
    assert alone["demopsd/alpha_p50"] == 0.5
    assert alone["leakage/ratio"] == 0.5
    for rank in range(ranks):
        reports = [RankReport(True, {}, everywhere) for _ in range(ranks)]
        reports[rank] = busy
        assert step_metrics(reports) == alone, f"rank {rank} has the examples"
