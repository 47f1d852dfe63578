"""TeacherWorker: copies of the student that score each response, with and without the privileged context."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import ray
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import linear

from demopsd_dist.config import Config, Precision, WeightSource
from demopsd_dist.data.packing import RowLayout, padded_batches
from demopsd_dist.data.records import Logp, Tokens, TrainingExample, input_of
from demopsd_dist.methods import Forwards, resolve_method, teacher_weights
from demopsd_dist.objective import coarsen
from demopsd_dist.util.errors import CheckpointError
from workers.cluster.ranks import MeetingPoint, Rank, meet_on
from workers.cluster.spans import traced
from workers.forward import HEAD_CHUNK_TOKENS, PaddedBatch, ResponseModel, give_back, load_causal_lm, support_tensor
from workers.learner.checkpoint import FILE_BYTES
from workers.learner.zero import buckets_of
from workers.teacher import fsdp
from workers.weights.buckets import Ack, unpack_bucket
from workers.weights.transports import Receiver, refuse_other_names

EMA_FILES = "ema*.safetensors"


def environment(config: Config) -> dict[str, str]:
    if config.teacher.gpus_per_worker:
        return {}
    gathered = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)} if config.teacher.shards > 1 else {}  # given back after a layer
    return {"OMP_NUM_THREADS": str(config.teacher.threads), "CUDA_VISIBLE_DEVICES": "", **gathered}


class TeacherWorker(Receiver, Rank):
    """State: the weights that the method asks for, in float32 (a bfloat16 EMA would lose small updates); of each tensor
    some rows alone where several workers share a copy (`teacher.shards`)."""

    _file_bytes = FILE_BYTES  # of the EMA's files, about

    def __init__(self, rank: int, config: Config, model_folder: Path) -> None:
        super().__init__(f"teacher {rank}")
        self.rank = rank
        self._config = config
        self._folder = model_folder
        self._ran: Counter[str] = Counter()
        self.version = -1  # of the student's weights last taken in
        self._rates = {WeightSource.ema: config.teacher.ema_rate, WeightSource.live: 1.0, WeightSource.frozen: 0.0}

    def start(self, meeting_point: MeetingPoint | None = None) -> None:
        """Load the models. A call of its own, so that a failure comes back as this worker's error."""
        settings = self._config.teacher
        self._device = torch.device("cuda" if settings.gpus_per_worker else "cpu")
        if self._device.type == "cpu":
            torch.set_num_threads(settings.threads)
        elif self._config.model.precision is Precision.bfloat16:
            torch.set_float32_matmul_precision("high")  # TF32: finer than the student's own rounding, and far faster
        self._mesh = None
        if settings.shards > 1:
            assert meeting_point is not None
            meet_on(ray.util.get_node_ip_address())
            self._mesh = fsdp.join(self._device, self.rank, settings.num_workers, settings.shards, meeting_point)
        self._models = {
            weights: self._load() for weights in sorted(teacher_weights(self._config), key=lambda w: w.value)
        }
        self._names = frozenset(fsdp.parameters_of(next(iter(self._models.values()))))

    def _load(self) -> ResponseModel:
        if self._mesh is not None:
            return fsdp.shared_model(self._folder, self._mesh)
        model = load_causal_lm(self._folder, Precision.float32).eval().requires_grad_(False)
        return ResponseModel(model).to(self._device)

    @traced
    def receive(self, version: int, bucket_refs: Sequence[ray.ObjectRef]) -> Ack:
        """Version 0 replaces all weights; any later one moves each, once: old + rate (student - old)."""
        held = {weights: fsdp.parameters_of(model) for weights, model in self._models.items()}
        like = next(iter(held.values()))
        for bucket in self.arriving(version, bucket_refs):
            for name, tensor in unpack_bucket(bucket):
                student = tensor[fsdp.rows_held(like[name])].to(self._device, torch.float32)
                for weights, parameters in held.items():
                    rate = self._rate(weights, version)
                    if rate:
                        fsdp.held(parameters[name]).lerp_(student, rate)
        self.version = version
        return self.ack(version)

    def _rate(self, weights: WeightSource, version: int) -> float:
        """How far a publish moves these weights. One that has been taken in is sent again where a run resumes."""
        if version == 0:
            return 1.0
        return 0.0 if weights is WeightSource.ema and version <= self.version else self._rates[weights]

    @traced
    def save(self, folder: Path) -> None:
        """The EMA: the weights of the start are in the model folder, the student's own come with the next publish.
        Copies are alike, so the workers of the first write, and share out the files."""
        workers = self._config.teacher.shards
        if self.rank >= workers or (model := self._models.get(WeightSource.ema)) is None:
            return
        for number, part in enumerate(buckets_of(list(fsdp.parameters_of(model).items()), self._file_bytes)):
            mine = number % workers == self.rank
            kept = {}
            for name, parameter in part:
                tensor = fsdp.whole(parameter)
                if mine:
                    kept[name] = tensor.cpu().contiguous()
            if mine:
                save_file(kept, folder / f"ema-{number:05d}.safetensors", metadata={"version": str(self.version)})

    def load(self, folder: Path) -> None:
        """
        Raises:
            CheckpointError: there is no EMA, and the method asks for one; or it is of another model.
            WeightSyncError: of one with other tensors.
        """
        if (model := self._models.get(WeightSource.ema)) is None:
            return
        with ExitStack() as stack:
            files = [stack.enter_context(safe_open(path, framework="pt")) for path in sorted(folder.glob(EMA_FILES))]
            if not files:
                raise CheckpointError(f"{folder} has no {EMA_FILES}: it was saved by a method without an EMA teacher.")
            found = {name: file for file in files for name in list(file.keys())}
            parameters = fsdp.parameters_of(model)
            refuse_other_names(self._name, set(parameters), set(found), str(folder))
            for name, parameter in parameters.items():
                tensor = found[name].get_tensor(name)
                if tensor.shape != parameter.shape:
                    raise CheckpointError(
                        f"{folder} is of another model than model.path: {name} is {list(tensor.shape)} there, "
                        f"{list(parameter.shape)} here."
                    )
                fsdp.held(parameter).copy_(tensor[fsdp.rows_held(parameter)])
            self.version = int(files[0].metadata()["version"])

    @traced
    def score(
        self, examples: Sequence[TrainingExample], supports_TK: Sequence[Tokens] | None, forwards: Forwards
    ) -> list[tuple[Tokens | None, Logp | None, Logp | None]]:
        """For each example log-probabilities (T, A): without and with the privileged view, None where not asked for.

        Where no support is given, it is the reference's own top k, and comes first in each answer.
        """
        given = supports_TK is not None
        reference: list[Logp] | list[None] = [None] * len(examples)
        teacher: list[Logp] | list[None] = [None] * len(examples)
        if forwards.reference is not None:
            plain = [example.prompt.tokens for example in examples]
            with self.spans.span("reference"):
                supports_TK, reference = self._logp(forwards.reference, "reference", plain, examples, supports_TK)
        assert supports_TK is not None
        if forwards.teacher is not None:
            privileged = [example.privileged_tokens for example in examples]
            with self.spans.span("teacher"):
                _, teacher = self._logp(forwards.teacher, "teacher", privileged, examples, supports_TK)
        give_back(self._config, self._device)
        ids: list[Tokens] | list[None] = [None] * len(examples) if given else list(supports_TK)
        return list(zip(ids, reference, teacher, strict=True))

    def forwards_run(self) -> Counter[str]:
        """Responses that went through each forward since the start: `reference/ema`, `teacher/ema` and so on."""
        return self._ran

    @torch.inference_mode()
    def _logp(
        self,
        weights: WeightSource,
        view: str,
        prompts: Sequence[Tokens],
        examples: Sequence[TrainingExample],
        supports_TK: Sequence[Tokens] | None,
    ) -> tuple[list[Tokens], list[Logp]]:
        """The support of each example, as given or as found here, and the values on it."""
        responses = [example.response_T for example in examples]
        ids: dict[int, Tokens] = {} if supports_TK is None else dict(enumerate(supports_TK))
        found: dict[int, Logp] = {}
        layout: RowLayout[int] = RowLayout(
            lambda i: examples[i].prompt.id,
            lambda i: input_of(prompts[i], responses[i]),
            self._config.model.tree_tokens,
        )
        batches = padded_batches(layout.rows(range(len(examples))), self._config.teacher.batch_tokens)
        missing = self._missing(len(batches))
        for rows in batches:
            batch = [i for row in rows for i in row.items]
            padded_batch = PaddedBatch([[(prompts[i], responses[i]) for i in row.items] for row in rows], self._device)
            logits_of = self._logits(weights, view, padded_batch)
            count = sum(padded_batch.lengths)
            slices = [slice(i, min(i + HEAD_CHUNK_TOKENS, count)) for i in range(0, count, HEAD_CHUNK_TOKENS)]
            if supports_TK is None:
                chosen = torch.cat([self._most_likely(logits_of(tokens)) for tokens in slices])
                ids |= zip(batch, padded_batch.split(chosen), strict=True)
            support_NK = support_tensor([ids[i] for i in batch], self._device)
            parts = [self._atoms(logits_of(tokens), support_NK, tokens) for tokens in slices]
            values = torch.cat(parts).to(getattr(torch, self._config.teacher.payload.value))
            found |= zip(batch, padded_batch.split(values), strict=True)
        for part in _parts(weights) * missing:
            fsdp.dummy_forward(self._models[part], self._device)
        return [ids[i] for i in range(len(examples))], [found[i] for i in range(len(examples))]

    def _missing(self, forwards: int) -> int:
        """So many more are run for nothing, as another of those who share a copy has as many to run."""
        return 0 if self._mesh is None else fsdp.most(self._mesh, forwards) - forwards

    def _most_likely(self, logits_NV: Tensor) -> Tensor:
        top_k = min(resolve_method(self._config).top_k or 0, logits_NV.shape[-1] - 1)
        return logits_NV.topk(top_k).indices.int()

    def _atoms(self, logits_NV: Tensor, support_NK: Tensor | None, tokens: slice) -> Tensor:
        support = None if support_NK is None else support_NK[tokens]
        return coarsen(logits_NV, support, self._config.rollout.temperature)

    def _logits(self, weights: WeightSource, view: str, padded_batch: PaddedBatch) -> Callable[[slice], Tensor]:
        """Logits of some response tokens. Those of a trust region are mixed over the whole vocabulary, then coarsened:
        frozen + rate (live - frozen), a geometric mixture of the two distributions (arXiv 2601.20802, equation 6)."""
        if weights is WeightSource.trust_region:
            frozen, live = (self._logits(part, view, padded_batch) for part in _parts(weights))
            rate = self._config.teacher.trust_region_rate
            return lambda tokens: torch.lerp(frozen(tokens), live(tokens), rate)
        self._ran[f"{view}/{weights.value}"] += len(padded_batch.lengths)
        hidden_NH, weight_VH, bias_V = self._models[weights](padded_batch, lambda *head: head)
        return lambda tokens: linear(hidden_NH[tokens], weight_VH, bias_V)


def _parts(weights: WeightSource) -> tuple[WeightSource, ...]:
    """The models that a forward with these weights runs through."""
    return (WeightSource.frozen, WeightSource.live) if weights is WeightSource.trust_region else (weights,)
