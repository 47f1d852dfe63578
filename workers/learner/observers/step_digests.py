"""What a rank says of a step beside its report, where it is asked to: digests of everything, and its gradient."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from demopsd_dist.data.records import DigestRequest, ScoredExample
from demopsd_dist.objective import Loss, TokenSlice, TokenViews
from demopsd_dist.run_record.digests import Digests, digest_of, hasher_of, merged
from workers.learner.checkpoint import MOMENTS, Named, inner, optimizer_steps, whole_state

PIECE = 1 << 24  # elements that are multiplied at once, in float64
DISTRIBUTIONS = {"demopsd/alpha": "alpha", "demopsd/disagreement_nats": "disagreement"}
DOT, OWN, OTHER = "replay/gradient_dot", "replay/gradient_norm2", "replay/other_gradient_norm2"


class ResponseDigests:
    """Of one micro-batch: a digest of each response's values, from slices that come in order. Nothing is kept."""

    def __init__(self, scored: Sequence[ScoredExample]) -> None:
        self._names = [item.id for item in scored]
        self._lengths = [item.example.response_length_tokens for item in scored]
        self._hashers: dict[str, dict[str, xxhash.xxh3_128]] = defaultdict(dict)

    @torch.no_grad()
    def see(self, part: TokenSlice, views: TokenViews, loss: Loss, entropy_N: Tensor) -> None:
        values = {
            "importance_ratio": views.importance_ratio_BT,
            "student_logp": views.student_logp_BTA,
            "token_loss": loss.loss_BT,
            "entropy": entropy_N,
            **{
                DISTRIBUTIONS[name]: distribution
                for name, distribution in loss.distributions.items()
                if name in DISTRIBUTIONS
            },
        }
        for tensor, value in values.items():
            if value is not None:
                self._take(tensor, part.tokens.start, value.detach())

    def _take(self, tensor: str, start: int, value: Tensor) -> None:
        array = value.contiguous().cpu().numpy()
        first = 0
        for name, length in zip(self._names, self._lengths, strict=True):
            begin, end = max(first, start), min(first + length, start + len(array))
            if begin < end:
                hashers = self._hashers[tensor]
                if name not in hashers:
                    hashers[name] = hasher_of(str(array.dtype), array.shape[1:])
                hashers[name].update(array[begin - start : end - start].data)
            first += length

    def digests(self) -> Digests:
        return {
            tensor: {name: hasher.hexdigest() for name, hasher in rows.items()}
            for tensor, rows in self._hashers.items()
        }


class StepDigests:
    """Of one rank and one step."""

    def __init__(self, trace: DigestRequest, rank: int) -> None:
        self._trace, self._rank = trace, rank
        self._witnesses: list[ResponseDigests] = []
        self._gradient: list[Tensor] = []
        self.sums: dict[str, float] = {}

    def response_digests(self, scored: Sequence[ScoredExample]) -> ResponseDigests:
        self._witnesses.append(ResponseDigests(scored))
        return self._witnesses[-1]

    @contextmanager
    def gradient_seen(self, engine: Any) -> Iterator[None]:
        """Inside, the engine makes its step. What the optimizer then finds, reduced, clipped, and this rank's share of
        it under ZeRO, is the gradient."""

        def see(optimizer: torch.optim.Optimizer, *_: object) -> None:
            parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            self._gradient += [p.grad.detach().reshape(-1).to("cpu", copy=True) for p in parameters]

        hook = inner(engine).register_step_pre_hook(see)
        try:
            yield
        finally:
            hook.remove()
        if self._trace.gradient_to is not None:
            named = {f"{i:06d}": part for i, part in enumerate(self._gradient)}
            save_file(named, self._file(self._trace.gradient_to))
        if self._trace.gradient_of is not None:
            self.sums = products(self._gradient, self._file(self._trace.gradient_of))

    def _file(self, folder: Path) -> Path:
        return folder / f"gradient-{self._rank}.safetensors"

    def digests(self, engine: Any, named: Named) -> Digests:
        """A collective: every rank goes through all parameters, in order, and the first one tells of them."""
        gradient = {"gradient": {f"{self._rank}": _digest_of_parts(self._gradient)}}
        found = merged([gradient, *(response_digests.digests() for response_digests in self._witnesses)])
        names = {"value": "updated_weights"} | {key: key for key in MOMENTS}
        with_moments = optimizer_steps(engine) > 0
        for name, parameter in named:
            for key, value in whole_state(engine, parameter, with_moments):
                if self._rank == 0:
                    digest = digest_of(value.detach().float().cpu().contiguous().numpy())
                    found.setdefault(names[key], {})[name] = digest
        return found


def products(gradient: Sequence[Tensor], other: Path) -> dict[str, float]:
    """Of this rank's share of two gradients: their product, and the squares of both norms. Shares add up."""
    sums = dict.fromkeys((DOT, OWN, OTHER), 0.0)
    with safe_open(other, framework="pt") as file:
        for i, whole in enumerate(gradient):
            for one, two in zip(whole.split(PIECE), file.get_tensor(f"{i:06d}").split(PIECE), strict=True):
                one, two = one.double(), two.double()
                for name, left, right in ((DOT, one, two), (OWN, one, one), (OTHER, two, two)):
                    sums[name] += float(left @ right)
    return sums


def _digest_of_parts(parts: Sequence[Tensor]) -> str:
    hasher = hasher_of(str(parts[0].dtype) if parts else "", ())
    for part in parts:
        hasher.update(part.float().numpy().data)
    return hasher.hexdigest()
