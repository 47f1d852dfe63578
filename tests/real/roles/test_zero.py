"""DeepSpeed ZeRO: the stage and the number of ranks change where things live, never what is computed."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import Qwen3Config, Qwen3ForCausalLM

from demopsd_dist.config import Precision
from demopsd_dist.data.records import DigestRequest, Rollout, ScoredExample, TrainBatch, TrainingExample
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.objective import OutputHead, coarsen
from demopsd_dist.training.run import Task
from demopsd_dist.util.errors import NonFiniteLossError
from tests.real.conftest import Ranks
from tests.unit.run_record.sample_rows import packed
from workers.forward import HEAD_CHUNK_TOKENS, PaddedBatch, ResponseModel, load_causal_lm
from workers.learner.group import LearnerGroup

STEPS = 5
SHARDED = ("learner.num_workers=2", "learner.zero_stage=3")


@pytest.fixture(scope="module")
def scored(task: Task) -> list[ScoredExample]:
    """Twelve examples whose teacher is the base model with a correct solution in its prompt."""
    forward = ResponseModel(load_causal_lm(MODEL_DIR, Precision.float32).eval())
    encode = task.prompts.tokenizer.encode
    found = []
    for i, prompt in enumerate(task.train[:12]):
        wrong = f"<reasoning>{'1+' * i}1={i}</reasoning><answer>{i}</answer>"
        response = np.asarray(encode(wrong, add_special_tokens=False), np.int32)
        view = task.prompts.privileged(prompt.question, f"<answer>{prompt.question.answer}</answer>")
        with torch.inference_mode():
            student, teacher = (
                forward(PaddedBatch([[(tokens, response)]], torch.device("cpu")), OutputHead.logits)
                for tokens in (prompt.tokens, view)
            )
        ids = student.topk(100).indices
        logp_T = student.log_softmax(-1).numpy()[np.arange(len(response)), response]
        rollout = Rollout(
            prompt, 0, response, logp_T, wrong, False, version_T=np.zeros(len(response), np.int32), worker=0
        )
        values = (coarsen(student, ids).numpy(), coarsen(teacher, ids).numpy())
        found.append(ScoredExample(TrainingExample(rollout, 0.0, 0.0, view), ids.int().numpy(), *values))
    return found


def losses(
    ranks: Ranks, scored: list[ScoredExample], micro_batch_tokens: int, *words: str, export: Path | None = None
) -> np.ndarray:
    """The loss of each of five steps on the same batch, and the norm of its gradient."""
    group = ranks.start(*words)
    found = followed(group, packed(scored, group.dp_size, micro_batch_tokens), STEPS)
    if export:
        asyncio.run(group.export(export))
    return found


def followed(group: LearnerGroup, batch: TrainBatch, steps: int) -> np.ndarray:
    metrics = [asyncio.run(group.step(batch)).metrics for _ in range(steps)]
    return np.array([(step["learner/loss"], step["learner/grad_norm"]) for step in metrics])


@pytest.fixture(scope="module")
def one_rank(ranks: Ranks, scored: list[ScoredExample]) -> np.ndarray:
    return losses(ranks, scored, 10_000, "learner.num_workers=1", "learner.zero_stage=0")


def recomputes(group: LearnerGroup) -> list[bool]:
    """Whether each rank's layers are set to be computed again."""

    def look(worker: Any) -> bool:
        return all(
            layer.training and layer.gradient_checkpointing for layer in worker._engine.module.model.model.layers
        )

    return asyncio.run(group._group.each(lambda w, _: w.run(look), within_s=60, what="its layers"))


def test_it_learns(one_rank: np.ndarray) -> None:
    assert one_rank[-1, 0] < 0.9 * one_rank[0, 0]


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_ranks_at_every_stage_are_one_rank(
    stage: int, one_rank: np.ndarray, ranks: Ranks, scored: list[ScoredExample], tmp_path: Path
) -> None:
    """Two ranks compute what one does, with micro-batches of 150 padded tokens instead of one batch too."""
    folder = tmp_path / "student"
    found = losses(ranks, scored, 150, "learner.num_workers=2", f"learner.zero_stage={stage}", export=folder)
    np.testing.assert_allclose(found[0, 0], one_rank[0, 0], atol=1e-5)
    np.testing.assert_allclose(found[:, 0], one_rank[:, 0], atol=1e-4)
    np.testing.assert_allclose(found[0, 1], one_rank[0, 1], rtol=1e-3)
    exported = load_causal_lm(folder, Precision.float32).state_dict()
    base = load_causal_lm(MODEL_DIR, Precision.float32).state_dict()
    assert {name: value.shape for name, value in exported.items()} == {n: v.shape for n, v in base.items()}
    assert all((exported[name] != base[name]).any() for name in base if "layernorm" not in name and "norm" not in name)


def test_adapters_at_every_stage(ranks: Ranks, scored: list[ScoredExample], tmp_path: Path) -> None:
    """Two ranks as one; the exported student is the base with adapters merged, which peft reads by themselves too."""
    lora = ("model.lora_rank=8", "learner.learning_rate=3e-3")
    whole = losses(ranks, scored, 10_000, *lora, "learner.num_workers=1", "learner.zero_stage=0")
    assert whole[-1, 0] < 0.9 * whole[0, 0], "it learns"
    for stage in (1, 2, 3):
        words = (*lora, "learner.num_workers=2", f"learner.zero_stage={stage}")
        folder = tmp_path / str(stage)
        found = losses(ranks, scored, 150, *words, export=folder)
        np.testing.assert_allclose(found[:, 0], whole[:, 0], atol=2e-4)
        np.testing.assert_allclose(found[0, 1], whole[0, 1], rtol=1e-3)
        student, base = (load_causal_lm(path, Precision.float32) for path in (folder, MODEL_DIR))
        adapted = PeftModel.from_pretrained(base, str(folder / "adapter")).merge_and_unload()
        for (name, one), other in zip(student.named_parameters(), adapted.parameters(), strict=True):
            torch.testing.assert_close(one, other, msg=name)
    untouched = load_causal_lm(MODEL_DIR, Precision.float32).get_input_embeddings().weight
    assert torch.equal(student.get_input_embeddings().weight, untouched)


def test_a_loss_that_is_not_finite_is_refused_before_the_step(ranks: Ranks, scored: list[ScoredExample]) -> None:
    poisoned = list(scored)
    values = poisoned[0].teacher_logp_TA
    assert values is not None
    values = values.copy()
    values[0, 0] = np.nan
    poisoned[0] = ScoredExample(poisoned[0].example, poisoned[0].support_TK, poisoned[0].reference_logp_TA, values)
    group = ranks.start("learner.num_workers=2")
    before = asyncio.run(group.support([item.example for item in scored]))
    with pytest.raises(NonFiniteLossError) as error:
        asyncio.run(group.step(packed(poisoned, 2, 10_000)))
    assert "the loss of step 1 is not finite, and the step was refused on every rank: on rank " in str(error.value)
    rollout_id = poisoned[0].rollout.id
    assert f"the teacher's log-probabilities are not finite at response token 0 of rollout {rollout_id}" in str(
        error.value
    )
    assert "learning_rate" not in str(error.value)
    after = asyncio.run(group.support([item.example for item in scored]))
    assert before is not None
    assert after is not None
    for one, other in zip(before, after, strict=True):
        assert (one == other).all(), "the weights are as they were"


@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.parametrize("fault", ["parameter", "gradient"])
def test_a_parameter_or_gradient_that_is_not_finite_is_named(
    stage: int, fault: str, ranks: Ranks, scored: list[ScoredExample]
) -> None:
    """One value of rank 1's weights, or of the gradient of one layer there, is damaged in the living process."""
    group = ranks.start("learner.num_workers=2", f"learner.zero_stage={stage}")

    def damage(worker: Any) -> None:
        named = dict(worker._engine.module.model.named_parameters())
        parameter: Any = named["model.layers.1.mlp.down_proj.weight"]
        if worker.rank == 1 and fault == "parameter":
            getattr(parameter, "ds_tensor", parameter).data.view(-1)[0] = np.nan
        elif worker.rank == 1:
            parameter.register_hook(lambda gradient: gradient * np.inf)

    asyncio.run(group._group.each(lambda w, _: w.run(damage), within_s=60, what="the damage"))
    with pytest.raises(NonFiniteLossError) as error:
        asyncio.run(group.step(packed(scored, 2, 150)))
    damaged = "parameter model" if fault == "parameter" else "the gradient of model"
    assert f"on rank 1 {damaged}.layers.1.mlp.down_proj.weight has " in str(error.value)


def test_a_batch_without_tokens_is_no_step(ranks: Ranks) -> None:
    group = ranks.start("learner.num_workers=2")
    report = asyncio.run(group.step(packed([], 2, 100)))
    assert not report.stepped
    assert report.metrics == {}


@pytest.mark.parametrize("method", ["demopsd", "grpo"])
def test_a_rank_without_examples_changes_nothing(method: str, ranks: Ranks, scored: list[ScoredExample]) -> None:
    """One example on two ranks, on the first or on the second: support, step, metrics, token records and digests."""
    example = dataclasses.replace(scored[0].example, advantage=1.0)
    batch = packed([dataclasses.replace(scored[0], example=example)], 2, 150)
    first, second = batch.shards
    assert [len(row) for rows in second for row in rows] == []
    reports = []
    for shards in ((first, second), (second, first)):
        group = ranks.start(f"method={method}", "learner.num_workers=2", "learner.zero_stage=2")
        supports = asyncio.run(group.support([example]))
        recorded = frozenset({example.rollout.id})
        asked = dataclasses.replace(batch, shards=shards, record_ids=recorded, digest_request=DigestRequest())
        reports.append((supports, asyncio.run(group.step(asked))))
    (one_support, one), (other_support, other) = reports
    np.testing.assert_equal(one_support, other_support)
    assert set(one.metrics) == set(other.metrics)
    assert one.metrics == pytest.approx(other.metrics, rel=1e-5, abs=1e-7)
    assert one.metrics["learner/grad_norm"] > 0
    assert ("demopsd/alpha_p50" in one.metrics) == (method == "demopsd")
    assert set(one.token_records) == set(other.token_records) == recorded
    assert {name: set(rows) for name, rows in one.digests.items()} == {n: set(r) for n, r in other.digests.items()}


def test_zero_3_with_tensors_that_really_are_sharded(ranks: Ranks, scored: list[ScoredExample], tmp_path: Path) -> None:
    """DeepSpeed keeps small tensors whole on every rank; this model's are larger. One rank has a response that takes
    two slices of the head, the other none at all: both must gather the head as often."""
    torch.manual_seed(0)
    settings = load_causal_lm(MODEL_DIR, Precision.float32).config.to_dict()
    large = Qwen3ForCausalLM(Qwen3Config(**{**settings, "hidden_size": 512}))
    words = ("weights.max_logp_diff=100",)  # the examples' own log-probabilities are another model's
    folder = tmp_path / "large"
    shutil.copytree(MODEL_DIR, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    large.save_pretrained(folder)
    assert large.lm_head.weight.numel() > 100_000
    long = scored[0].example.rollout
    response = np.resize(long.tokens_T, HEAD_CHUNK_TOKENS + 100)
    example = TrainingExample(
        dataclasses.replace(long, tokens_T=response), 0.0, 0.0, scored[0].example.privileged_tokens
    )
    padded_batch = PaddedBatch([[(long.prompt.tokens, response)]], torch.device("cpu"))
    with torch.inference_mode():
        expected = ResponseModel(large.eval())(padded_batch, OutputHead.logits).topk(100)
    batch = packed(scored, 2, 150)
    one = packed(scored, 1, 10_000)
    group = ranks.start(*words, *SHARDED, folder=folder)
    supports = asyncio.run(group.support([example]))
    assert supports is not None
    (found,) = supports
    assert (found == expected.indices.numpy()).mean() > 0.99, "but for ties"
    sharded = followed(group, batch, 3)
    group = ranks.start(*words, *SHARDED, "learner.activation_checkpointing=true", folder=folder)
    assert recomputes(group) == [True, True]
    recomputed = followed(group, batch, 3)
    group = ranks.start(*words, "learner.num_workers=1", "learner.zero_stage=0", folder=folder)
    whole = followed(group, one, 3)
    np.testing.assert_allclose(sharded[0], whole[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(sharded, whole, rtol=1e-2, atol=1e-3)
    np.testing.assert_allclose(recomputed, sharded, rtol=1e-5, atol=1e-5)
