"""Canary: a fixed prompt whose log-probabilities show whether an engine has the weights that it claims to have.

After each publish the learners and every rollout engine compute the log-probability of each token of the canary after
those before it. Equal weights give equal values but for rounding, whatever the transport of the weights. No sampling is
needed, so the check also works where no fresh responses exist to compare. Both sides give plain log-probabilities of
the model: vLLM reports those of prompt tokens before any sampling setting, temperature included, is applied.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from demopsd_dist.config import LogpBounds
from demopsd_dist.data.records import Tokens
from demopsd_dist.util.errors import WeightSyncError
from workers.weights.buckets import Ack

CANARY_TOKENS = 32
CHANGED_NATS = 1e-5  # above float32 rounding: a larger difference means other weights

LogpT = NDArray[np.float32]


def canary_tokens(vocabulary_size: int, longest: int) -> Tokens:
    """Random ids, the same in every run, at most `longest`."""
    rng = np.random.default_rng(0)
    return rng.integers(0, vocabulary_size, min(CANARY_TOKENS, longest)).astype(np.int32)


def logp_difference(one_T: LogpT, other_T: LogpT) -> LogpT:
    """Absolute differences of log-probabilities, nats; 0 where both give a token the probability 0 (-inf), as some
    models do to ids that must not be sampled."""
    with np.errstate(invalid="ignore"):
        return np.where(one_T == other_T, 0.0, np.abs(one_T - other_T)).astype(np.float32)


def refuse_other_weights(engine: str, version: int, learner_T: LogpT, engine_T: LogpT, bounds: LogpBounds) -> None:
    """Check that the engine's log-probabilities of the canary are the learner's.

    Raises:
        WeightSyncError: some token's, or their median, differ by more than the bounds.
    """
    difference_T = logp_difference(engine_T, learner_T)
    token = int(np.argmax(difference_T))  # a NaN counts as the largest
    if not difference_T[token] <= bounds.largest:
        raise WeightSyncError(
            f"{engine} does not have the weights of version {version}: its log-probability of token {token + 1} of the "
            f"canary prompt is {engine_T[token]:.6g} nats, the learner's {learner_T[token]:.6g}; they differ by "
            f"{difference_T[token]:.3g}, weights.max_logp_diff={bounds.largest:g}. It would sample from another model "
            "(docs/weights.md)."
        )
    median = float(np.median(difference_T))
    if median > bounds.typical:
        raise WeightSyncError(
            f"{engine} does not have the weights of version {version}: its log-probabilities of the canary prompt "
            f"differ from the learner's by {median:.3g} nats in the median, weights.typical_logp_diff="
            f"{bounds.typical:g}. It would sample from another model (docs/weights.md)."
        )


def refuse_old_weights(
    engine: str, version: int, learner_T: tuple[LogpT, LogpT], engine_T: tuple[LogpT, LogpT]
) -> None:
    """Check that the engine's log-probabilities changed if the learner's did: an engine that repeats its last values
    bit for bit has not loaded the new weights. Each pair has the values of the last publish and of this one.

    Raises:
        WeightSyncError: the learner's log-probabilities changed, the engine's did not.
    """
    change = float(logp_difference(*learner_T).max())
    if change > CHANGED_NATS and np.array_equal(*engine_T):
        raise WeightSyncError(
            f"{engine} kept its weights: its log-probabilities of the canary prompt are bit for bit those of the last "
            f"publish, while version {version} changed the learner's by up to {change:.3g} nats."
        )


class CanaryHistory:
    """Log-probabilities of the canary prompt at the last publish to each engine, with which the next are compared.

    Args:
        bounds: of the differences between engine and learner.

    Attributes:
        last: the learner's values and the engine's, by the engine's rank.
    """

    def __init__(self, bounds: LogpBounds) -> None:
        self._bounds = bounds
        self.last: dict[int, tuple[LogpT, LogpT]] = {}

    def forget(self) -> None:
        """Compare the next values with none: they may be the same."""
        self.last.clear()

    def check(self, version: int, learner_T: LogpT, acks: Mapping[int, Ack]) -> None:
        """Check that the engines that acknowledged use the new weights.

        Args:
            acks: by the engine's rank.

        Raises:
            WeightSyncError: an engine's log-probabilities of the canary are not the learner's, or the old ones.
        """
        previous = self.last
        self.last = {rank: logp for rank, logp in previous.items() if rank not in acks}
        for rank, ack in acks.items():
            name, engine_T = f"rollout {rank}", ack.canary_logp_T
            assert engine_T is not None
            refuse_other_weights(name, version, learner_T, engine_T, self._bounds)
            if rank in previous:
                previous_learner_T, previous_engine_T = previous[rank]
                refuse_old_weights(name, version, (previous_learner_T, learner_T), (previous_engine_T, engine_T))
            self.last[rank] = (learner_T, engine_T)
