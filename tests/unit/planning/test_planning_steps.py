"""Seconds by hand: rooflines on hardware with one bound, stages put together, and coefficients found again."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demopsd_dist.planning import plan_text
from demopsd_dist.planning.calibration import MeasuredRun, fit_memory, fit_stage, fitted, nonnegative, read
from demopsd_dist.planning.default_efficiencies import ASSUMED, STAGES, UNCALIBRATED, Calibration
from demopsd_dist.planning.drawn_batch import learned, learner_batches, teacher_batches
from demopsd_dist.planning.forward_time import learn_loads, score_loads, support_loads
from demopsd_dist.planning.hardware import DEVICES, Device, DeviceCluster, fleet_of
from demopsd_dist.planning.model_shape import KNOWN
from demopsd_dist.planning.publish_time import publish_load
from demopsd_dist.planning.roofline import Coefficients, Load, Power
from demopsd_dist.planning.sampling_time import sampled
from demopsd_dist.planning.splits import candidates, ranked
from demopsd_dist.planning.step_time import CROWDING, loads_of, plan, step_seconds, tail_seconds
from demopsd_dist.planning.workload import Split, Traffic
from demopsd_dist.util.errors import ConfigError
from tests.unit.planning.example_jobs import ALIKE, fleet, gpu, job

COMPUTE_ONLY = Power(gpu(tflops=1.0))
EACH = dict.fromkeys(STAGES, 0.0)


def flops_of_layers(of, batches) -> float:
    return 2 * of.shape.active * sum(batch.tokens for batch in batches) + flops_of_attention(of, batches)


def flops_of_attention(of, batches) -> float:
    return of.shape.pair_flops * sum(batch.rows * batch.length**2 / (1 if batch.masked else 2) for batch in batches)


def work_s(load: Load) -> float:
    return load.roofline_s + load.attention_s + load.weights_s


def test_a_learner_that_is_bound_by_computation_takes_six_flops_a_parameter_and_token() -> None:
    of = job(tree_tokens=0)
    (batches,) = learner_batches(of, 1)
    (load,) = learn_loads(of, COMPUTE_ONLY, 1, fleet())
    head = 6 * of.shape.head * sum(item.tokens for item in learned(of))
    assert work_s(load) == pytest.approx((3 * flops_of_layers(of, batches) + head) / 1e12, rel=1e-6)
    (checkpointed,) = learn_loads(replace(of, checkpointing=True), COMPUTE_ONLY, 1, fleet())
    assert work_s(checkpointed) == pytest.approx((4 * flops_of_layers(of, batches) + head) / 1e12, rel=1e-6)


def test_adapters_spare_the_gradients_of_the_weights() -> None:
    of = job("model.lora_rank=8", tree_tokens=0)
    (batches,) = learner_batches(of, 1)
    (load,) = learn_loads(of, COMPUTE_ONLY, 1, fleet())
    head = 4 * of.shape.head * sum(item.tokens for item in learned(of))
    own = 6 * of.adapters * sum(batch.tokens for batch in batches)
    layers = 2 * flops_of_layers(of, batches) + flops_of_attention(of, batches)  # it has no weights
    assert work_s(load) == pytest.approx((layers + own + head) / 1e12, rel=1e-6)


def test_support_is_one_forward_and_scoring_two() -> None:
    of = job()
    head = 2 * of.shape.head * sum(item.tokens for item in learned(of))
    (support,) = support_loads(of, COMPUTE_ONLY, 1, fleet())
    (batches,) = learner_batches(of, 1)
    assert work_s(support) == pytest.approx((flops_of_layers(of, batches) + head) / 1e12, rel=1e-6)
    (score,) = score_loads(of, COMPUTE_ONLY, 1, fleet())
    both = [teacher_batches(of, 1, privileged=privileged)[0] for privileged in (False, True)]
    wanted = sum(flops_of_layers(of, batches) + head for batches in both)
    assert work_s(score) == pytest.approx(wanted / 1e12, rel=1e-6)
    assert support_loads(job("demopsd.support=reference"), COMPUTE_ONLY, 1, fleet()) == ()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_what_ranks_send_each_other(stage: int) -> None:
    """Over links of 1 GB/s."""
    of = replace(job(micro_batch_tokens=2000), zero_stage=stage)
    slow = fleet(link=1.0)
    micro_batches = max(map(len, learner_batches(of, 4)))
    assert micro_batches > 1
    passes = {0: 2, 1: 2, 2: micro_batches + 1, 3: 3 * micro_batches}[stage]
    load, *_ = learn_loads(of, Power(slow.device), 4, slow)
    assert load.sent_s == pytest.approx(passes * 3 / 4 * of.weights_bytes / 1e9)
    assert learn_loads(of, Power(slow.device), 1, slow)[0].sent_s == 0.0
    support, *_ = support_loads(of, Power(slow.device), 4, slow)
    gathered = 3 / 4 * of.weights_bytes / 1e9 if stage == 3 else 0.0
    assert support.sent_s == pytest.approx(micro_batches * gathered)
    assert publish_load(of, Split(1, 1, 4), slow).sent_s == pytest.approx(gathered)


def test_teachers_who_share_a_copy_gather_its_layers_at_every_forward() -> None:
    of = job("teacher.batch_tokens=1000", "rollout.prompts_per_step=8")
    slow = fleet(link=1.0)
    views = [teacher_batches(of, 4, privileged=privileged) for privileged in (False, True)]
    forwards = sum(max(map(len, view)) for view in views)
    assert forwards > 2
    for load in score_loads(of, Power(slow.device), 4, slow, shards=2):
        assert load.sent_s == pytest.approx(forwards * 1 / 2 * 4 * (of.shape.stored + of.shape.head) / 1e9)
    assert all(load.sent_s == 0.0 for load in score_loads(of, Power(slow.device), 4, slow))


def test_more_workers_share_the_work() -> None:
    of = job("rollout.prompts_per_step=64")
    for loads in (
        lambda count: support_loads(of, COMPUTE_ONLY, count, fleet()),
        lambda count: score_loads(of, COMPUTE_ONLY, count, fleet()),
        lambda count: learn_loads(of, COMPUTE_ONLY, count, fleet()),
    ):
        alone, four = (max(work_s(load) for load in loads(count)) for count in (1, 4))
        assert 3.3 < alone / four < 4.3


def test_on_shared_devices_the_roles_take_turns() -> None:
    seconds = {stage: float(i + 1) for i, stage in enumerate(STAGES)}
    cores = DeviceCluster(replace(gpu(), shared=True), 1, 2)
    for ahead in (0, 1):
        on_a_gpu = Split(1, 1, 1, ahead, shared=True)
        assert step_seconds(job(), on_a_gpu, fleet(1), seconds, (1.0,)) == sum(seconds.values())
        all_cores = Split(2, 1, 2, ahead, teacher_threads=2, shared=True)
        together_s = sum(seconds.values()) - (seconds["driver"] / 2 if ahead else 0.0)
        crowding = 1 + CROWDING * (2 + 1 + 2 - 2) if ahead else 1.0
        found = step_seconds(job(), all_cores, cores, seconds, (1.0,))
        assert found == pytest.approx(together_s * crowding)


def test_roles_that_leave_cores_free_run_beside_each_other() -> None:
    seconds = EACH | {"sample": 10.0, "score": 8.0, "learn": 6.0}
    cores = DeviceCluster(replace(gpu(), shared=True), 1, 2)
    evenly = (0.25, 0.5, 0.75, 1.0)
    assert step_seconds(job(), Split(1, 1, 1, shared=True), cores, seconds, evenly) == 10 + 2 + 6
    both = Split(2, 1, 2, teacher_threads=2, shared=True)
    assert step_seconds(job(), both, cores, seconds, evenly) == 10 + 8 + 6


def test_scoring_hides_behind_sampling_but_for_its_tail() -> None:
    seconds = EACH | {"sample": 10.0, "score": 4.0}
    assert tail_seconds(seconds, (1.0,) * 4) == 4.0  # all done at once
    assert tail_seconds(seconds, (0.25, 0.5, 0.75, 1.0)) == 1.0  # a group a quarter: the last is left
    assert tail_seconds(EACH | {"sample": 2.0, "score": 4.0}, (0.25, 0.5, 0.75, 1.0)) == pytest.approx(2.5)
    assert tail_seconds(seconds, ()) == 0.0


def test_ahead_of_the_learners_the_longer_of_sampling_and_learning_counts() -> None:
    seconds = EACH | {"sample": 10.0, "learn": 6.0, "publish": 1.0, "score": 4.0}
    apart = Split(2, 1, 2, 0)
    done = (1.0,) * 4
    assert step_seconds(job(), apart, fleet(), seconds, done) == 10 + 4 + 6 + 1
    one, keeping = replace(apart, ahead=1), job("rollout.on_publish=keep")
    assert step_seconds(job(), one, fleet(), seconds, done) == pytest.approx(
        10 + 1
    )  # engines are never idle but to load
    longer = seconds | {"learn": 15.0}
    assert step_seconds(job(), one, fleet(), longer, done) == pytest.approx(
        15 + 1
    )  # the learners are never idle but to publish
    assert step_seconds(keeping, one, fleet(), longer, done) == pytest.approx(15 + 1)
    named = longer | {"support": 2.0}  # by the learners, who learn meanwhile
    assert step_seconds(job(), one, fleet(), named, done) == pytest.approx(15 + 2 + 4)


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), count=st.integers(8, 10))
def test_coefficients_are_found_again(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    true = Coefficients(0.4, 0.2, 0.3, 0.7, call_s=2e-3, layer_s=1e-4, item_s=5e-4)
    most = (10.0, 5.0, 5.0, 10.0, 50.0, 900.0, 200.0)
    loads = [Load(*(rng.uniform(bound / 100, bound) for bound in most)) for _ in range(count)]
    found = fit_stage(loads, [true.seconds(load) for load in loads], ASSUMED["learn"])
    for load in loads:
        assert found.seconds(load) == pytest.approx(true.seconds(load), rel=1e-6)


def test_of_few_cases_what_is_assumed_is_scaled() -> None:
    loads = [Load(1.0, calls=2, layers=3, items=4), Load(2.0, calls=2, layers=3, items=4)]
    found = fit_stage(loads, [3 * ASSUMED["learn"].seconds(load) for load in loads], ASSUMED["learn"])
    assert found.seconds(Load(5.0, calls=1)) == pytest.approx(3 * ASSUMED["learn"].seconds(Load(5.0, calls=1)))


def test_no_coefficient_is_below_zero() -> None:
    table = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    assert nonnegative(table, np.array([3.0, 2.0, 1.0])).tolist() == pytest.approx([2.0, 0.0])


def test_memory_is_a_base_and_a_factor() -> None:
    assert fit_memory([(1.0, 2.0, 4.9), (3.0, 5.0, 10.5), (2.0, 0.5, 3.55)]) == pytest.approx((0.9, 1.2 + 0.3), abs=0.4)
    base, factor = fit_memory([(1.0, 2.0, 1.0 + 0.7 + 3.0), (3.0, 5.0, 3.0 + 0.7 + 7.5)])
    assert (base, factor) == pytest.approx((0.7, 1.5))


def test_a_calibration_predicts_what_it_was_fitted_to(tmp_path: Path) -> None:
    """Cases whose figures come from known coefficients; the file is written and read as a benchmark's."""
    core = Device("cpu", 20.0, 0.05, 0.05, 0.05, 10.0, 5.0, 10.0, 1.0, shared=True)
    place = DeviceCluster(core, 1, 2)
    true = Calibration(
        {stage: Coefficients(0.3, 0.2, 0.4, 0.5, 1e-3, 1e-4, 1e-4) for stage in STAGES}, {"rollout": (0.5, 1.0)}
    )
    cases = []
    for prompts, layers, ranks in ((4, 2, 1), (8, 4, 2), (16, 2, 2), (6, 8, 1), (12, 3, 1), (5, 5, 2)):
        of = job(f"rollout.prompts_per_step={prompts}", shape=replace(job().shape, layers=layers))
        split = Split(ranks, 1, ranks, shared=True)
        loads, _ = loads_of(of, split, place, UNCALIBRATED)
        seconds = {stage: true.stages[stage].seconds(loads[stage]) for stage in STAGES}
        cases.append(MeasuredRun(f"case {prompts}", of, split, seconds))
    file = tmp_path / "measured.json"
    file.write_text(json.dumps({"fleet": asdict(place), "measured": [asdict(case) for case in cases]}))
    found_place, found = read(file)
    assert found_place == place
    assert fitted(place, cases, "x").stages == found.stages
    for case in cases:
        made = plan(case.job, case.split, place, found)
        assert made.seconds == pytest.approx(dict(case.seconds), rel=1e-3)
        assert max(case.seconds.values()) < made.step_s <= 1.001 * sum(case.seconds.values())


@pytest.mark.parametrize("text", ["", "{}", '{"fleet": {}, "measured": []}', '{"measured": 3}'])
def test_a_file_that_holds_no_measurements_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "other.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"these are no measurements as benchmarks.plan writes them"):
        read(file)
    with pytest.raises(ConfigError, match="No such file"):
        read(tmp_path / "none.json")


def test_fleets_by_their_names() -> None:
    assert fleet_of("8xh100") == DeviceCluster(DEVICES["h100"], 1, 8)
    assert fleet_of("32xH100") == fleet_of("4x8xh100") == DeviceCluster(DEVICES["h100"], 4, 8)
    for text, message in (
        ("8", "write 8xh100"),
        ("0xh100", "write 8xh100"),
        ("8xb300", "no figures for b300; there are some for h100"),
        ("12xh100", "12 are no whole number of nodes"),
        ("2xcpu", "A cpu is known only from a calibration"),
    ):
        with pytest.raises(ConfigError, match=message):
            fleet_of(text)


def test_the_best_split_is_the_best_of_all() -> None:
    of = job("rollout.prompts_per_step=32", traffic=replace(ALIKE, response_spread=0.5))
    place = fleet(6)
    plans = ranked(of, place, UNCALIBRATED)
    narrow = [made for made in plans if made.job.tensor_parallel == 1]
    assert len(narrow) == len(list(candidates(of, place, {}))) == 2 * sum(range(1, 5))
    assert {made.job.tensor_parallel for made in plans} == {1, 2, 4}, "as its four heads can be shared out"
    devices = {
        made.split.rollout * made.job.tensor_parallel + made.split.teacher + made.split.learner for made in plans
    }
    assert devices == {6}
    assert plans[0].samples_per_s == max(made.samples_per_s for made in plans)


def test_teachers_share_a_copy_where_they_must() -> None:
    of = replace(job(shape=KNOWN["qwen3-32b"]), precision="bfloat16", adapters=10**8, zero_stage=3)
    best = ranked(of, fleet(16), UNCALIBRATED)[0]
    assert not best.shortfalls
    assert 1 < best.split.teacher_shards <= best.split.teacher
    assert f"teacher.shards={best.split.teacher_shards}" in plan_text.settings(best, best)
    assert f"{best.split.teacher} teacher by {best.split.teacher_shards}," in best.told()
    assert all(made.split.ahead == 0 for made in ranked(replace(of, engines_sleep=True), fleet(8), UNCALIBRATED))
    small = replace(of, shape=KNOWN["qwen3-4b"])
    assert {made.split.teacher_shards for made in ranked(small, fleet(16), UNCALIBRATED)} == {1}


def test_an_engine_of_several_devices_is_faster_and_pays_for_its_sums() -> None:
    of = job("rollout.max_batch_sequences=8")
    halves = replace(of, tensor_parallel=2)
    place = fleet(4, link=1e-3)
    splits = list(candidates(halves, place, {}))
    assert splits
    assert {split.rollout * 2 + split.learner + split.teacher for split in splits} == {4}
    loads = [
        sampled(each, Power(place.device, each.tensor_parallel), 1, UNCALIBRATED.stages["sample"]).load
        for each in (of, halves)
    ]
    assert loads[1].roofline_s == pytest.approx(loads[0].roofline_s / 2)
    assert loads[0].sent_s == 0.0
    tokens = loads[1].items + of.prompts * of.traffic.prompt_tokens  # siblings share a prompt, but for its last block
    assert loads[1].sent_s == pytest.approx(2 * of.shape.layers * of.shape.hidden * 4 * tokens / 1e6, rel=0.2)


def test_on_shared_cores_threads_of_a_worker_are_not_set_against_other_roles() -> None:
    splits = list(candidates(job(), DeviceCluster(replace(gpu(), shared=True), 1, 4), {}))
    assert {(split.rollout, split.learner) for split in splits} == {(1, 1), (1, 4), (4, 1), (4, 4)}
    assert {split.teacher_threads for split in splits if split.ahead} == {1}
    assert {split.teacher_threads for split in splits if not split.ahead} == {1, 4}
    assert {split.rollout_threads * split.learner_threads for split in splits} == {1}


def test_a_split_that_does_not_fit_is_never_recommended() -> None:
    of = replace(job(shape=KNOWN["qwen3-8b"]), precision="bfloat16", zero_stage=3, checkpointing=True)
    plans = ranked(of, fleet_of("8xl40s"), UNCALIBRATED)
    fitting = [made for made in plans if not made.shortfalls]
    assert fitting
    assert len(fitting) < len(plans)
    assert plans[: len(fitting)] == fitting
    assert all(made.split.learner > 2 for made in fitting)


def test_a_method_without_a_teacher_gives_it_no_device() -> None:
    of = job("method=grpo")
    assert {split.teacher for split in candidates(of, fleet(4), {})} == {0}
    assert plan(of, Split(2, 0, 2), fleet(4), UNCALIBRATED).seconds["score"] == 0.0


def test_a_run_with_nothing_to_learn_from_still_has_a_plan() -> None:
    nothing = job(traffic=replace(ALIKE, right_fraction=0.0))
    made = plan(nothing, Split(2, 1, 2), fleet(5), UNCALIBRATED)
    assert made.seconds["sample"] > 0
    assert made.step_s > 0


def test_the_traffic_is_what_was_said() -> None:
    assert job(traffic=Traffic()).traffic.response_tokens == 32  # half of the demo's 64
    assert job(traffic=Traffic(response_tokens=10)).traffic.solution_tokens == 26
