"""Output head: the step from the last hidden state to logits, with the transform that some models apply to them.

Gemma caps its logits softly, Granite, Cohere and Falcon-H1 scale them:

    z = soft_cap tanh(scale h W' / soft_cap)        without a soft cap z = scale h W'
    dL/d(h W') = dL/dz scale (1 - (z / soft_cap)^2)

All logits are computed by an `OutputHead`, so that the transform is never left out. The sampling
temperature comes after it, as in vLLM.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import linear

from demopsd_dist.objective.support import lifted


@dataclass(frozen=True)
class LogitTransform:
    """Scale and soft cap of a model's logits, by default none. Both at once: the scale first.

    Raises:
        ValueError: the scale is zero, or the soft cap is not positive.
    """

    scale: float = 1.0
    soft_cap: float | None = None

    def __post_init__(self) -> None:
        if self.scale == 0 or (self.soft_cap is not None and self.soft_cap <= 0):
            raise ValueError(f"{self}: a scale is not 0, and a soft cap is positive.")

    @property
    def is_identity(self) -> bool:
        """Whether logits stay as they are."""
        return self == LogitTransform()

    def apply(self, logits: Tensor) -> Tensor:
        """Transform logits of any shape; differentiable. Half-precision logits come back in float32.

        The argument is overwritten where that saves memory: use the result alone.
        """
        if self.is_identity:
            return logits
        logits = lifted(logits)
        if self.soft_cap is None:
            return logits.mul_(self.scale)
        capped = logits.mul_(self.scale / self.soft_cap).tanh_()
        return capped.mul(self.soft_cap) if capped.requires_grad else capped.mul_(self.soft_cap)

    def derivative(self, logits: Tensor) -> Tensor | float:
        """Derivative of the transform at the logits that it has returned: a tensor of their shape with a soft cap,
        otherwise one number."""
        if self.soft_cap is None:
            return self.scale
        return (logits / self.soft_cap).square_().neg_().add_(1.0).mul_(self.scale)


@dataclass(frozen=True)
class OutputHead:
    """Weight (V, H), bias (V,) and logit transform of a model. Under ZeRO-3 the tensors are gathered ones, valid within
    the forward."""

    weight_VH: Tensor
    bias_V: Tensor | None = None
    transform: LogitTransform = LogitTransform()

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """Logits (N, V) of last hidden states, before the temperature; differentiable."""
        return self.transform.apply(linear(hidden_NH, self.weight_VH, self.bias_V))

    def product_into(self, out_NV: Tensor, hidden_NH: Tensor) -> Tensor:
        """Logits (N, V) before the transform, in given memory of the weight's type. Without a gradient."""
        if self.bias_V is None:
            return torch.mm(hidden_NH, self.weight_VH.T, out=out_NV)
        return torch.addmm(self.bias_V, hidden_NH, self.weight_VH.T, out=out_NV)
