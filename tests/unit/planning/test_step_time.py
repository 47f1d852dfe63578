"""Tests of predicted seconds against arithmetic by hand: rooflines with one bound, combined stages, ranked splits."""

from __future__ import annotations

from dataclasses import replace

import pytest

from demopsd_dist.planning import plan_text
from demopsd_dist.planning.drawn_batch import learned_responses, learner_batches, teacher_batches
from demopsd_dist.planning.forward_time import learn_loads, score_loads, support_loads
from demopsd_dist.planning.hardware import DEVICES, DeviceCluster, parse_cluster
from demopsd_dist.planning.model_shape import KNOWN
from demopsd_dist.planning.roofline import STAGES, UNCALIBRATED, Load, Power
from demopsd_dist.planning.sampling_time import sampling_time
from demopsd_dist.planning.splits import candidate_splits, rank_splits
from demopsd_dist.planning.step_time import CROWDING, plan_run, publish_load, scoring_tail_s, step_seconds
from demopsd_dist.planning.workload import Split, Traffic
from demopsd_dist.util.errors import ConfigError
from tests.unit.planning.example_workloads import ALIKE, example_workload, gpu, gpu_cluster

COMPUTE_ONLY = Power(gpu(tflops=1.0))
EACH = dict.fromkeys(STAGES, 0.0)


def flops_of_layers(workload, batches) -> float:
    return 2 * workload.shape.active * sum(batch.tokens for batch in batches) + flops_of_attention(workload, batches)


def flops_of_attention(workload, batches) -> float:
    return workload.shape.pair_flops * sum(
        batch.rows * batch.length**2 / (1 if batch.masked else 2) for batch in batches
    )


def work_s(load: Load) -> float:
    return load.roofline_s + load.attention_s + load.weights_s


def test_a_learner_that_is_bound_by_computation_takes_six_flops_a_parameter_and_token() -> None:
    workload = example_workload(tree_tokens=0)
    (batches,) = learner_batches(workload, 1)
    (load,) = learn_loads(workload, COMPUTE_ONLY, 1, gpu_cluster())
    head = 6 * workload.shape.head * sum(item.tokens for item in learned_responses(workload))
    assert work_s(load) == pytest.approx((3 * flops_of_layers(workload, batches) + head) / 1e12, rel=1e-6)
    (checkpointed,) = learn_loads(replace(workload, checkpointing=True), COMPUTE_ONLY, 1, gpu_cluster())
    assert work_s(checkpointed) == pytest.approx((4 * flops_of_layers(workload, batches) + head) / 1e12, rel=1e-6)


def test_adapters_spare_the_gradients_of_the_weights() -> None:
    workload = example_workload("model.lora_rank=8", tree_tokens=0)
    (batches,) = learner_batches(workload, 1)
    (load,) = learn_loads(workload, COMPUTE_ONLY, 1, gpu_cluster())
    head = 4 * workload.shape.head * sum(item.tokens for item in learned_responses(workload))
    own = 6 * workload.adapters * sum(batch.tokens for batch in batches)
    layers = 2 * flops_of_layers(workload, batches) + flops_of_attention(workload, batches)  # it has no weights
    assert work_s(load) == pytest.approx((layers + own + head) / 1e12, rel=1e-6)


def test_support_is_one_forward_and_scoring_two() -> None:
    workload = example_workload()
    head = 2 * workload.shape.head * sum(item.tokens for item in learned_responses(workload))
    (support,) = support_loads(workload, COMPUTE_ONLY, 1, gpu_cluster())
    (batches,) = learner_batches(workload, 1)
    assert work_s(support) == pytest.approx((flops_of_layers(workload, batches) + head) / 1e12, rel=1e-6)
    (score,) = score_loads(workload, COMPUTE_ONLY, 1, gpu_cluster())
    both = [teacher_batches(workload, 1, privileged=privileged)[0] for privileged in (False, True)]
    wanted = sum(flops_of_layers(workload, batches) + head for batches in both)
    assert work_s(score) == pytest.approx(wanted / 1e12, rel=1e-6)
    assert support_loads(example_workload("demopsd.support=reference"), COMPUTE_ONLY, 1, gpu_cluster()) == ()


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_what_ranks_send_each_other(stage: int) -> None:
    """Bytes that ranks exchange by ZeRO stage, as seconds over links of 1 GB/s."""
    workload = replace(example_workload(micro_batch_tokens=2000), zero_stage=stage)
    slow = gpu_cluster(link=1.0)
    micro_batches = max(map(len, learner_batches(workload, 4)))
    assert micro_batches > 1
    passes = {0: 2, 1: 2, 2: micro_batches + 1, 3: 3 * micro_batches}[stage]
    load, *_ = learn_loads(workload, Power(slow.device), 4, slow)
    assert load.sent_s == pytest.approx(passes * 3 / 4 * workload.weights_bytes / 1e9)
    assert learn_loads(workload, Power(slow.device), 1, slow)[0].sent_s == 0.0
    support, *_ = support_loads(workload, Power(slow.device), 4, slow)
    gathered = 3 / 4 * workload.weights_bytes / 1e9 if stage == 3 else 0.0
    assert support.sent_s == pytest.approx(micro_batches * gathered)
    assert publish_load(workload, Split(1, 1, 4), slow).sent_s == pytest.approx(gathered)


def test_teachers_who_share_a_copy_gather_its_layers_at_every_forward() -> None:
    workload = example_workload("teacher.batch_tokens=1000", "rollout.prompts_per_step=8")
    slow = gpu_cluster(link=1.0)
    views = [teacher_batches(workload, 4, privileged=privileged) for privileged in (False, True)]
    forwards = sum(max(map(len, view)) for view in views)
    assert forwards > 2
    for load in score_loads(workload, Power(slow.device), 4, slow, shards=2):
        assert load.sent_s == pytest.approx(forwards * 1 / 2 * 4 * (workload.shape.stored + workload.shape.head) / 1e9)
    assert all(load.sent_s == 0.0 for load in score_loads(workload, Power(slow.device), 4, slow))


def test_more_workers_share_the_work() -> None:
    workload = example_workload("rollout.prompts_per_step=64")
    for loads in (
        lambda count: support_loads(workload, COMPUTE_ONLY, count, gpu_cluster()),
        lambda count: score_loads(workload, COMPUTE_ONLY, count, gpu_cluster()),
        lambda count: learn_loads(workload, COMPUTE_ONLY, count, gpu_cluster()),
    ):
        alone, four = (max(work_s(load) for load in loads(count)) for count in (1, 4))
        assert 3.3 < alone / four < 4.3


def test_on_shared_devices_the_roles_take_turns() -> None:
    seconds = {stage: float(i + 1) for i, stage in enumerate(STAGES)}
    cores = DeviceCluster(replace(gpu(), shared=True), 1, 2)
    for ahead in (0, 1):
        on_a_gpu = Split(1, 1, 1, ahead, shared=True)
        assert step_seconds(example_workload(), on_a_gpu, gpu_cluster(1), seconds, (1.0,)) == sum(seconds.values())
        all_cores = Split(2, 1, 2, ahead, teacher_threads=2, shared=True)
        together_s = sum(seconds.values()) - (seconds["driver"] / 2 if ahead else 0.0)
        crowding = 1 + CROWDING * (2 + 1 + 2 - 2) if ahead else 1.0
        step_s = step_seconds(example_workload(), all_cores, cores, seconds, (1.0,))
        assert step_s == pytest.approx(together_s * crowding)


def test_roles_that_leave_cores_free_run_beside_each_other() -> None:
    seconds = EACH | {"sample": 10.0, "score": 8.0, "learn": 6.0}
    cores = DeviceCluster(replace(gpu(), shared=True), 1, 2)
    evenly = (0.25, 0.5, 0.75, 1.0)
    assert step_seconds(example_workload(), Split(1, 1, 1, shared=True), cores, seconds, evenly) == 10 + 2 + 6
    both = Split(2, 1, 2, teacher_threads=2, shared=True)
    assert step_seconds(example_workload(), both, cores, seconds, evenly) == 10 + 8 + 6


def test_scoring_hides_behind_sampling_but_for_its_tail() -> None:
    seconds = EACH | {"sample": 10.0, "score": 4.0}
    assert scoring_tail_s(seconds, (1.0,) * 4) == 4.0  # all done at once
    assert scoring_tail_s(seconds, (0.25, 0.5, 0.75, 1.0)) == 1.0  # a group a quarter: the last is left
    assert scoring_tail_s(EACH | {"sample": 2.0, "score": 4.0}, (0.25, 0.5, 0.75, 1.0)) == pytest.approx(2.5)
    assert scoring_tail_s(seconds, ()) == 0.0


def test_ahead_of_the_learners_the_longer_of_sampling_and_learning_counts() -> None:
    seconds = EACH | {"sample": 10.0, "learn": 6.0, "publish": 1.0, "score": 4.0}
    apart = Split(2, 1, 2, 0)
    done = (1.0,) * 4
    assert step_seconds(example_workload(), apart, gpu_cluster(), seconds, done) == 10 + 4 + 6 + 1
    one, keeping = replace(apart, ahead=1), example_workload("rollout.on_publish=keep")
    assert step_seconds(example_workload(), one, gpu_cluster(), seconds, done) == pytest.approx(
        10 + 1
    )  # engines are never idle but to load
    longer = seconds | {"learn": 15.0}
    assert step_seconds(example_workload(), one, gpu_cluster(), longer, done) == pytest.approx(
        15 + 1
    )  # the learners are never idle but to publish
    assert step_seconds(keeping, one, gpu_cluster(), longer, done) == pytest.approx(15 + 1)
    with_support = longer | {"support": 2.0}  # by the learners, who learn meanwhile
    assert step_seconds(example_workload(), one, gpu_cluster(), with_support, done) == pytest.approx(15 + 2 + 4)


def test_clusters_by_their_names() -> None:
    assert parse_cluster("8xh100") == DeviceCluster(DEVICES["h100"], 1, 8)
    assert parse_cluster("32xH100") == parse_cluster("4x8xh100") == DeviceCluster(DEVICES["h100"], 4, 8)
    for text, message in (
        ("8", "write 8xh100"),
        ("0xh100", "write 8xh100"),
        ("8xb300", "no rates are known for b300, only for h100"),
        ("12xh100", "12 is not a multiple of 8 devices a node"),
        ("2xcpu", "A cpu is known only from a calibration"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_cluster(text)


def test_the_best_split_is_the_best_of_all() -> None:
    workload = example_workload("rollout.prompts_per_step=32", traffic=replace(ALIKE, response_spread=0.5))
    cluster = gpu_cluster(6)
    plans = rank_splits(workload, cluster, UNCALIBRATED)
    narrow = [plan for plan in plans if plan.workload.tensor_parallel == 1]
    assert len(narrow) == len(list(candidate_splits(workload, cluster, {}))) == 2 * sum(range(1, 5))
    assert {plan.workload.tensor_parallel for plan in plans} == {1, 2, 4}, "as its four heads can be shared out"
    devices = {
        plan.split.rollout * plan.workload.tensor_parallel + plan.split.teacher + plan.split.learner for plan in plans
    }
    assert devices == {6}
    assert plans[0].samples_per_s == max(plan.samples_per_s for plan in plans)


def test_teachers_share_a_copy_where_they_must() -> None:
    workload = replace(example_workload(shape=KNOWN["qwen3-32b"]), precision="bfloat16", adapters=10**8, zero_stage=3)
    best = rank_splits(workload, gpu_cluster(16), UNCALIBRATED)[0]
    assert not best.shortfalls
    assert 1 < best.split.teacher_shards <= best.split.teacher
    assert f"teacher.shards={best.split.teacher_shards}" in plan_text.command_line_overrides(best, best)
    assert f"{best.split.teacher} teacher by {best.split.teacher_shards}," in best.label()
    assert all(
        plan.split.ahead == 0
        for plan in rank_splits(replace(workload, engines_sleep=True), gpu_cluster(8), UNCALIBRATED)
    )
    small = replace(workload, shape=KNOWN["qwen3-4b"])
    assert {plan.split.teacher_shards for plan in rank_splits(small, gpu_cluster(16), UNCALIBRATED)} == {1}


def test_an_engine_of_several_devices_is_faster_and_pays_for_its_sums() -> None:
    workload = example_workload("rollout.max_batch_sequences=8")
    halves = replace(workload, tensor_parallel=2)
    cluster = gpu_cluster(4, link=1e-3)
    splits = list(candidate_splits(halves, cluster, {}))
    assert splits
    assert {split.rollout * 2 + split.learner + split.teacher for split in splits} == {4}
    loads = [
        sampling_time(each, Power(cluster.device, each.tensor_parallel), 1, UNCALIBRATED.stages["sample"]).load
        for each in (workload, halves)
    ]
    assert loads[1].roofline_s == pytest.approx(loads[0].roofline_s / 2)
    assert loads[0].sent_s == 0.0
    tokens = (
        loads[1].items + workload.prompts * workload.traffic.prompt_tokens
    )  # siblings share a prompt, but for its last block
    assert loads[1].sent_s == pytest.approx(
        2 * workload.shape.layers * workload.shape.hidden * 4 * tokens / 1e6, rel=0.2
    )


def test_on_shared_cores_threads_of_a_worker_are_not_set_against_other_roles() -> None:
    splits = list(candidate_splits(example_workload(), DeviceCluster(replace(gpu(), shared=True), 1, 4), {}))
    assert {(split.rollout, split.learner) for split in splits} == {(1, 1), (1, 4), (4, 1), (4, 4)}
    assert {split.teacher_threads for split in splits if split.ahead} == {1}
    assert {split.teacher_threads for split in splits if not split.ahead} == {1, 4}
    assert {split.rollout_threads * split.learner_threads for split in splits} == {1}


def test_a_split_that_does_not_fit_is_never_recommended() -> None:
    workload = replace(
        example_workload(shape=KNOWN["qwen3-8b"]), precision="bfloat16", zero_stage=3, checkpointing=True
    )
    plans = rank_splits(workload, parse_cluster("8xl40s"), UNCALIBRATED)
    fitting = [plan for plan in plans if not plan.shortfalls]
    assert fitting
    assert len(fitting) < len(plans)
    assert plans[: len(fitting)] == fitting
    assert all(plan.split.learner > 2 for plan in fitting)


def test_a_method_without_a_teacher_gives_it_no_device() -> None:
    workload = example_workload("method=grpo")
    assert {split.teacher for split in candidate_splits(workload, gpu_cluster(4), {})} == {0}
    assert plan_run(workload, Split(2, 0, 2), gpu_cluster(4), UNCALIBRATED).seconds["score"] == 0.0


def test_a_run_with_nothing_to_learn_from_still_has_a_plan() -> None:
    nothing = example_workload(traffic=replace(ALIKE, right_fraction=0.0))
    plan = plan_run(nothing, Split(2, 1, 2), gpu_cluster(5), UNCALIBRATED)
    assert plan.seconds["sample"] > 0
    assert plan.step_s > 0


def test_the_traffic_has_defaults() -> None:
    assert example_workload(traffic=Traffic()).traffic.response_tokens == 32  # half of the demo's 64
    assert example_workload(traffic=Traffic(response_tokens=10)).traffic.solution_tokens == 26
