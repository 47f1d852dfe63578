"""LearnerWorker: one DeepSpeed ZeRO rank, which turns its shard of a batch into a loss, gradients and a step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import ray
import torch
from torch import Tensor

from demopsd_dist.config import Config
from demopsd_dist.data.records import BatchSize, DigestRequest, ScoredExample, Tokens
from demopsd_dist.methods import at_step, check_engine_support, objective_of, resolve_method
from demopsd_dist.objective import OutputHead, TokenSlice, fused_loss, reduced
from demopsd_dist.training.schedule import learning_rate
from demopsd_dist.util.errors import NonFiniteLossError
from workers.cluster.ranks import MeetingPoint, Rank
from workers.cluster.spans import traced
from workers.cpu_environment import cpu_environment
from workers.forward import (
    ResponseModel,
    load_causal_lm,
    release_gpu_cache,
    vocabulary_rows,
)
from workers.learner.activation_checkpointing import checkpoint_activations
from workers.learner.canary_forward import canary_logp, exported_canary_logp
from workers.learner.lora import add_adapters, base_tensors
from workers.learner.loss_inputs import LossInputs
from workers.learner.model_trial import try_model
from workers.learner.non_finite import NonFiniteSearch, first_of_all_ranks
from workers.learner.observers.observer import Observer
from workers.learner.observers.rank_report import RankReport
from workers.learner.observers.step_digests import StepDigests
from workers.learner.observers.step_metrics import StepMetrics
from workers.learner.observers.token_recorder import TokenRecorder
from workers.learner.saving import checkpoint
from workers.learner.saving.export import export_model
from workers.learner.saving.moments import refuse_large_tensors
from workers.learner.step_objective import fit_to_step, gate_metrics, with_trajectory_alpha
from workers.learner.student_forwards import StudentForwards
from workers.learner.zero import create_optimizer, deepspeed_config, full_tensors, join_process_group
from workers.matrix_peak import matrix_peak_flops
from workers.weights.buckets import BucketRef, layout, pack_bucket
from workers.weights.canary import LogpT
from workers.weights.checkpoint_format import checkpoint_views
from workers.weights.collective import SupersededError
from workers.weights.sender import Sender
from workers.weights.tensor_groups import full_shape, group_by_bytes, persistent_buffers
from workers.weights.transports import PublishPlan


def environment(config: Config) -> dict[str, str]:
    """Environment variables of a learner's process."""
    if config.learner.gpus_per_worker:
        return {}
    return cpu_environment(config.learner.threads) | {"DS_ACCELERATOR": "cpu"}


class LearnerWorker(StudentForwards, Sender, Rank):
    """Actor of one rank. State: a shard of the student's weights and optimizer, and the number of training steps
    done."""

    def __init__(self, rank: int, config: Config, model_folder: Path) -> None:
        super().__init__()
        self.rank = rank
        self._config = config
        self._folder = model_folder
        self._method = resolve_method(config)
        self._objective = self._step_objective = objective_of(config)
        self.version = 0

    def prepare(self) -> None:
        """Load the model, and add adapters. Rank 0 tries it first, so that a model that cannot be trained is refused
        before any rollout engine starts.

        Raises:
            ConfigError: the model or `model.lora_targets` cannot be trained, or the engine's support would be the
                whole vocabulary.
        """
        settings, model = self._config.learner, self._config.model
        self._device = torch.device("cuda" if settings.gpus_per_worker else "cpu")
        import_module("deepspeed")  # takes seconds
        if self._device.type == "cpu":
            torch.set_num_threads(settings.threads)
        torch.manual_seed(self._config.seed)
        self._causal = load_causal_lm(self._folder, model.precision)
        check_engine_support(self._method, vocabulary_rows(self._causal))
        if self.rank == 0:
            if settings.zero_stage < 3:  # otherwise the whole model may be too large for the device
                self._causal.to(self._device)
            try_model(self._causal, self._folder, model.tree_tokens)
        tensors = [*self._causal.named_parameters(), *persistent_buffers(self._causal)]
        self._checkpoint_views = checkpoint_views(self._causal, tensors)
        self._adapters = add_adapters(self._causal, model)

    def start(self, meeting_point: MeetingPoint) -> None:
        """Join the process group and hand the model to DeepSpeed."""
        settings, causal = self._config.learner, self._causal
        join_process_group(settings, self.rank, meeting_point)
        import deepspeed

        model = ResponseModel(causal)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = create_optimizer(trained, settings, self._device)
        if settings.zero_stage == 0:
            optimizer.register_step_pre_hook(self._clip)
        self._engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=deepspeed_config(self._config), dist_init_required=False
        )
        refuse_large_tensors(self._engine)
        self._engine.eval()  # no dropout: rollouts, support and loss must see the same student
        if settings.activation_checkpointing:
            checkpoint_activations(causal)
        named = list(causal.named_parameters())  # a tied tensor is listed once
        self._trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
        self._constants = persistent_buffers(causal)
        tensors = base_tensors([*named, *self._constants])
        self._buckets = list(group_by_bytes(tensors, self._config.weights.bucket_mib << 20))

    @traced
    def step(
        self,
        micro_batches: Sequence[Sequence[Sequence[ScoredExample]]],
        token_count: int,
        size: BatchSize,
        learning_rate_factor: float = 1.0,
        record_ids: frozenset[str] = frozenset(),
        digest_request: DigestRequest | None = None,
    ) -> RankReport:
        """Run loss and backward for each micro-batch, then one optimizer step on all ranks together.

        Args:
            token_count: response tokens of all ranks' micro-batches.
            size: tokens and responses that the loss is a mean of.
            record_ids: rollouts whose single tokens are recorded in the report.
            digest_request: digests to compute of all tensors; None computes none.

        Raises:
            NonFiniteLossError: on every rank, before the step, if any rank's loss or the gradient is not finite. It
                names the first tensor that is not, see `non_finite.py`.
        """
        self.version += 1
        if token_count == 0:  # the same on all ranks; an update would only decay weights and apply old momentum
            return RankReport(stepped=False)
        self._step_objective = fit_to_step(
            at_step(self._objective, self._config, self.version),
            (item for rows in micro_batches for row in rows for item in row),
            self._device,
        )
        metrics = StepMetrics(token_count)
        samples = self._config.samples
        token_recorder = TokenRecorder(
            record_ids, self._step_objective, candidate_count=samples.candidates, max_tokens=samples.tokens
        )
        digests = None if digest_request is None else StepDigests(digest_request, self.rank)
        observers: list[Observer] = [metrics, token_recorder, *([] if digests is None else [digests])]
        self._accumulate_gradients(micro_batches, token_count, size, observers)
        report = metrics.report()
        report.token_records = token_recorder.token_records()
        if not self._finite_on_all_ranks(report.sums.get("learner/loss", 0.0)):
            raise self._refusal("loss", micro_batches, token_count, size)
        report.maxima |= gate_metrics(self._step_objective, self._config)
        report.maxima["learner/learning_rate"] = self._set_learning_rate(learning_rate_factor)
        try:
            report.maxima["learner/grad_norm"] = self._update_weights(digests)
        except FloatingPointError:
            raise self._refusal("gradient", micro_batches, token_count, size) from None
        if digests is not None:
            with self.spans.span("digests"):
                report.sums |= digests.sums
                report.digests = digests.all_digests(self._engine, self._trained)
        return report

    def peak_flops(self) -> float:
        """Measure the peak rate of matrix products in the student's precision, operations/s."""
        return matrix_peak_flops(self._device, self._config.model.precision)

    def _accumulate_gradients(
        self,
        micro_batches: Sequence[Sequence[Sequence[ScoredExample]]],
        token_count: int,
        size: BatchSize,
        observers: Sequence[Observer],
    ) -> None:
        """Run loss and backward for each micro-batch."""
        world_size = self._config.learner.num_workers
        for rows in micro_batches:
            with self.spans.span("forward"):
                loss = self._loss(rows, token_count, size, observers)
            with self.spans.span("backward"):
                self._engine.backward(loss * world_size)  # DeepSpeed divides by it again
            self._forward_counts["student/gradient"] += sum(map(len, rows))

    def _loss(
        self,
        rows: Sequence[Sequence[ScoredExample]],
        token_count: int,
        size: BatchSize,
        observers: Sequence[Observer],
    ) -> Tensor:
        """Compute the micro-batch's share of the global mean loss: inputs, then the loss, then the observers."""
        batch = self._padded_batch([[item.example for item in row] for row in rows])
        if not any(rows):
            return self._engine(batch, lambda head, hidden_NH: hidden_NH.sum() * 0.0 + head.weight_VH.sum() * 0.0)
        inputs = self._loss_inputs(rows, size)

        def loss_of(part: TokenSlice) -> Tensor:
            views = inputs.views(part)
            result = reduced(
                self._step_objective, views, weight_BT=inputs.weight_N[part.tokens], token_count=token_count
            )
            with torch.no_grad():
                for observer in observers:
                    observer.add_slice(inputs, part, views, result)
            return result.loss

        def loss(head: OutputHead, hidden_NH: Tensor) -> Tensor:
            temperature = self._config.rollout.temperature
            return fused_loss(hidden_NH, head, inputs.support_NK, loss_of, temperature=temperature)

        return self._engine(batch, loss)

    def _loss_inputs(self, rows: Sequence[Sequence[ScoredExample]], size: BatchSize) -> LossInputs:
        """Collect the tensors that the loss of a micro-batch reads."""
        inputs = LossInputs.from_examples(
            [item for row in rows for item in row],
            aggregation=self._method.aggregation.value,
            size=size,
            max_tokens=self._config.rollout.max_response_tokens,
            version=self.version - 1,
            device=self._device,
        )
        return with_trajectory_alpha(inputs, self._step_objective)

    def _set_learning_rate(self, factor: float) -> float:
        """Set the learning rate of this step, and return it."""
        rate = factor * learning_rate(self._config.learner, self.version, self._config.steps)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _update_weights(self, digests: StepDigests | None) -> float:
        """Make the optimizer step, and return the norm of the gradient before clipping.

        Raises:
            FloatingPointError: on every rank, the norm is not finite; the weights are as they were.
        """
        with self.spans.span("update"), nullcontext() if digests is None else digests.capture_gradient(self._engine):
            self._engine.step()
        release_gpu_cache(self._config, self._device)
        norm = self._grad_norm if self._config.learner.zero_stage == 0 else self._engine.get_global_grad_norm()
        if not np.isfinite(float(norm)):  # the same on all ranks; at stages 1 to 3 DeepSpeed has skipped the step
            raise FloatingPointError
        return float(norm)

    def _clip(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """Clip the gradients at ZeRO-0, where they are full and reduced when the optimizer is about to step."""
        gradients = [p for group in optimizer.param_groups for p in group["params"]]
        self._grad_norm = torch.nn.utils.clip_grad_norm_(gradients, self._config.learner.max_grad_norm)
        if not np.isfinite(float(self._grad_norm)):
            raise FloatingPointError

    def _finite_on_all_ranks(self, loss: float) -> bool:
        """Whether every rank's loss is finite. A collective."""
        flag = torch.tensor(float(np.isfinite(loss)), device=self._device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MIN)
        return bool(flag)

    def _refusal(
        self,
        quantity: str,
        micro_batches: Sequence[Sequence[Sequence[ScoredExample]]],
        token_count: int,
        size: BatchSize,
    ) -> NonFiniteLossError:
        """Error for a step that is refused. The step is computed once more to find the cause. A collective."""
        search = NonFiniteSearch()
        search.add_parameters([*self._engine.module.model.named_parameters(), *self._constants])
        with search.gradients(self._trained):
            self._accumulate_gradients(micro_batches, token_count, size, [search])
        cause = first_of_all_ranks(search.found, self._config.learner.num_workers)
        return NonFiniteLossError(
            f"the {quantity} of step {self.version} is not finite, and the step was refused on every rank: {cause}"
        )

    def plan(self) -> PublishPlan:
        """Describe the buckets of every publish."""
        shapes = [[(name, full_shape(t), t.dtype) for name, t in bucket] for bucket in self._buckets]
        return PublishPlan(
            node=ray.get_runtime_context().get_node_id(),
            buckets=tuple(layout(bucket) for bucket in shapes),
            vocabulary_size=vocabulary_rows(self._engine.module.model),
            checkpoint_views=self._checkpoint_views,
        )

    @traced
    def gather(self, version: int, index: int) -> BucketRef | None:
        """Gather a bucket of full weights, and send it from rank 0. A collective under ZeRO-3: all ranks must be called
        for all buckets, in order."""
        self.version = version
        return self._send(version, index)

    @traced
    def gather_again(self, version: int, sent_version: int, index: int) -> BucketRef | None:
        """Gather and send a bucket of the last publish once more. A collective under ZeRO-3, as `gather`.

        Args:
            version: of the weights by now; above `sent_version` after steps without an optimizer update.

        Raises:
            SupersededError: on every rank, the learners have stepped since.
        """
        if self.version != version:
            raise SupersededError(f"the learners have weights of version {self.version}, not {version} any more.")
        return self._send(sent_version, index)

    def _send(self, version: int, index: int) -> BucketRef | None:
        with full_tensors(self._buckets[index], self._config.learner.zero_stage, self._adapters) as tensors:
            if self.rank:
                return None
            buffer = self._outbox.buffer(index)
            started = time.perf_counter()
            bucket_ref = self._outbox.send(pack_bucket(version, index, tensors, buffer))
            return replace(bucket_ref, packed_s=time.perf_counter() - started)

    @traced
    def canary_logp(self, tokens: Tokens) -> LogpT:
        """Compute the log-probability of each token after the first. A collective under ZeRO-3."""
        return canary_logp(self._engine, tokens, self._device)

    @traced
    def exported_canary_logp(self, folder: Path, tokens: Tokens) -> LogpT:
        """The same by an exported model folder. Not a collective.

        Raises:
            ConfigError: the folder lacks a tensor, or has one too many.
        """
        return exported_canary_logp(folder, self._config.model.precision, tokens)

    @traced
    def save(self, folder: Path) -> None:
        """Save weights, optimizer and step, for any number of ranks and any ZeRO stage. A collective."""
        checkpoint.save(self._engine, self._trained, folder, self.version, self._constants)

    def load(self, folder: Path) -> None:
        """Load a checkpoint, before the first step. A collective."""
        self.version = checkpoint.load(self._engine, self._trained, folder, self._constants)

    def export(self, folder: Path) -> None:
        """Write a Hugging Face model folder on rank 0, with adapters also by themselves. A collective."""
        export_model(
            self._engine.module.model,
            self._buckets,
            self._trained,
            self._adapters,
            self._config,
            model_folder=self._folder,
            folder=folder,
            rank=self.rank,
        )
