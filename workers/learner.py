"""LearnerWorker: one DeepSpeed ZeRO rank. Its shard of a batch -> the objective -> gradients -> a step."""

from __future__ import annotations

import os
import socket
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from torch import Tensor

from demopsd_dist.config import Config
from demopsd_dist.data.records import Lesson, Scored, Tokens
from demopsd_dist.errors import NonFiniteLossError
from demopsd_dist.objective import Slice, demopsd_loss_on_atoms, fused_loss
from workers.forward import Rectangle, ResponseModel, in_slices, load_causal_lm, support_tensor
from workers.weights import pack_bucket
from workers.zero import deepspeed_config, extensions_folder, gathered

_EMPTY = np.zeros(1, dtype=np.int32)  # a rank without samples still takes part in every collective


def environment(config: Config) -> dict[str, str]:
    if config.learner.gpus_per_worker:
        return {}
    return {"OMP_NUM_THREADS": str(config.learner.threads), "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}


@dataclass
class RankReport:
    """`sums` of all ranks add up to means over the batch's tokens; of `maxima` the largest counts."""

    stepped: bool
    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    maxima: dict[str, float] = field(default_factory=lambda: defaultdict(float))


class LearnerWorker:
    """State: a shard of the student's weights and optimizer, and the number of training steps done."""

    def __init__(self, rank: int, config: Config, model_folder: Path) -> None:
        self.rank = rank
        self._config = config
        self._folder = model_folder
        self.version = 0

    def address(self) -> tuple[str, int]:
        """Where rank 0 can be met: its node's address and a free port there."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def start(self, meeting_point: tuple[str, int]) -> None:
        """Join the process group and hand the model to DeepSpeed."""
        settings = self._config.learner
        os.environ |= {
            "MASTER_ADDR": meeting_point[0],
            "MASTER_PORT": str(meeting_point[1]),
            "RANK": str(self.rank),
            "LOCAL_RANK": "0",  # Ray shows each actor only its own GPU
            "WORLD_SIZE": str(settings.num_workers),
            "TORCH_EXTENSIONS_DIR": str(extensions_folder()),
        }
        import deepspeed

        self._device = torch.device("cuda" if settings.gpus_per_worker else "cpu")
        if self._device.type == "cpu":
            torch.set_num_threads(settings.threads)
        torch.manual_seed(self._config.seed)
        deepspeed.init_distributed("nccl" if settings.gpus_per_worker else "gloo", verbose=False)
        model = ResponseModel(load_causal_lm(self._folder, self._config.model.precision))
        optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        if settings.zero_stage == 0:
            optimizer.register_step_pre_hook(self._clip)
        self._engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=deepspeed_config(self._config), dist_init_required=False
        )
        self._engine.eval()  # no dropout: rollouts, support and loss must see the same student
        self._named = [(name.removeprefix("module.").removeprefix("model."), p) for name, p in model.named_parameters()]

    def support(self, micro_batches: Sequence[Sequence[Lesson]]) -> list[list[Tokens]]:
        """The student's top-k ids (T, K) at each response token; (T, 0) for the full vocabulary."""
        top_k = self._config.demopsd.top_k
        vocabulary = self._engine.module.model.config.vocab_size
        if top_k is None or top_k >= vocabulary:
            return [[np.zeros((item.response_length_tokens, 0), np.int32) for item in batch] for batch in micro_batches]
        found = []
        with torch.no_grad():
            for lessons in micro_batches:
                rectangle = self._rectangle(lessons)
                ids_NK = self._engine(rectangle, in_slices(lambda logits, _: logits.topk(top_k).indices.int()))
                found.append(rectangle.split(ids_NK) if lessons else [])
        return found

    def step(self, micro_batches: Sequence[Sequence[Scored]], token_count: int) -> RankReport:
        """Loss and backward for each micro-batch, then one optimizer step on all ranks together.

        Raises:
            NonFiniteLossError: on every rank, before the step, where any rank's loss is not finite.
        """
        self.version += 1
        if token_count == 0:  # the same on all ranks; a step would only decay weights and replay momentum
            return RankReport(stepped=False)
        report = RankReport(stepped=True)
        world_size = self._config.learner.num_workers
        for scored in micro_batches:
            loss = self._loss(scored, token_count, report)
            self._engine.backward(loss * world_size)  # DeepSpeed divides by it again
        self._refuse_non_finite(report.sums["demopsd/loss"])
        for group in self._engine.optimizer.param_groups:
            group["lr"] = report.maxima["learner/learning_rate"] = self._learning_rate()
        self._engine.step()
        norm = self._grad_norm if self._config.learner.zero_stage == 0 else self._engine.get_global_grad_norm()
        self._refuse_infinite_gradient(float(norm))
        report.maxima["learner/grad_norm"] = float(norm)
        return report

    def _loss(self, scored: Sequence[Scored], token_count: int, report: RankReport) -> Tensor:
        """The micro-batch's share of the global token mean; its metrics go into the report."""
        batch = self._rectangle([item.lesson for item in scored])
        if not scored:
            return self._engine(batch, lambda hidden_NH, weight_VH, _: hidden_NH.sum() * 0.0 + weight_VH.sum() * 0.0)
        support_NK = support_tensor([item.support_TK for item in scored], self._device)
        reference_NA = self._values([item.reference_logp_TA for item in scored])
        teacher_NA = self._values([item.teacher_logp_TA for item in scored])
        rollout_logp_N = self._values([item.lesson.rollout.logp_T for item in scored])
        fresh_N = torch.from_numpy(np.repeat([self._is_fresh(item) for item in scored], batch.lengths)).to(self._device)
        settings, temperature = self._config.demopsd, self._config.rollout.temperature

        def loss_of(part: Slice) -> Tensor:
            tokens = part.tokens
            difference_N = part.token_logp(batch.response_N[tokens]) - rollout_logp_N[tokens]
            result = demopsd_loss_on_atoms(
                part.student_logp_NA[None],
                reference_NA[tokens][None],
                teacher_NA[tokens][None],
                torch.ones_like(difference_N, dtype=torch.bool)[None],
                alpha_max=settings.alpha_max,
                gate_sensitivity=settings.gate_sensitivity,
                floor=settings.floor,
                importance_ratio_BT=difference_N.clamp(-20.0, 20.0).exp()[None],
                importance_clip=settings.importance_clip,
                token_count=token_count,
            )
            for name, value in result.metrics.items():
                report.sums[name] += float(value)
            with torch.no_grad():
                report.sums["policy/entropy_nats"] += float(part.entropy().sum()) / token_count
            if fresh_N[tokens].any():
                worst = float(difference_N[fresh_N[tokens]].abs().max())
                seen = report.maxima["mismatch/logp_diff_max"]
                report.maxima["mismatch/logp_diff_max"] = float(np.maximum(seen, worst))  # keeps a NaN
            return result.loss

        return self._engine(
            batch,
            lambda hidden_NH, weight_VH, bias_V: fused_loss(
                hidden_NH, weight_VH, support_NK, loss_of, bias_V=bias_V, temperature=temperature
            ),
        )

    def _is_fresh(self, item: Scored) -> bool:
        """Sampled from the weights of now. Older rollouts differ because the student has moved."""
        return item.lesson.rollout.weight_version == self.version - 1

    def _rectangle(self, lessons: Sequence[Lesson]) -> Rectangle:
        samples = [(lesson.rollout.prompt.tokens, lesson.rollout.tokens_T) for lesson in lessons]
        return Rectangle(samples or [(_EMPTY, _EMPTY)], self._device)

    def _values(self, arrays: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(arrays)).to(self._device)

    def _refuse_infinite_gradient(self, norm: float) -> None:
        """The norm is the same on all ranks. DeepSpeed has skipped the step by itself, at stages 1 to 3."""
        if not np.isfinite(norm):
            raise self._refusal(f"the gradient of step {self.version} is not finite")

    def _clip(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """For ZeRO-0: its gradients are whole and reduced when the optimizer is about to step."""
        gradients = [p for group in optimizer.param_groups for p in group["params"]]
        self._grad_norm = torch.nn.utils.clip_grad_norm_(gradients, self._config.learner.max_grad_norm)
        self._refuse_infinite_gradient(float(self._grad_norm))

    def _learning_rate(self) -> float:
        settings = self._config.learner
        return settings.learning_rate * min(1.0, self.version / max(settings.warmup_steps, 1))

    def _refuse_non_finite(self, loss: float) -> None:
        flag = torch.tensor(float(np.isfinite(loss)), device=self._device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MIN)
        if not flag:
            raise self._refusal(f"the loss of step {self.version} is not finite (on rank {self.rank}: {loss})")

    def _refusal(self, what: str) -> NonFiniteLossError:
        rate = self._config.learner.learning_rate
        return NonFiniteLossError(
            f"{what}; the step was refused on every rank. Lower learner.learning_rate ({rate:g})."
        )

    def gather(self, version: int) -> list[ray.ObjectRef]:
        """Put the whole weights into the object store, bucket by bucket; the refs come from rank 0."""
        self.version = version
        refs = []
        for index, tensors in enumerate(self._buckets()):
            if self.rank == 0:
                refs.append(ray.put(pack_bucket(version, index, tensors)))
        return refs

    def _buckets(self) -> Any:
        return gathered(self._named, self._config.weights.bucket_mib << 20, self._config.learner.zero_stage)

    def export(self, folder: Path) -> None:
        """Rank 0 writes a Hugging Face model folder: weights, configuration and tokenizer."""
        state: dict[str, Tensor] = {}
        for tensors in self._buckets():
            if self.rank == 0:
                state |= {name: tensor.detach().cpu().clone() for name, tensor in tensors}
        if self.rank == 0:
            from transformers import AutoTokenizer

            self._engine.module.model.save_pretrained(folder, state_dict=state)
            AutoTokenizer.from_pretrained(self._folder).save_pretrained(folder)
            for path in folder.iterdir():  # safetensors writes for the owner alone
                path.chmod(0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
