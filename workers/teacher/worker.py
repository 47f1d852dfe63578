"""TeacherWorker: copies of the student that score each response, with and without the privileged context."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import ray
import torch
from safetensors import safe_open
from torch import Tensor

from demopsd_dist.config import Config, Precision, WeightSource, teacher_precision
from demopsd_dist.data.packing import RowLayout, padded_batches
from demopsd_dist.data.records import Logp, Tokens, TrainingExample, forward_input
from demopsd_dist.methods import Forwards, resolve_method, teacher_weights
from demopsd_dist.models.whole_model import model_without_weights
from demopsd_dist.objective import coarsen, mixed_logits, row_slices
from demopsd_dist.util.errors import CheckpointError
from workers.cluster.ranks import MeetingPoint, Rank, meet_on
from workers.cluster.spans import traced
from workers.cpu_environment import cpu_environment
from workers.forward import (
    HEAD_CHUNK_TOKENS,
    PaddedBatch,
    ResponseModel,
    load_causal_lm,
    release_gpu_cache,
    sampled_first,
    support_tensor,
)
from workers.matrix_peak import matrix_peak_flops
from workers.teacher import fsdp
from workers.weights.buckets import Ack, unpack_bucket
from workers.weights.receiver import Receiver, refuse_other_names
from workers.weights.tensor_files import refuse_non_finite, write_tensors
from workers.weights.tensor_groups import FILE_BYTES, group_by_bytes

EMA_FILES = "ema*.safetensors"


def environment(config: Config) -> dict[str, str]:
    """Environment variables of a teacher worker's process."""
    if config.teacher.gpus_per_worker:
        return {}
    # With shards, malloc returns a gathered layer's memory to the system as soon as it is freed.
    malloc = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)} if config.teacher.shards > 1 else {}
    return cpu_environment(config.teacher.threads) | malloc


class TeacherWorker(Receiver, Rank):
    """Actor of one worker. State: a copy of the weights of each source (ema, live, frozen) that the method needs, in
    the precision of the forwards; for an EMA in bfloat16 also its average in float32, as an average in bfloat16 would
    lose small updates. Only some rows of each tensor if several workers share a copy (`teacher.shards`)."""

    _file_bytes = FILE_BYTES  # approximate size of an EMA file

    def __init__(self, rank: int, config: Config, model_folder: Path) -> None:
        super().__init__(f"teacher {rank}")
        self.rank = rank
        self._config = config
        self._folder = model_folder
        self._method = resolve_method(config)
        self._forward_counts: Counter[str] = Counter()
        self.version = -1  # of the student's weights last received
        self._averaged: tuple[int, set[str]] = (
            -1,
            set(),
        )  # version that is being received, and tensors averaged so far
        # per publish: new = old + rate (student - old)
        self._rates = {WeightSource.ema: config.teacher.ema_rate, WeightSource.live: 1.0, WeightSource.frozen: 0.0}

    def prepare(self) -> None:
        """Import the model's class, which takes longer than loading a small model."""
        model_without_weights(self._folder)

    def start(self, meeting_point: MeetingPoint | None = None) -> None:
        """Load the models. Separate from `__init__`, so that a failure comes back as this worker's error."""
        settings = self._config.teacher
        self._device = torch.device("cuda" if settings.gpus_per_worker else "cpu")
        if self._device.type == "cpu":
            torch.set_num_threads(settings.threads)
        elif self._config.model.precision is Precision.bfloat16:
            # of a float32 teacher: TF32 is finer than the student's own rounding, and far faster
            torch.set_float32_matmul_precision("high")
        self._mesh = None
        if settings.shards > 1:
            assert meeting_point is not None
            meet_on(ray.util.get_node_ip_address())
            self._mesh = fsdp.join_mesh(self._device, self.rank, settings.num_workers, settings.shards, meeting_point)
        sources = teacher_weights(resolve_method(self._config), self._config)
        precision = teacher_precision(self._config)
        self._models = {source: self._load(precision) for source in sorted(sources, key=lambda source: source.value)}
        self._averages: dict[WeightSource, ResponseModel] = {}  # in float32, of models that compute in another format
        if WeightSource.ema in sources and precision is not Precision.float32:
            self._averages[WeightSource.ema] = self._load(Precision.float32)
        self._tensor_names = frozenset(fsdp.tensors_of(next(iter(self._models.values()))))

    def _load(self, precision: Precision) -> ResponseModel:
        """Load one model, or this worker's shard of it."""
        if self._mesh is not None:
            return fsdp.load_sharded_model(self._folder, self._mesh, precision)
        model = load_causal_lm(self._folder, precision).eval().requires_grad_(False)
        return ResponseModel(model).to(self._device)

    @property
    def _exact_ema(self) -> ResponseModel | None:
        """Model with the EMA in float32, which checkpoints hold; None for a method without an EMA."""
        return self._averages.get(WeightSource.ema, self._models.get(WeightSource.ema))

    @traced
    def receive(self, version: int, bucket_refs: Sequence[ray.ObjectRef]) -> Ack:
        """Load a publish. Version 0 replaces all weights.

        A later version moves every copy towards the student by the rate of its source: old + rate (student - old); the
        EMA only once per version, also if a first attempt to receive it broke off. Persistent buffers never change in
        training, so that their average is theirs too. A working copy is refreshed from its average tensor by tensor, as
        the buckets arrive.
        """
        if self._averaged[0] != version:
            self._averaged = (version, set())
        averaged = self._averaged[1]
        tensors_by_source = {source: fsdp.tensors_of(model) for source, model in self._models.items()}
        averages_by_source = {source: fsdp.tensors_of(model) for source, model in self._averages.items()}
        any_copy = next(iter(tensors_by_source.values()))  # all models are sharded alike
        for bucket in self.arriving_buckets(version, bucket_refs):
            for name, tensor in unpack_bucket(bucket):
                is_constant = not isinstance(any_copy[name], torch.nn.Parameter)
                rows = tensor[fsdp.local_row_range(any_copy[name])]
                student = rows if is_constant else rows.to(self._device, torch.float32)
                for source, tensors in tensors_by_source.items():
                    averages = averages_by_source.get(source, tensors)
                    rate = self._rate(source, version, name in averaged)
                    if rate and is_constant:
                        for each in (averages, tensors):
                            each[name].copy_(student)
                    elif rate:
                        move(fsdp.local_rows(averages[name]), student, rate)
                        if averages is not tensors:
                            fsdp.local_rows(tensors[name]).copy_(fsdp.local_rows(averages[name]))
                averaged.add(name)
        self.version, self._averaged = version, (-1, set())
        return self.ack(version)

    def mark_version(self, version: int) -> None:
        """Set the version of unchanged weights, after a step without an optimizer update."""
        self.version = version

    def _rate(self, source: WeightSource, version: int, averaged: bool) -> float:
        """Update rate of a tensor of a copy. 0 for the EMA if it already includes this version, which a resumed run
        publishes again, or if this tensor does."""
        if version == 0:
            return 1.0
        has_it = averaged or version <= self.version
        return 0.0 if source is WeightSource.ema and has_it else self._rates[source]

    @traced
    def save(self, folder: Path) -> None:
        """Save the EMA: initial weights are in the model folder, the student's own come with the next publish. All
        copies are equal, so the workers of the first copy write, each some of the files.

        Raises:
            RunFolderError: a file cannot be written.
        """
        workers = self._config.teacher.shards
        if self.rank >= workers or (model := self._exact_ema) is None:
            return
        for number, group in enumerate(group_by_bytes(list(fsdp.tensors_of(model).items()), self._file_bytes)):
            is_writer = number % workers == self.rank
            tensors = {}
            for name, parameter in group:
                tensor = fsdp.full_tensor(parameter)
                if is_writer:
                    tensors[name] = tensor.cpu().contiguous()
            if is_writer:
                write_tensors(tensors, folder / f"ema-{number:05d}.safetensors", {"version": str(self.version)})

    def load(self, folder: Path) -> None:
        """Load the EMA of a checkpoint.

        Raises:
            CheckpointError: there is no EMA although the method needs one, or it is of a model with other shapes,
                or has values that are not finite.
            WeightSyncError: the EMA is of a model with other tensors.
        """
        if (model := self._exact_ema) is None:
            return
        with ExitStack() as stack:
            files = [stack.enter_context(safe_open(path, framework="pt")) for path in sorted(folder.glob(EMA_FILES))]
            if not files:
                raise CheckpointError(f"{folder} has no {EMA_FILES}: it was saved by a method without an EMA teacher.")
            file_of = {name: file for file in files for name in list(file.keys())}
            own_tensors = fsdp.tensors_of(model)
            working = fsdp.tensors_of(self._models[WeightSource.ema])
            refuse_other_names(self._name, set(own_tensors), set(file_of), str(folder))
            for name, parameter in own_tensors.items():
                tensor = file_of[name].get_tensor(name)
                if tensor.shape != parameter.shape:
                    raise CheckpointError(
                        f"{folder} is of another model than model.path: {name} is {list(tensor.shape)} there, "
                        f"{list(parameter.shape)} here."
                    )
                if isinstance(parameter, torch.nn.Parameter):
                    refuse_non_finite(tensor, name, folder)
                fsdp.local_rows(parameter).copy_(tensor[fsdp.local_row_range(parameter)])
                if model is not self._models[WeightSource.ema]:
                    fsdp.local_rows(working[name]).copy_(fsdp.local_rows(parameter))
            self.version = int(files[0].metadata()["version"])

    @traced
    def score(
        self, examples: Sequence[TrainingExample], supports_TK: Sequence[Tokens] | None, forwards: Forwards
    ) -> list[tuple[Tokens | None, Logp | None, Logp | None]]:
        """Score each response on its support.

        Args:
            supports_TK: support ids of each example; None for the reference's own top k.
            forwards: weights of the reference and of the teacher forward; None skips one.

        Returns:
            For each example its support if `supports_TK` was None, then log-probabilities (T, A) without and with the
            privileged view; None for a forward that was not requested.
        """
        has_supports = supports_TK is not None
        reference: list[Logp] | list[None] = [None] * len(examples)
        teacher: list[Logp | None] = [None] * len(examples)
        if forwards.reference is not None:
            unprivileged = [example.prompt.tokens for example in examples]
            with self.spans.span("reference"):
                supports_TK, reference = self._logp(
                    forwards.reference, "reference", unprivileged, examples, supports_TK
                )
        assert supports_TK is not None
        if forwards.teacher is not None:
            # of a mixed loss, some responses have nothing to show to the teacher
            shown = [i for i, example in enumerate(examples) if len(example.privileged_tokens)]
            privileged = [examples[i].privileged_tokens for i in shown]
            with self.spans.span("teacher"):
                _, found = self._logp(
                    forwards.teacher,
                    "teacher",
                    privileged,
                    [examples[i] for i in shown],
                    [supports_TK[i] for i in shown],
                )
            by_index = dict(zip(shown, found, strict=True))
            teacher = [by_index.get(i) for i in range(len(examples))]
        release_gpu_cache(self._config, self._device)
        ids: list[Tokens] | list[None] = [None] * len(examples) if has_supports else list(supports_TK)
        return list(zip(ids, reference, teacher, strict=True))

    def forward_counts(self) -> Counter[str]:
        """Count the responses of each forward since the start: `reference/ema`, `teacher/ema` and so on."""
        return self._forward_counts

    def peak_flops(self) -> float:
        """Measure the peak rate of matrix products in the teacher's precision, operations/s."""
        return matrix_peak_flops(self._device, teacher_precision(self._config))

    @torch.inference_mode()
    def _logp(
        self,
        source: WeightSource,
        view: str,
        prompts: Sequence[Tokens],
        examples: Sequence[TrainingExample],
        supports_TK: Sequence[Tokens] | None,
    ) -> tuple[list[Tokens], list[Logp]]:
        """Compute the support of each example, unless it is given, and the log-probabilities on it."""
        responses = [example.response_T for example in examples]
        ids: dict[int, Tokens] = {} if supports_TK is None else dict(enumerate(supports_TK))
        logp: dict[int, Logp] = {}
        layout: RowLayout[int] = RowLayout(
            lambda i: examples[i].prompt.id,
            lambda i: forward_input(prompts[i], responses[i]),
            self._config.model.tree_tokens,
        )
        batches = padded_batches(layout.rows(range(len(examples))), self._config.teacher.batch_tokens)
        dummy_forwards = self._dummy_forwards(len(batches))
        for rows in batches:
            indices = [i for row in rows for i in row.items]
            padded_batch = PaddedBatch([[(prompts[i], responses[i]) for i in row.items] for row in rows], self._device)
            logits_of = self._logits(source, view, padded_batch)
            slices = list(row_slices(sum(padded_batch.lengths), HEAD_CHUNK_TOKENS))
            if supports_TK is None:
                top_k_NK = torch.cat([self._top_k(logits_of(tokens)) for tokens in slices])
                ids |= zip(indices, padded_batch.split(top_k_NK), strict=True)
                if self._method.mix is not None:
                    ids |= {i: sampled_first(ids[i], responses[i]) for i in indices}
            support_NK = support_tensor([ids[i] for i in indices], self._device)
            parts = [self._atoms(logits_of(tokens), support_NK, tokens) for tokens in slices]
            logp_NA = torch.cat(parts).to(getattr(torch, self._config.teacher.payload.value))
            logp |= zip(indices, padded_batch.split(logp_NA), strict=True)
        for model_source in _models_of(source) * dummy_forwards:
            fsdp.dummy_forward(self._models[model_source], self._device)
        return [ids[i] for i in range(len(examples))], [logp[i] for i in range(len(examples))]

    def _dummy_forwards(self, forwards: int) -> int:
        """Number of dummy forwards after the real ones, so that all workers that share a copy run the same number."""
        return 0 if self._mesh is None else fsdp.max_over_ranks(self._mesh, forwards) - forwards

    def _top_k(self, logits_NV: Tensor) -> Tensor:
        """Ids of the most likely tokens, (N, K)."""
        top_k = min(self._method.top_k or 0, logits_NV.shape[-1] - 1)
        return logits_NV.topk(top_k).indices.int()

    def _atoms(self, logits_NV: Tensor, support_NK: Tensor | None, tokens: slice) -> Tensor:
        """Log-probabilities of the atoms (support tokens, then the tail bucket; or the whole vocabulary) at a slice of
        tokens."""
        support = None if support_NK is None else support_NK[tokens]
        return coarsen(logits_NV, support, self._config.rollout.temperature)

    def _logits(self, source: WeightSource, view: str, padded_batch: PaddedBatch) -> Callable[[slice], Tensor]:
        """Run a forward, and return a function from a slice of response tokens to their logits.

        Logits of a trust region are mixed over the whole vocabulary, before they are reduced to atoms: frozen + rate
        (live - frozen), a geometric mixture of the two distributions (arXiv 2601.20802, equation 6).
        """
        if source is WeightSource.trust_region:
            frozen, live = (self._logits(model, view, padded_batch) for model in _models_of(source))
            rate = self._config.teacher.trust_region_rate
            return lambda tokens: mixed_logits(frozen(tokens), live(tokens), rate)
        self._forward_counts[f"{view}/{source.value}"] += len(padded_batch.lengths)
        head, hidden_NH = self._models[source](padded_batch, lambda *head_and_states: head_and_states)
        return lambda tokens: head.logits(hidden_NH[tokens])


def move(tensor: Tensor, towards: Tensor, rate: float) -> None:
    """Move a tensor towards a float32 one in place, rounding once. A rate of 1.0 copies."""
    if tensor.dtype is torch.float32:
        tensor.lerp_(towards, rate)
    else:
        tensor.copy_(tensor.float().lerp_(towards, rate))


def _models_of(source: WeightSource) -> tuple[WeightSource, ...]:
    """Sources whose models a forward for this source runs: a trust region mixes the logits of two."""
    return (WeightSource.frozen, WeightSource.live) if source is WeightSource.trust_region else (source,)
