"""LearnerWorker: one DeepSpeed ZeRO rank. Its shard of a batch -> the objective -> gradients -> a step."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import ray
import torch
from torch import Tensor

from demopsd_dist.config import Config, Transport
from demopsd_dist.data.records import BatchSize, DigestRequest, Logp, ScoredExample, Tokens, TrainingExample
from demopsd_dist.methods import objective_of, resolve_method
from demopsd_dist.objective import TokenSlice, TokenViews, fused_loss, reduced, token_weight
from demopsd_dist.training.schedule import learning_rate
from demopsd_dist.util.errors import NonFiniteLossError
from workers.cluster.ranks import MeetingPoint, Rank, meet_on
from workers.cluster.spans import Traced, traced
from workers.forward import PaddedBatch, ResponseModel, give_back, in_slices, load_causal_lm, support_tensor
from workers.learner import checkpoint
from workers.learner.activation_checkpointing import checkpoint_activations
from workers.learner.lora import Adapters, Named, adapt, save_adapters, whole_names
from workers.learner.observers.step_digests import StepDigests
from workers.learner.observers.step_metrics import RankReport, StepMetrics
from workers.learner.observers.token_recorder import TokenRecorder
from workers.learner.zero import (
    buckets_of,
    deepspeed_config,
    extensions_folder,
    full_shape,
    own_extensions,
    whole,
)
from workers.weights.buckets import BucketRef, layout, pack_bucket
from workers.weights.canary import LogpT
from workers.weights.transports import PublishPlan, SharedSegment, outbox


def environment(config: Config) -> dict[str, str]:
    if config.learner.gpus_per_worker:
        return {}
    return {"OMP_NUM_THREADS": str(config.learner.threads), "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}


class LearnerWorker(Traced, Rank):
    """State: a shard of the student's weights and optimizer, and the number of training steps done."""

    def __init__(self, rank: int, config: Config, model_folder: Path) -> None:
        super().__init__()
        self.rank = rank
        self._config = config
        self._folder = model_folder
        self._recipe = resolve_method(config)
        self._objective = objective_of(config)
        self._ran: Counter[str] = Counter()
        self.version = 0

    def start(self, meeting_point: MeetingPoint) -> None:
        """Join the process group and hand the model to DeepSpeed."""
        settings = self._config.learner
        os.environ |= {
            "MASTER_ADDR": meeting_point[0],
            "MASTER_PORT": str(meeting_point[1]),
            "RANK": str(self.rank),
            "LOCAL_RANK": "0",  # Ray shows each actor only its own GPU
            "WORLD_SIZE": str(settings.num_workers),
        }
        meet_on(ray.util.get_node_ip_address())
        import deepspeed

        self._device = torch.device("cuda" if settings.gpus_per_worker else "cpu")
        if self._device.type == "cpu":
            torch.set_num_threads(settings.threads)
        torch.manual_seed(self._config.seed)
        with own_extensions(extensions_folder()):
            deepspeed.init_distributed("nccl" if settings.gpus_per_worker else "gloo", verbose=False)
        causal = load_causal_lm(self._folder, self._config.model.precision)
        self._adapters = adapt(causal, self._config.model)
        model = ResponseModel(causal)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        if settings.zero_stage == 0:
            optimizer.register_step_pre_hook(self._clip)
        self._engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=deepspeed_config(self._config), dist_init_required=False
        )
        self._engine.eval()  # no dropout: rollouts, support and loss must see the same student
        if settings.activation_checkpointing:
            checkpoint_activations(causal)
        named = list(causal.named_parameters())  # a tied tensor is there once
        self._trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
        self._buckets = list(buckets_of(whole_names(named), self._config.weights.bucket_mib << 20))

    @traced
    def support(self, micro_batches: Sequence[Sequence[Sequence[TrainingExample]]]) -> list[list[Tokens]]:
        """The student's top-k ids (T, K) at each response token; at most all but one, which the tail then is.

        A micro-batch is a list of rows; its answer is a list of examples, row after row.
        """
        top_k = min(self._recipe.top_k or 0, self._engine.module.model.config.vocab_size - 1)
        found = []
        with torch.no_grad():
            for rows in micro_batches:
                padded_batch = self._rectangle(rows)
                ids_NK = self._engine(padded_batch, in_slices(lambda logits, _: logits.topk(top_k).indices.int()))
                found.append(padded_batch.split(ids_NK) if rows else [])
                self._ran["student/support"] += sum(map(len, rows))
        give_back(self._config, self._device)
        return found

    @traced
    def step(
        self,
        micro_batches: Sequence[Sequence[Sequence[ScoredExample]]],
        token_count: int,
        size: BatchSize,
        learning_rate_factor: float = 1.0,
        record_ids: frozenset[str] = frozenset(),
        trace: DigestRequest | None = None,
    ) -> RankReport:
        """Loss and backward for each micro-batch, then one optimizer step on all ranks together. Of the rollouts in
        `record_ids` the report has single tokens, and of a step with a `trace` digests of all tensors.

        Raises:
            NonFiniteLossError: on every rank, before the step, where any rank's loss is not finite.
        """
        self.version += 1
        if token_count == 0:  # the same on all ranks; a step would only decay weights and replay momentum
            return RankReport(stepped=False)
        account = StepMetrics(None if trace is None else StepDigests(trace, self.rank))
        world_size = self._config.learner.num_workers
        for rows in micro_batches:
            with self.spans.span("forward"):
                loss = self._loss(rows, token_count, size, account, record_ids)
            with self.spans.span("backward"):
                self._engine.backward(loss * world_size)  # DeepSpeed divides by it again
            self._ran["student/gradient"] += sum(map(len, rows))
        report = account.report()
        self._refuse_non_finite(report.sums.get("learner/loss", 0.0))
        for group in self._engine.optimizer.param_groups:
            group["lr"] = report.maxima["learner/learning_rate"] = learning_rate_factor * learning_rate(
                self._config.learner, self.version, self._config.steps
            )
        with self.spans.span("update"), account.gradient_seen(self._engine):
            self._engine.step()
        give_back(self._config, self._device)
        norm = self._grad_norm if self._config.learner.zero_stage == 0 else self._engine.get_global_grad_norm()
        self._refuse_infinite_gradient(float(norm))
        report.maxima["learner/grad_norm"] = float(norm)
        if account.tracer is not None:
            with self.spans.span("digests"):
                report.sums |= account.tracer.sums
                report.digests = account.tracer.digests(self._engine, self._trained)
        return report

    def forwards_run(self) -> Counter[str]:
        """Responses that went through each forward since the start: `student/support`, `student/gradient`."""
        return self._ran

    def _loss(
        self,
        rows: Sequence[Sequence[ScoredExample]],
        token_count: int,
        size: BatchSize,
        account: StepMetrics,
        record_ids: frozenset[str],
    ) -> Tensor:
        """The micro-batch's share of the global mean; what else it says goes into the account."""
        batch = self._rectangle([[item.example for item in row] for row in rows])
        scored = [item for row in rows for item in row]
        if not scored:
            return self._engine(batch, lambda hidden_NH, weight_VH, _: hidden_NH.sum() * 0.0 + weight_VH.sum() * 0.0)
        support_NK = support_tensor([item.support_TK for item in scored], self._device)
        reference_NA = self._values([item.reference_logp_TA for item in scored])
        teacher_NA = self._values([item.teacher_logp_TA for item in scored])
        rollout_logp_N = self._tensor([item.rollout.logp_T for item in scored])
        length_B = torch.tensor(batch.lengths, device=self._device)
        weight_B = token_weight(
            self._recipe.aggregation.value,
            length_B,
            token_count=size.tokens,
            sequence_count=size.sequences,
            max_tokens=self._config.rollout.max_response_tokens,
        )
        weight_N = weight_B.float().repeat_interleave(length_B)
        advantage_N = torch.tensor([item.example.advantage for item in scored], device=self._device)
        advantage_N = advantage_N.repeat_interleave(length_B)
        # Sampled from the weights of now. Older tokens differ because the student has moved.
        fresh_N = self._tensor([item.rollout.version_T == self.version - 1 for item in scored])
        any_fresh = bool(fresh_N.any())
        samples = self._config.samples
        token_recorder = TokenRecorder(
            scored,
            record_ids,
            self._objective,
            count=samples.candidates,
            max_tokens=samples.tokens,
            device=self._device,
        )
        account.token_recorders.append(token_recorder)
        response_digests = None if account.tracer is None else account.tracer.response_digests(scored)

        def loss_of(part: TokenSlice) -> Tensor:
            tokens = part.tokens
            difference_N = part.token_logp(batch.response_N[tokens]) - rollout_logp_N[tokens]
            views = TokenViews(
                part.student_logp_NA,
                None if reference_NA is None else reference_NA[tokens],
                None if teacher_NA is None else teacher_NA[tokens],
                importance_ratio_BT=difference_N.clamp(-20.0, 20.0).exp(),
                advantage_BT=advantage_N[tokens],
                has_tail=support_NK is not None,
            )
            result = reduced(self._objective, views, weight_BT=weight_N[tokens], token_count=token_count)
            account.add(result)
            with torch.no_grad():
                entropy_N = part.entropy()
                token_recorder.see(part, views, result, entropy_N, support_NK)
                if response_digests is not None:
                    response_digests.see(part, views, result, entropy_N)
                account.more("policy/entropy_nats", entropy_N.sum() / token_count)
                if any_fresh:
                    stray_N = torch.where(fresh_N[tokens], difference_N.abs(), 0.0)
                    account.largest("mismatch/logp_diff_max", stray_N.max())
            return result.loss

        return self._engine(
            batch,
            lambda hidden_NH, weight_VH, bias_V: fused_loss(
                hidden_NH,
                weight_VH,
                support_NK,
                loss_of,
                bias_V=bias_V,
                temperature=self._config.rollout.temperature,
            ),
        )

    def _rectangle(self, rows: Sequence[Sequence[TrainingExample]]) -> PaddedBatch:
        samples = [[(example.prompt.tokens, example.response_T) for example in row] for row in rows]
        return PaddedBatch(samples, self._device)

    def _values(self, arrays: Sequence[Logp | None]) -> Tensor | None:
        """Several samples' values as one (N, A) tensor; None where the method has none of this kind."""
        there = [values for values in arrays if values is not None]
        return self._tensor(there).float() if there else None

    def _tensor(self, arrays: Sequence[np.ndarray]) -> Tensor:
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

    def plan(self) -> PublishPlan:
        """What every publish will bring."""
        shapes = [[(name, full_shape(p), p.dtype) for name, p in bucket] for bucket in self._buckets]
        return PublishPlan(
            node=ray.get_runtime_context().get_node_id(),
            buckets=tuple(layout(bucket) for bucket in shapes),
            vocabulary_size=self._engine.module.model.config.vocab_size,
        )

    def open_outbox(self, transport: Transport) -> SharedSegment | None:
        """Before the first publish. Rank 0 sends; the answer is its shared memory, where that is the transport."""
        if self.rank:
            return None
        self._outbox = outbox(transport, self.plan().sizes)
        return self._outbox.segment

    @traced
    def gather(self, version: int, index: int) -> BucketRef | None:
        """Gather a bucket of the whole weights: a collective under ZeRO-3, so all ranks are asked for all, in order.
        Rank 0 sends it."""
        self.version = version
        with whole(self._buckets[index], self._config.learner.zero_stage, self._adapters) as tensors:
            if self.rank:
                return None
            started = time.perf_counter()
            bucket_ref = self._outbox.send(pack_bucket(version, index, tensors, self._outbox.room(index)))
            return replace(bucket_ref, packed_s=time.perf_counter() - started)

    @traced
    def probe(self, tokens: Tokens) -> LogpT:
        """The model's log-probability of each token after the first. A collective under ZeRO-3."""
        padded_batch = PaddedBatch([[(tokens[:1], tokens[1:])]], self._device)

        def logp_of(hidden_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None) -> Tensor:
            logits_NV = torch.nn.functional.linear(hidden_NH, weight_VH, bias_V).float()
            return logits_NV.log_softmax(-1).gather(-1, padded_batch.response_N[:, None])[:, 0]

        with torch.no_grad():
            return self._engine(padded_batch, logp_of).cpu().numpy()

    @traced
    def save(self, folder: Path) -> None:
        """Weights, optimizer and step, for any number of ranks and any ZeRO stage. A collective."""
        checkpoint.save(self._engine, self._trained, folder, self.version)

    def load(self, folder: Path) -> None:
        """Take up what `save` wrote, before the first step. A collective."""
        self.version = checkpoint.load(self._engine, self._trained, folder)

    def export(self, folder: Path) -> None:
        """Rank 0 writes a Hugging Face model folder: weights, configuration and tokenizer; adapters also by themselves,
        in a folder in it."""
        state = self._kept(self._buckets, self._adapters)
        own = self._kept([self._trained], {}) if self._adapters else {}
        if self.rank == 0:
            from transformers import AutoTokenizer

            self._engine.module.model.save_pretrained(folder, state_dict=state)
            AutoTokenizer.from_pretrained(self._folder).save_pretrained(folder)
            if own:
                save_adapters(folder / "adapter", own, self._config.model)
            for path in folder.rglob("*.*"):  # safetensors writes for the owner alone
                path.chmod(0o666 & ~_umask())

    def _kept(self, buckets: Sequence[Named], adapters: Adapters) -> dict[str, Tensor]:
        """Copies of whole tensors, on rank 0."""
        state: dict[str, Tensor] = {}
        for bucket in buckets:
            with whole(bucket, self._config.learner.zero_stage, adapters) as tensors:
                if self.rank == 0:
                    state |= {name: tensor.detach().cpu().clone() for name, tensor in tensors}
        return state


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
