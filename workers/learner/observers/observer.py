"""Interface of an observer. A new observer implements `add_slice` and is listed in `LearnerWorker.step`."""

from __future__ import annotations

from typing import Protocol

from demopsd_dist.objective import Loss, TokenSlice, TokenViews
from workers.learner.loss_inputs import LossInputs


class Observer(Protocol):
    """Reader of the loss of one step, slice after slice, without gradients."""

    def add_slice(self, inputs: LossInputs, part: TokenSlice, views: TokenViews, result: Loss) -> None:
        """Add one slice. Slices come in order: all of a micro-batch, then those of the next.

        Args:
            inputs: tensors of the micro-batch, the same object for all its slices.
            part: the slice, with the student's logits; they are overwritten after the call.
            views: input of the method at the slice.
            result: the loss of the slice.
        """
        ...
