"""Digests of all that a rank computes in a step, and its gradient on disk, for a replay to compare with."""

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

from demopsd_dist.data.records import DigestRequest
from demopsd_dist.objective import Loss, TokenSlice, TokenViews
from demopsd_dist.run_record.digests import Digests, digest_of, hasher_of, merge_digests
from workers.learner.loss_inputs import LossInputs
from workers.learner.saving.checkpoint import full_state
from workers.learner.saving.moments import MOMENTS, optimizer_steps, readable_moments, torch_optimizer
from workers.weights.tensor_groups import NamedParameters

PIECE = 1 << 24  # elements of a float64 dot product at a time
DISTRIBUTIONS = {"demopsd/alpha": "alpha", "demopsd/disagreement_nats": "disagreement"}
DOT, OWN, OTHER = "replay/gradient_dot", "replay/gradient_norm2", "replay/other_gradient_norm2"


class ResponseDigests:
    """Observer that updates a digest of each response's values. The values themselves are not stored."""

    def __init__(self) -> None:
        self._hashers: dict[str, dict[str, xxhash.xxh3_128]] = defaultdict(dict)  # tensor -> rollout id

    @torch.no_grad()
    def add_slice(self, inputs: LossInputs, part: TokenSlice, views: TokenViews, result: Loss) -> None:
        """Add the values of one slice."""
        values = {
            "importance_ratio": views.importance_ratio_BT,
            "student_logp": views.student_logp_BTA,
            "token_loss": result.loss_BT,
            "entropy": part.entropy_N,
            **{
                DISTRIBUTIONS[name]: distribution
                for name, distribution in result.distributions.items()
                if name in DISTRIBUTIONS
            },
        }
        for tensor, value in values.items():
            if value is not None:
                self._update(tensor, inputs, part.tokens.start, value.detach())

    def _update(self, tensor: str, inputs: LossInputs, start: int, value: Tensor) -> None:
        """Add the values of some consecutive tokens to the digests of their responses."""
        array = value.contiguous().cpu().numpy()
        hashers = self._hashers[tensor]
        first = 0
        for rollout_id, length in zip(inputs.rollout_ids, inputs.lengths, strict=True):
            begin, end = max(first, start), min(first + length, start + len(array))
            if begin < end:
                if rollout_id not in hashers:
                    hashers[rollout_id] = hasher_of(str(array.dtype), array.shape[1:])
                hashers[rollout_id].update(array[begin - start : end - start].data)
            first += length

    def digests(self) -> Digests:
        """Digests of all slices so far: tensor -> rollout id -> digest."""
        return {
            tensor: {rollout_id: hasher.hexdigest() for rollout_id, hasher in rows.items()}
            for tensor, rows in self._hashers.items()
        }


class StepDigests(ResponseDigests):
    """Observer that also digests one rank's gradient and the state after the step."""

    def __init__(self, request: DigestRequest, rank: int) -> None:
        super().__init__()
        self._request, self._rank = request, rank
        self._gradient: list[Tensor] = []
        self.sums: dict[str, float] = {}  # metrics of the comparison with another gradient

    @contextmanager
    def capture_gradient(self, engine: Any) -> Iterator[None]:
        """Copy the gradient that the optimizer uses while the engine makes its step in this context: reduced, clipped,
        and under ZeRO this rank's share. Then write it, or compare it with one on disk, if that is requested."""

        def copy_gradient(optimizer: torch.optim.Optimizer, *_: object) -> None:
            parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            self._gradient += [p.grad.detach().reshape(-1).to("cpu", copy=True) for p in parameters]

        hook = torch_optimizer(engine).register_step_pre_hook(copy_gradient)
        try:
            yield
        finally:
            hook.remove()
        if self._request.write_gradient_to is not None:
            named = {f"{i:06d}": part for i, part in enumerate(self._gradient)}
            save_file(named, self._gradient_file(self._request.write_gradient_to))
        if self._request.compare_gradient_with is not None:
            self.sums = gradient_products(self._gradient, self._gradient_file(self._request.compare_gradient_with))

    def _gradient_file(self, folder: Path) -> Path:
        """File of this rank's gradient."""
        return folder / f"gradient-{self._rank}.safetensors"

    def all_digests(self, engine: Any, named: NamedParameters) -> Digests:
        """Digests of responses, gradient, weights and optimizer state after the step.

        A collective: every rank goes through all parameters, in order; rank 0 digests them.
        """
        gradient = {"gradient": {f"{self._rank}": _gradient_digest(self._gradient)}}
        result = merge_digests([gradient, self.digests()])
        tensor_names = {"value": "updated_weights"} | {key: key for key in MOMENTS}
        moments = MOMENTS if optimizer_steps(engine) else ()
        with readable_moments(engine):
            for name, parameter in named:
                for key, value in full_state(engine, parameter, moments):
                    if self._rank == 0:
                        digest = digest_of(value.detach().float().cpu().contiguous().numpy())
                        result.setdefault(tensor_names[key], {})[name] = digest
        return result


def gradient_products(gradient: Sequence[Tensor], other: Path) -> dict[str, float]:
    """Dot product of this rank's share of two gradients, and the squares of both norms. Shares add up over ranks."""
    sums = dict.fromkeys((DOT, OWN, OTHER), 0.0)
    with safe_open(other, framework="pt") as file:
        for i, tensor in enumerate(gradient):
            for one, two in zip(tensor.split(PIECE), file.get_tensor(f"{i:06d}").split(PIECE), strict=True):
                one, two = one.double(), two.double()
                for name, left, right in ((DOT, one, two), (OWN, one, one), (OTHER, two, two)):
                    sums[name] += float(left @ right)
    return sums


def _gradient_digest(tensors: Sequence[Tensor]) -> str:
    """Digest of the tensors as one flat float32 array."""
    hasher = hasher_of(str(tensors[0].dtype) if tensors else "", ())
    for tensor in tensors:
        hasher.update(tensor.float().numpy().data)
    return hasher.hexdigest()
