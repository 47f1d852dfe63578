"""Every method and control trains MiniSci through the same driver and roles, and runs no forward too many."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.common.timed_runs import RunLogWithSteps
from demopsd_dist.config import Config, Precision, WeightSource, load
from demopsd_dist.data.dataset_solutions import dataset_solutions
from demopsd_dist.data.records import Rollout, TrainingExample
from demopsd_dist.methods import Forwards, SupportKind, resolve_method, teacher_weights
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.objective import coarsen
from demopsd_dist.run_record import samples
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.run_record.log import Metrics
from demopsd_dist.training.roles import Roles
from demopsd_dist.training.run import Task
from tests.real.conftest import ROOT, SMALL, RealRoles, Spares, demo, go_through, moved_model, posted, renew
from tests.real.runs.test_training import SAMPLING, logits_of
from tests.unit.run_record.sample_rows import prompt
from tests.unit.run_record.sample_rows import rollout as a_rollout
from workers.actor_group import ActorGroup, no_actors
from workers.actors import forward_counts
from workers.cluster.spans import Traced
from workers.forward import load_causal_lm
from workers.learner.group import LearnerGroup
from workers.teacher import fsdp
from workers.teacher import worker as teacher
from workers.teacher.group import TeacherGroup
from workers.weights.publisher import WeightPublisher

STEPS = 2
FULL = {"reference/ema", "student/support", "teacher/ema"}
RUNS: dict[str, tuple[list[str], set[str]]] = {
    "demopsd.top_k=null": (["demopsd.top_k=null"], FULL - {"student/support"}),
    "sdpo": (["method=sdpo"], {"student/support", "teacher/ema"}),
    "sdpo, forward KL, live": (
        ["method=sdpo", "sdpo.divergence=forward_kl", "sdpo.teacher=live"],
        {"student/support", "teacher/live"},
    ),
    "sdpo, trust region": (
        ["method=sdpo", "sdpo.teacher=trust_region"],
        {"student/support", "teacher/frozen", "teacher/live"},
    ),
    "opsd": (["method=opsd"], {"teacher/frozen"}),
    "grpo": (["method=grpo"], set()),
    "grpo, KL": (["method=grpo", "grpo.kl_coefficient=0.04"], {"reference/frozen"}),
    "dr_grpo": (["method=grpo", "grpo.variant=dr_grpo"], set()),
    "dapo": (["method=grpo", "grpo.variant=dapo"], set()),
    "own": (["method=examples.own_objective.DisagreeingTokens", "own.reference=ema"], FULL),
    "demopsd, weights by a process group": (["weights.transport=collective", "weights.bucket_mib=1"], FULL),
    "demopsd, LoRA": (["model.lora_rank=8", "learner.learning_rate=1e-2"], FULL),
}
CONTROLS: dict[str, set[str]] = {
    "constant_alpha": FULL,
    "scaled_learning_rate": {"student/support", "teacher/ema"},
    "live_reference": {"student/support", "teacher/ema"},
    "frozen_reference": {"reference/frozen", "student/support", "teacher/ema"},
    "alpha_max_1": FULL,
    "fitted_gate": FULL,
    "kl_budget": FULL,
    "scheduled_alpha": FULL,
}


@contextmanager
def roles_for(config: Config, engines: RealRoles, spares: Spares) -> Iterator[tuple[Roles, list[ActorGroup[Any]]]]:
    """Teacher and learner of this config, with the rollout engines that are there."""
    teachers = spares.teacher if teacher_weights(resolve_method(config), config) else no_actors("teacher")
    learners = spares.learner
    for group in (teachers, learners):
        renew(group, config)
    pool = engines.actors.pool
    try:
        publisher = WeightPublisher(learners, pool, teachers, config)
        asyncio.run(publisher.start())
        roles = Roles(
            rollouts=engines.roles.rollouts,
            teacher=TeacherGroup(teachers, config),
            learners=LearnerGroup(learners, config, resolve_method(config), publisher.sleep_engines),
            weights=publisher,
            restart=engines.actors.restart,
        )
        yield roles, [teachers, learners]
    finally:
        engines.publish()  # the engines' own learners' weights again


def trains(
    config: Config, roles: RealRoles, spares: Spares, task: Task, forwards: set[str], some: str | None = None
) -> list[Metrics]:
    """Two steps without an evaluation; exactly these forwards beside the one with the gradient, one for each example,
    except that `some` is for some of them alone."""
    task = dataclasses.replace(task, test=[], ood=[])
    with (
        roles_for(config, roles, spares) as (own_roles, groups),
        RunLogWithSteps(RunFolder.create(config), STEPS) as log,
    ):
        go_through(config, own_roles, task, log)
        ran = asyncio.run(forward_counts(groups, 60))
    assert set(ran) == forwards | {"student/gradient"}
    partly = ran.pop(some) if some is not None else 1
    assert len(set(ran.values())) == 1, "as many responses through each of them"
    assert 0 < partly < (ran["student/gradient"] if some is not None else 2)
    for metrics in log.steps:
        assert np.isfinite(metrics["learner/loss"])
        assert metrics["learner/grad_norm"] > 0
        assert metrics["mismatch/logp_diff_max"] < 1e-3, "the engines hold these learners' weights"
    return log.steps


SHORT = [
    f"steps={STEPS}",
    "rollout.prompts_per_step=4",
    "learner.num_workers=1",
    "evaluation.at_start=false",
    "leakage.every_steps=0",
    "drift.every_steps=0",
]


@pytest.mark.parametrize("name", RUNS)
def test_methods_by_one_key(name: str, roles: RealRoles, spares: Spares, task: Task, tmp_path: Path) -> None:
    words, forwards = RUNS[name]
    trains(demo(*SHORT, *words, f"output_dir={tmp_path}"), roles, spares, task, forwards)


@pytest.mark.parametrize(
    ("words", "forwards"),
    [
        (
            # of two responses one is often the only right one, which has no sibling to be shown
            ["sdpo.divergence=reverse_kl", "mixed.weight=0.8", "rollout.group_size=2"],
            {"student/support"},
        ),
        (
            [
                "mixed.distillation=demopsd",
                "mixed.routing=success",
                "demopsd.gate=fitted",
                "demopsd.support=reference",
            ],
            {"reference/ema"},
        ),
    ],
    ids=["sdpo", "demopsd, by success"],
)
def test_a_mixed_loss(
    words: list[str], forwards: set[str], roles: RealRoles, spares: Spares, task: Task, tmp_path: Path
) -> None:
    """Some responses have no solution to show: the teacher scores the others alone, and all are learned from."""
    config = demo(*SHORT, "rollout.prompts_per_step=8", "method=mixed", *words, f"output_dir={tmp_path}")
    steps = trains(config, roles, spares, task, {*forwards, "teacher/ema"}, some="teacher/ema")
    for step in steps:
        assert 0 < step["mixed/distilled_fraction"] < 1
        assert step["mixed/distillation_loss_nats"] > 0
        # of one weight for all, the advantages of a group add up to nothing where its responses are equally long
        assert step["mixed/policy_loss"] < 0 or "mixed.routing=success" not in words
        terms = step["mixed/policy_loss"] + step["mixed/distillation_loss_nats"]
        learned = step["rollout/learned_tokens"] / step["rollout/tokens"]
        assert step["learner/loss"] == pytest.approx(terms * learned, rel=1e-4, abs=1e-7)


def test_opsd_as_published(roles: RealRoles, spares: Spares, task: Task, tmp_path: Path) -> None:
    """OPSD with the data set's solutions: every response is trained on, each with its own question's solution."""
    config = demo(*SHORT, "method=opsd", "privileged.source=dataset", f"output_dir={tmp_path}")
    solutions = dataset_solutions(config, [one.question for one in task.train], task.prompts, task.reward)
    steps = trains(config, roles, spares, dataclasses.replace(task, solutions=solutions), {"teacher/frozen"})
    for step in steps:
        assert step["privileged/dataset_fraction"] == step["rollout/learned_fraction"] == 1.0
        assert step["rollout/groups_learnable_fraction"] == 1.0
    asked = {one.id: one.question for one in task.train}
    rows = [row for path in samples.files(tmp_path / "demo" / "samples") for row in samples.read(path)]
    assert rows
    for row in rows:
        assert asked[row["prompt_id"]].solution in row["privileged_view"]
        assert row["solution_source"] == "dataset"


@pytest.mark.parametrize("name", CONTROLS)
def test_controls_by_one_file(name: str, roles: RealRoles, spares: Spares, task: Task, tmp_path: Path) -> None:
    config = load(ROOT / "configs" / "controls" / f"{name}.yaml", [*SMALL, *SHORT, f"output_dir={tmp_path}"])
    steps = trains(config, roles, spares, task, CONTROLS[name])
    if name == "constant_alpha":
        assert [step["demopsd/alpha_p50"] for step in steps] == pytest.approx([config.demopsd.alpha_max] * STEPS)
    if name == "alpha_max_1":
        assert steps[0]["demopsd/alpha_p99"] > 0.8
    if name == "fitted_gate":
        assert [step["demopsd/alpha_mean"] for step in steps] == pytest.approx(
            [config.demopsd.mean_alpha] * STEPS, rel=0.01
        )
        assert all(1 < step["demopsd/gate_sensitivity"] < 1e5 for step in steps)
    if name == "kl_budget":
        assert all(0 < step["demopsd/alpha_mean"] < 1 for step in steps)
        leaked = [(step["leakage/target_nats"], step["leakage/teacher_nats"]) for step in steps]
        assert all(target < 0.0041 < teacher for target, teacher in leaked), "the budget binds"
    if name == "scheduled_alpha":
        assert [step["demopsd/alpha_max"] for step in steps] == pytest.approx(np.linspace(0.5, 0.0, STEPS))
        assert [step["demopsd/alpha_p50"] for step in steps] == pytest.approx(np.linspace(0.5, 0.0, STEPS), abs=1e-6)


def forgetful(worker: Any) -> bool:
    """Runs in an actor: a sleeping engine's weights are lost, as on a GPU. Whether it sleeps."""

    def forget(process: Any) -> None:
        for parameter in process.model_runner.model.parameters():
            parameter.data.zero_()

    worker._engine.collective_rpc(forget)
    return worker._engine.is_sleeping()


def test_engines_sleep_while_the_learners_learn(roles: RealRoles, spares: Spares, task: Task, tmp_path: Path) -> None:
    """Engines sleep between sampling and the next weights, and get theirs back by a publish after a step without an
    optimizer update."""
    config = demo(*SHORT, "rollout.sleep=true", f"output_dir={tmp_path}")
    engines = roles.actors.pool.group
    started = time.monotonic()
    trains(config, roles, spares, task, FULL)
    for spans in asyncio.run(engines.each(lambda w, _: w(Traced.spans_since, started), within_s=60, what="spans")):
        order = [name for name, _, _ in sorted(spans, key=lambda span: span.start_s) if name in ("receive", "sleep")]
        assert order == ["receive", *["sleep", "receive"] * STEPS, "receive"], "at last the session's own weights again"

    async def slept(roles: Roles) -> tuple[list[Rollout], list[Rollout]]:
        publisher = roles.weights
        assert isinstance(publisher, WeightPublisher)
        await publisher.publish(0)
        before = await roles.rollouts.sample(task.test[:2], SAMPLING)
        await publisher.sleep_engines()
        asleep = await engines.each(lambda w, _: w.run(forgetful), within_s=60, what="to forget")
        assert asleep == [True] * len(engines)
        waiting = asyncio.ensure_future(roles.rollouts.sample(task.test[:2], SAMPLING))
        assert not (await asyncio.wait([waiting], timeout=1))[0], "they are asleep"
        await publisher.publish(1, changed=False)
        await waiting
        after = await roles.rollouts.sample(task.test[:2], SAMPLING)
        return [item for group in before for item in group], [item for group in after for item in group]

    with roles_for(config, roles, spares) as (own_roles, _):
        before, after = asyncio.run(slept(own_roles))
    assert [rollout.tokens_T.tolist() for rollout in before] == [rollout.tokens_T.tolist() for rollout in after]
    assert {rollout.oldest_version for rollout in after} == {1}


def test_working_copies_in_bfloat16_follow_the_average_in_float32(ray_here: None) -> None:
    """Weights after versions 0 and 1, and after version 1 once more, which a resumed run publishes again."""
    words = ("teacher.precision=bfloat16", "demopsd.reference=live", "demopsd.teacher=ema", "teacher.ema_rate=0.05")
    old, new = load_causal_lm(MODEL_DIR, Precision.float32), moved_model()
    worker = teacher.TeacherWorker(0, demo(*words), MODEL_DIR)
    worker.start()
    for version, model in ((0, old), (1, new), (1, new)):
        worker.receive(version, posted(version, model.named_parameters()))
    average, working = (fsdp.tensors_of(models[WeightSource.ema]) for models in (worker._averages, worker._models))
    for (name, before), after in zip(old.named_parameters(), new.parameters(), strict=True):
        expected = (0.95 * before + 0.05 * after).detach()
        torch.testing.assert_close(average[name], expected, atol=1e-6, rtol=1e-6)
        assert torch.equal(working[name], average[name].to(torch.bfloat16))


def test_the_teachers_weights_move_as_they_should(ray_here: None, tmp_path: Path) -> None:
    """Weights after versions 0 and 1: ema (1 - eta) old + eta new, live new, frozen old; a trust region
    mixes their logits."""
    config = demo("method=sdpo", "sdpo.teacher=trust_region", "teacher.trust_region_rate=0.3", "teacher.ema_rate=0.05")
    held = {WeightSource.ema, WeightSource.live, WeightSource.frozen}
    old = load_causal_lm(MODEL_DIR, Precision.float32)
    new = moved_model()
    worker = teacher.TeacherWorker(0, config, MODEL_DIR)
    worker.start()
    worker._models = {weights: worker._load(Precision.float32) for weights in held}
    for version, model in enumerate((old, new)):
        assert worker.receive(version, posted(version, model.named_parameters())).version == version
    for (name, before), after in zip(old.named_parameters(), new.parameters(), strict=True):
        expected = {
            WeightSource.ema: 0.95 * before + 0.05 * after,
            WeightSource.live: after,
            WeightSource.frozen: before,
        }
        for weights in held:
            found = dict(worker._models[weights].model.named_parameters())[name]
            torch.testing.assert_close(found, expected[weights].detach(), atol=1e-6, rtol=1e-6)
    new.save_pretrained(tmp_path)
    rollout = a_rollout(prompt("q"), length=9)
    example = TrainingExample(rollout, 1.0, 0.0, np.arange(30, 60, dtype=np.int32))
    ids = np.tile(np.arange(7, dtype=np.int32), (9, 1))
    ((given, nothing, mixed),) = worker.score(
        [example], [ids], Forwards(SupportKind.student, None, WeightSource.trust_region)
    )
    assert given is None
    assert nothing is None
    assert mixed is not None
    samples = [(example.privileged_tokens, rollout.tokens_T)]
    one, other = (logits_of(folder, samples)[0] for folder in (MODEL_DIR, tmp_path))
    expected_TA = coarsen(0.7 * one + 0.3 * other, torch.from_numpy(ids).long())
    np.testing.assert_allclose(mixed, expected_TA.numpy(), atol=1e-4)
    assert worker.forward_counts() == {"teacher/frozen": 1, "teacher/live": 1}
