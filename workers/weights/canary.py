"""The probe: a fixed prompt whose log-probabilities tell whether an engine has the weights that it says it has.

After each publish the learners and every rollout engine say how likely each token of the probe is after those before
it. Equal weights give equal answers but for rounding, whatever the way they came. The probe needs no sampling, so it
also speaks where no fresh responses exist to compare. Both sides give plain log-probabilities of the model: those that
vLLM reports of prompt tokens are from before any sampling setting, temperature included, is applied.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from demopsd_dist.data.records import Tokens
from demopsd_dist.util.errors import WeightSyncError

PROBE_TOKENS = 32
MOVED_NATS = 1e-5  # more than float32 rounding: the weights behind such a difference are others

LogpT = NDArray[np.float32]


def probe_tokens(vocabulary_size: int, longest: int) -> Tokens:
    """Random ids, the same in every run, at most `longest`."""
    rng = np.random.default_rng(0)
    return rng.integers(0, vocabulary_size, min(PROBE_TOKENS, longest)).astype(np.int32)


def refuse_other_weights(engine: str, version: int, learner_T: LogpT, engine_T: LogpT, allowed: float) -> None:
    """
    Raises:
        WeightSyncError: the engine's log-probabilities of the probe are not the learner's.
    """
    difference_T = np.abs(engine_T - learner_T)
    token = int(np.argmax(difference_T))  # a NaN counts as the largest
    if not difference_T[token] <= allowed:
        raise WeightSyncError(
            f"{engine} does not have the weights of version {version}: its log-probability of token {token + 1} of the "
            f"probe is {engine_T[token]:.6g} nats, the learner's {learner_T[token]:.6g}; they differ by "
            f"{difference_T[token]:.3g}, weights.max_logp_diff={allowed:g}. It would sample from another model. In "
            "bfloat16 differences up to 0.5 are rounding: raise weights.max_logp_diff there."
        )


def refuse_kept_weights(
    engine: str, version: int, learner_T: tuple[LogpT, LogpT], engine_T: tuple[LogpT, LogpT]
) -> None:
    """Smaller changes than the allowed difference show too: an engine that gives bit for bit its last answers to the
    probe, though the learner's have moved, has not taken the new weights. Pairs are of the last publish and this one.

    Raises:
        WeightSyncError: that is so.
    """
    moved = float(np.abs(learner_T[1] - learner_T[0]).max())
    if moved > MOVED_NATS and np.array_equal(*engine_T):
        raise WeightSyncError(
            f"{engine} kept its weights: its log-probabilities of the probe are bit for bit those of the last publish, "
            f"while version {version} moved the learner's by up to {moved:.3g} nats."
        )
