"""Learner and teacher on a CUDA device, with real Ray and DeepSpeed, compared with the CPU."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from demopsd_dist.config import Config, Transport, load
from demopsd_dist.data.packing import pack
from demopsd_dist.data.records import BatchSize, Prompt, Question, Rollout, ScoredExample, Tokens, TrainingExample
from demopsd_dist.methods import resolve_method
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.objective import SDPO, OutputHead, TokenSlice, TokenViews, coarsen, fused_loss, reduced, top_k_support
from demopsd_dist.training.roles import Roles
from workers.actors import LearnersAndTeacher
from workers.cluster import session

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
WORDS = ["learner.num_workers=1", "learner.learning_rate=3e-4", "learner.warmup_steps=0"]
ON_GPU = ["learner.gpus_per_worker=0.5", "teacher.gpus_per_worker=0.5"]


@dataclass
class Core:
    """Synchronous calls to the roles."""

    config: Config
    roles: Roles

    def publish(self, version: int) -> None:
        asyncio.run(self.roles.weights.publish(version))

    def support(self, examples: list[TrainingExample]) -> list[Tokens] | None:
        return asyncio.run(self.roles.learners.support(examples))

    def score(self, examples: list[TrainingExample], supports: list[Tokens] | None) -> list[ScoredExample]:
        return asyncio.run(self.roles.teacher.score(examples, supports, resolve_method(self.config).forwards))

    def step(self, scored: list[ScoredExample]) -> dict[str, float]:
        size = BatchSize(sum(item.example.response_length_tokens for item in scored), len(scored))
        batch = pack(scored, size, 1, self.config.learner.micro_batch_tokens, self.config.model.tree_tokens)
        return asyncio.run(self.roles.learners.step(batch)).metrics

    def weights(self, folder: Path) -> dict[str, torch.Tensor]:
        asyncio.run(self.roles.learners.export(folder))
        return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    session.join(load(DEMO))
    yield
    session.leave()


@contextmanager
def started(*words: str, transport: Transport = Transport.auto) -> Iterator[Core]:
    config = load(DEMO, [*WORDS, *words])
    config.weights.transport = transport  # settings refuse ipc where engines, of which there are none, have no share
    actors = LearnersAndTeacher(config, MODEL_DIR)
    try:
        core = Core(config, asyncio.run(actors.start()))
        core.publish(0)
        yield core
    finally:
        actors.stop()


def drawn(groups: int = 3, size: int = 4) -> list[TrainingExample]:
    draw = np.random.default_rng(7)

    def tokens(count: int) -> Tokens:
        return draw.integers(4, 200, count).astype(np.int32)

    examples = []
    for group in range(groups):
        prompt = Prompt(Question(f"q{group}", "", "", ""), tokens(20 + group))
        for sample in range(size):
            length = int(draw.integers(5, 30))
            never_T = np.full(length, -9, np.int32)
            rollout = Rollout(prompt, sample, tokens(length), np.full(length, -5, np.float32), "", False, never_T, 0)
            examples.append(TrainingExample(rollout, 1.0, 0.5, np.concatenate([prompt.tokens, tokens(11)])))
    return examples


def test_scores_and_two_steps_are_those_of_the_cpu(ray_here: None, tmp_path: Path) -> None:
    """Equality in float32 without TF32: of supports exactly, of log-probabilities and gradient norms up to rounding."""
    examples = drawn()
    supports, scores, steps, weights = [], [], [], []
    for place, words in (("cpu", []), ("gpu", ON_GPU)):
        with started(*words) as core:
            supports.append(core.support(examples))
            scored = core.score(examples, supports[-1])
            steps.append([core.step(scored)])
            core.publish(1)
            again = core.score(examples, supports[-1])
            steps[-1].append(core.step(again))
            scores.append([*scored, *again])
            weights.append(core.weights(tmp_path / place))
    same = [np.sort(one) == np.sort(other) for one, other in zip(*supports, strict=True)]
    assert np.concatenate(same).mean() > 0.99, "only ties may differ"
    for cpu, gpu in zip(*scores, strict=True):
        if np.array_equal(cpu.support_TK, gpu.support_TK):
            assert np.allclose(cpu.reference_logp_TA, gpu.reference_logp_TA, atol=2e-3)
            assert np.allclose(cpu.teacher_logp_TA, gpu.teacher_logp_TA, atol=2e-3)
    for cpu, gpu in zip(*steps, strict=True):
        for name in ("learner/loss", "learner/grad_norm", "policy/entropy_nats"):
            assert cpu[name] == pytest.approx(gpu[name], rel=2e-3), name
    for name, tensor in weights[0].items():
        assert torch.allclose(tensor, weights[1][name], atol=1e-3), name


@pytest.mark.parametrize(("stage", "optimizer"), [(1, "adamw"), (2, "adamw"), (3, "adamw"), (2, "adamw_8bit")])
def test_bfloat16_learns_publishes_and_resumes(ray_here: None, tmp_path: Path, stage: int, optimizer: str) -> None:
    """Published weights are verified by their digests; a saved state is loaded unchanged."""
    if optimizer == "adamw_8bit":
        pytest.importorskip("bitsandbytes", reason="make bitsandbytes")
    words = (*ON_GPU, "model.precision=bfloat16", "weights.max_logp_diff=0.5", f"learner.zero_stage={stage}")
    words = (*words, f"learner.optimizer={optimizer}")
    with started(*words) as core:
        examples = drawn()
        scored = core.score(examples, core.support(examples))
        losses = [core.step(scored)["learner/loss"]]
        asyncio.run(core.roles.learners.save(tmp_path / "saved"))
        losses += [core.step(scored)["learner/loss"] for _ in range(8)]
        core.publish(9)
        assert losses[-1] < losses[0], losses
    with started(*words) as core:
        asyncio.run(core.roles.learners.load(tmp_path / "saved"))
        again = [core.step(scored)["learner/loss"] for _ in range(8)]
    assert again == pytest.approx(losses[1:], rel=2e-2), (again, losses)


def teacher_bytes(scored: list[ScoredExample]) -> bytes:
    """Bytes of the teacher's log-probabilities of all examples."""
    return b"".join(item.teacher_logp_TA.tobytes() for item in scored if item.teacher_logp_TA is not None)


def test_ipc_brings_the_teacher_the_same_weights(ray_here: None) -> None:
    examples, scores = drawn(), []
    for transport in (Transport.shared_memory, Transport.ipc):
        with started(*ON_GPU, "method=sdpo", "sdpo.teacher=live", transport=transport) as core:
            supports = core.support(examples)
            before = core.score(examples, supports)
            core.step(before)
            core.publish(1)  # every bucket's digest is checked where it arrives
            scores.append(core.score(examples, supports))
            assert teacher_bytes(before) != teacher_bytes(scores[-1])
    for one, other in zip(*scores, strict=True):
        assert one.teacher_logp_TA is not None
        assert other.teacher_logp_TA is not None
        assert np.allclose(one.teacher_logp_TA, other.teacher_logp_TA, atol=2e-3)


@pytest.mark.parametrize("top_k", [None, 50])
def test_the_fused_loss_has_the_gradients_of_float64(top_k: int | None) -> None:
    """Gradients with the GPU's slices and bfloat16 weights: as close as the weights' own rounding allows."""
    draw = torch.Generator(device="cuda").manual_seed(3)
    hidden, weight, teacher = (
        torch.randn(size, 64, generator=draw, device="cuda", dtype=torch.float64) * scale
        for size, scale in ((1500, 1.0), (3000, 0.1), (1500, 1.0))
    )
    gradients = []
    for dtype in (torch.float64, torch.bfloat16):
        hidden_NH, weight_VH = (x.detach().to(dtype).requires_grad_() for x in (hidden, weight))
        support_NK = top_k_support(hidden @ weight.T, top_k)
        teacher_NA = coarsen(teacher @ weight.T, support_NK).to(torch.promote_types(dtype, torch.float32))

        def loss_of(part: TokenSlice, teacher_NA: torch.Tensor = teacher_NA, top_k: int | None = top_k) -> torch.Tensor:
            views = TokenViews(part.student_logp_NA, None, teacher_NA[part.tokens], has_tail=top_k is not None)
            return reduced(SDPO(), views, token_count=1500).loss

        fused_loss(hidden_NH, OutputHead(weight_VH), support_NK, loss_of).backward()
        gradients.append((hidden_NH.grad, weight_VH.grad))
    for exact, narrow in zip(*gradients, strict=True):
        assert exact is not None
        assert narrow is not None
        assert float((exact - narrow).norm() / exact.norm()) < 1e-2
