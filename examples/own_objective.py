"""An objective of your own: reverse KL to the teacher at those tokens alone where teacher and reference disagree.

Run it in this folder, where `own_objective.DisagreeingTokens` can be imported:

    cd examples
    python own_objective.py         # minutes on two CPU cores

The same from the command line, in this folder:

    demopsd train demo method=own_objective.DisagreeingTokens own.reference=ema own.settings.threshold_nats=0.01
"""

import sys
from dataclasses import dataclass

from torch import Tensor

from demopsd_dist import train
from demopsd_dist.objective import TokenLoss, TokenViews, disagreement, floored, generalised_kl


@dataclass(frozen=True)
class DisagreeingTokens:
    """Settings of the method; `own.settings` gives them by name. Needs a teacher and a reference."""

    threshold_nats: float = 0.01
    importance_clip: float = 2.0

    def __call__(self, views: TokenViews) -> TokenLoss:
        """Loss of each token, and a metric of each token, which the run averages."""
        assert views.teacher_logp_BTA is not None, "a response without a solution to show gives no example"
        assert views.reference_logp_BTA is not None, "set own.reference to ema or frozen"
        teacher_BTA = floored(views.teacher_logp_BTA, 1e-8)
        disagrees_BT = disagreement(floored(views.reference_logp_BTA, 1e-8), teacher_BTA) > self.threshold_nats
        loss_BT = generalised_kl(views.student_logp_BTA, teacher_BTA) * disagrees_BT
        if views.importance_ratio_BT is not None:
            loss_BT = loss_BT * views.importance_ratio_BT.clamp(max=self.importance_clip)
        return TokenLoss(loss_BT, means={"own/disagreeing_fraction": disagrees_BT.float()})

    def target(self, reference_logp_BTA: Tensor, teacher_logp_BTA: Tensor) -> Tensor:
        """Log-probabilities that the student is trained towards; optional, for the report and the leakage probe."""
        return teacher_logp_BTA


if __name__ == "__main__":
    settings = {
        "name": "own_objective",
        "method": "own_objective.DisagreeingTokens",
        "own.reference": "ema",
        "own.settings": {"threshold_nats": 0.01},
        "steps": 5,
    }
    run = train("demo", settings | dict(word.split("=", 1) for word in sys.argv[1:]))
    before, after = (run.accuracy_before or {})["average"], (run.accuracy_after or {})["average"]
    print(f"accuracy {before:.1%} -> {after:.1%}; the report is {run.report}")
