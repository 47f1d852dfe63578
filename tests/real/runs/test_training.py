"""Real Ray, vLLM and DeepSpeed: a few training steps, and that every role holds the weights it says it holds."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from demopsd_dist.config import Config, Precision
from demopsd_dist.data.examples import examples_from_siblings, reward_group
from demopsd_dist.data.records import Rollout
from demopsd_dist.methods import resolve_method
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.objective import coarsen
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.run_record.log import RunLog
from demopsd_dist.training.roles import Sampling
from demopsd_dist.training.run import Task
from tests.real.conftest import RealRoles, Spares, demo, go_through, renew
from tests.real.recorded_run import hold_metrics, hold_report, hold_samples
from workers.forward import load_causal_lm
from workers.rollout.group import RolloutGroup
from workers.rollout.pool import FixedPool
from workers.teacher import worker as teacher_module

SAMPLING = Sampling(samples=4, temperature=1.0, top_p=1.0, max_response_tokens=64, seed="test")


def sampled(roles: RealRoles, task: Task, sampling: Sampling = SAMPLING) -> list[Rollout]:
    groups = asyncio.run(roles.roles.rollouts.sample(task.test, sampling))
    return [rollout for group in groups for rollout in group]


def logits_of(folder: Path, samples: list[tuple[np.ndarray, np.ndarray]]) -> list[torch.Tensor]:
    """(T, V) logits of a Hugging Face folder at every response token, by transformers, one sample at a time."""
    model = load_causal_lm(folder, Precision.float32).eval()
    with torch.inference_mode():
        rows = [torch.from_numpy(np.concatenate(pair).astype(np.int64))[None] for pair in samples]
        return [model(row).logits[0, len(prompt) - 1 : -1] for row, (prompt, _) in zip(rows, samples, strict=True)]


def logp_of(logits: torch.Tensor, rollout: Rollout) -> np.ndarray:
    """Log-probabilities of the sampled tokens by logits (T, V)."""
    return logits.log_softmax(-1).numpy()[np.arange(len(rollout.tokens_T)), rollout.tokens_T]


def trained(roles: RealRoles, task: Task, config: Config) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Run the whole loop with the roles; what it recorded of each step, and its summary."""
    folder = RunFolder.create(config)
    with RunLog(folder, config.steps) as log:
        state = go_through(config, roles.roles, task, log)
        roles.version = state.version
        summary = log.summary()
    records = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    return [record for record in records if "evaluation" not in record], summary


def test_engines_sample_from_the_model_they_say(roles: RealRoles, task: Task) -> None:
    """The engines' log-probabilities are those of transformers on the same tokens."""
    rollouts = sampled(roles, task)[:12]
    assert {rollout.oldest_version for rollout in rollouts} == {roles.version}
    assert {rollout.worker for rollout in rollouts} == {0, 1}
    for rollout, logits in zip(
        rollouts, logits_of(MODEL_DIR, [(r.prompt.tokens, r.tokens_T) for r in rollouts]), strict=True
    ):
        logp = logp_of(logits, rollout)
        np.testing.assert_allclose(rollout.logp_T, logp, atol=2e-5)


def test_a_sample_depends_on_seed_and_id_alone(roles: RealRoles, task: Task) -> None:
    """Whichever worker draws it, in whatever company: the prompts the other way round go to other workers."""
    once = {rollout.id: rollout for rollout in sampled(roles, task)}
    shuffled = dataclasses.replace(task, test=task.test[::-1][:7])
    again = sampled(roles, shuffled)
    assert {rollout.worker for rollout in again} == {0, 1}
    assert any(rollout.worker != once[rollout.id].worker for rollout in again)
    for rollout in again:
        assert rollout.tokens_T.tolist() == once[rollout.id].tokens_T.tolist()
        np.testing.assert_allclose(rollout.logp_T, once[rollout.id].logp_T, atol=1e-5)
    other = sampled(roles, task, dataclasses.replace(SAMPLING, seed="other"))
    assert any(rollout.text != once[rollout.id].text for rollout in other)


def test_support_and_teacher_values_are_those_of_plain_forwards(roles: RealRoles, task: Task) -> None:
    groups = asyncio.run(roles.roles.rollouts.sample(task.test[:6], SAMPLING))
    marked = [reward_group(group, task.reward) for group in groups]
    examples = examples_from_siblings(marked, task.prompts, exclude_own_success=True, seed="0").examples
    assert examples, "the base model finds some right answers"
    supports = asyncio.run(roles.roles.learners.support(examples))
    assert supports is not None
    scored = asyncio.run(roles.roles.teacher.score(examples, supports, resolve_method(roles.config).forwards))
    views = {
        "student": [(x.prompt.tokens, x.response_T) for x in examples],
        "teacher": [(x.privileged_tokens, x.response_T) for x in examples],
    }
    student, teacher = logits_of(MODEL_DIR, views["student"]), logits_of(MODEL_DIR, views["teacher"])
    for item, support, z_s, z_r in zip(scored, supports, student, teacher, strict=True):
        expected = z_s.topk(100).values
        torch.testing.assert_close(
            z_s.gather(-1, torch.from_numpy(support.copy()).long()), expected, atol=1e-4, rtol=1e-4
        )
        ids = torch.from_numpy(support.copy()).long()
        assert item.reference_logp_TA is not None
        assert item.teacher_logp_TA is not None
        np.testing.assert_allclose(item.reference_logp_TA, coarsen(z_s, ids).numpy(), atol=1e-4)
        np.testing.assert_allclose(item.teacher_logp_TA, coarsen(z_r, ids).numpy(), atol=1e-4)


def test_a_few_real_steps(roles: RealRoles, spares: Spares, task: Task, tmp_path: Path) -> None:
    """The whole loop; afterwards every engine, the export and a fresh vLLM agree on the student."""
    config = demo("steps=3", f"output_dir={tmp_path}", "evaluation.every_steps=2")
    steps, summary = trained(roles, task, config)
    assert [r["step"] for r in steps] == [1, 2, 3]
    for record in steps:
        assert all(np.isfinite(value) for value in record.values())
        assert record["mismatch/logp_diff_max"] <= 1e-3
        assert 0 < record["learner/loss"] < 18.5
        assert 0 < record["demopsd/alpha_mean"] <= 0.15
        assert record["leakage/target_nats"] <= record["leakage/teacher_nats"]
        assert record["learner/grad_norm"] > 0
        assert record["policy/age_steps_max"] == 0
    assert summary["logp_diff_max"] <= 1e-3
    distances = [record["drift/initial_kl_nats"] for record in steps if "drift/initial_kl_nats" in record]
    assert len(distances) == 2, "after the first step and after the last"
    assert 0 < distances[0] < distances[1] < 1
    hold_metrics(steps)
    hold_samples(tmp_path / "demo", task, lambda pairs: logits_of(MODEL_DIR, pairs))
    hold_report(tmp_path / "demo")

    student = tmp_path / "student"
    asyncio.run(roles.roles.learners.export(student))
    wrong = asyncio.run(roles.actors.check_export(MODEL_DIR))  # loads, but is not the trained model
    assert ["computes another model from it" in problem for problem in wrong.problems] == [True, True]
    check = asyncio.run(roles.actors.check_export(student))  # and engine 0 has the student again
    assert (check.problems, set(check.logp_diff_nats)) == ((), {"transformers", "vLLM"})
    assert max(check.logp_diff_nats.values()) <= 2e-5
    rollouts = sampled(roles, task)
    assert {rollout.oldest_version for rollout in rollouts} == {3}
    moved = 0.0
    pairs = [(r.prompt.tokens, r.tokens_T) for r in rollouts[:12]]
    for rollout, new, old in zip(rollouts, logits_of(student, pairs), logits_of(MODEL_DIR, pairs), strict=False):
        np.testing.assert_allclose(rollout.logp_T, logp_of(new, rollout), atol=2e-5)
        moved = max(moved, float(np.abs(rollout.logp_T - logp_of(old, rollout)).max()))
    assert moved > 1e-2, "training moved the weights, and the engines went along"

    renew(spares.rollout, config, student)
    groups = asyncio.run(RolloutGroup(FixedPool(spares.rollout, config), config).sample(task.test, SAMPLING))
    loaded = [rollout for group in groups for rollout in group]
    for one, other in zip(rollouts, loaded, strict=True):
        assert one.tokens_T.tolist() == other.tokens_T.tolist()
        np.testing.assert_allclose(one.logp_T, other.logp_T, atol=1e-5)


def test_the_teacher_sends_little(roles: RealRoles, task: Task, tmp_path: Path) -> None:
    """Half precision: the values are float32's to 1/2048, and both forwards with their tails take 404 bytes a token."""
    config = demo("teacher.payload=float16")
    worker = teacher_module.TeacherWorker(0, config, MODEL_DIR)
    worker.start()
    groups = asyncio.run(roles.roles.rollouts.sample(task.test[:6], SAMPLING))
    marked = [reward_group(group, task.reward) for group in groups]
    examples = examples_from_siblings(marked, task.prompts, exclude_own_success=True, seed="0").examples
    supports = asyncio.run(roles.roles.learners.support(examples))
    half = worker.score(examples, supports, resolve_method(config).forwards)
    worker._config = demo()
    full = worker.score(examples, supports, resolve_method(config).forwards)
    for example, (_, *narrow), (_, *wide) in zip(examples, half, full, strict=True):
        assert sum(values.nbytes for values in narrow if values is not None) == 404 * example.response_length_tokens
        for one, other in zip(narrow, wide, strict=True):
            assert one is not None
            assert other is not None
            np.testing.assert_allclose(one.astype(np.float32), other, rtol=1 / 2048, atol=1e-7)


def test_rollouts_ahead_of_the_learners(roles: RealRoles, task: Task, tmp_path: Path) -> None:
    """Sampling goes on while the learners learn; no rollout is older than one step, and the ratio tells how far off."""
    config = demo("steps=3", f"output_dir={tmp_path}", "rollout.ahead=1")
    steps, summary = trained(roles, task, config)
    assert [record["policy/age_steps_max"] for record in steps] == [0, 1, 1]
    assert all(0 < record["learner/loss"] < 18.5 for record in steps)
    assert "mismatch/logp_diff_max" not in steps[-1], "older rollouts say nothing about the weights published last"
    assert summary["logp_diff_max"] <= 1e-3
