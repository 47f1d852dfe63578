"""Mixtures of experts and models with persistent buffers: publish, export and checkpoint hold every tensor, under the
checkpoint's names."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from demopsd_dist.config import Precision
from tests.real.conftest import Ranks, Spares, demo, renew
from tests.real.roles.test_weights import NO_ACTORS, inside, moved, received
from tests.unit.models.small_folders import small_folder
from workers.forward import load_causal_lm
from workers.learner.group import LearnerGroup
from workers.rollout.pool import FixedPool
from workers.weights.checkpoint_format import as_checkpoint
from workers.weights.publisher import WeightPublisher

TOKENS = torch.arange(5, 25)[None]
FACTOR = 1.1  # of all tensors, buffers too


def buffers_of(worker: Any) -> dict[str, torch.Tensor]:
    """Persistent buffers of the only model of a teacher."""
    from workers.weights.tensor_groups import persistent_buffers

    (model,) = worker._models.values()
    return dict(persistent_buffers(model.model))


@pytest.mark.parametrize(("kind", "lora_rank"), [("qwen3_moe", 0), ("mixtral", 4), ("glm4_moe", 0)])
def test_engine_teacher_and_export_hold_every_tensor(
    kind: str, lora_rank: int, ranks: Ranks, spares: Spares, tmp_path: Path
) -> None:
    """The canary compares the engine with the learner, and the exported folder is read by transformers alone. The
    second publish shows that experts are packed again at each load."""
    folder, exported = tmp_path / "model", tmp_path / "student"
    model = small_folder(folder, kind)
    words = ["learner.num_workers=1", "learner.zero_stage=0", f"model.lora_rank={lora_rank}", "weights.bucket_mib=1"]
    words += ["rollout.max_prompt_tokens=256", "privileged.max_tokens=256"]  # within the small models' context
    learners = ranks.start(*words, folder=folder)
    config = demo(*words, f"model.path={folder}")
    renew(spares.rollout, config, folder, random_weights=True)
    renew(spares.teacher, config, folder)
    publisher = WeightPublisher(learners._group, FixedPool(spares.rollout, config), spares.teacher, config)
    asyncio.run(publisher.start())
    asyncio.run(publisher.publish(0))
    names = set(dict(model.named_parameters())) | set(inside(spares.teacher, 0, buffers_of))
    assert publisher.plan.names == names
    with moved(learners._group, FACTOR):
        asyncio.run(publisher.publish(1))
        asyncio.run(learners.export(exported))
    before, after = load_file(folder / "model.safetensors"), load_file(exported / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor * FACTOR, msg=name)
    student = load_causal_lm(exported, Precision.float32).eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.mul_(FACTOR)
        torch.testing.assert_close(student(TOKENS).logits, model(TOKENS).logits)
    for name, buffer in inside(spares.teacher, 0, buffers_of).items():
        assert torch.equal(buffer, after[name])


def test_a_checkpoint_holds_persistent_buffers(ranks: Ranks, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    small_folder(folder, "glm4_moe")
    learners = ranks.start("learner.num_workers=1", folder=folder)
    with moved(learners._group, FACTOR):
        asyncio.run(learners.save(tmp_path / "checkpoint"))
    again = ranks.start("learner.num_workers=1", folder=folder)
    before = constants(again)
    asyncio.run(again.load(tmp_path / "checkpoint"))
    after = constants(again)
    assert list(before) == ["model.layers.0.mlp.gate.e_score_correction_bias"]
    torch.testing.assert_close(after, {name: buffer * FACTOR for name, buffer in before.items()})


def constants(learners: LearnerGroup) -> dict[str, torch.Tensor]:
    return inside(learners._group, 0, lambda worker: {name: buffer.clone() for name, buffer in worker._constants})


def test_zero_3_publishes_fused_experts_and_buffers(ranks: Ranks, tmp_path: Path) -> None:
    small_folder(tmp_path, "glm4_moe")
    words = ["learner.num_workers=2", "learner.zero_stage=3", "weights.bucket_mib=1"]
    learners = ranks.start(*words, folder=tmp_path)
    config = demo(*words)
    publisher = WeightPublisher(learners._group, FixedPool(NO_ACTORS, config), NO_ACTORS, config)
    asyncio.run(publisher.start())
    asyncio.run(publisher.publish(0))
    tensors = dict(as_checkpoint(received(publisher, 0).items(), publisher.plan.checkpoint_views))
    files = load_file(tmp_path / "model.safetensors")
    assert tensors.keys() == files.keys()
    for name, tensor in files.items():
        assert torch.equal(tensors[name], tensor), name
