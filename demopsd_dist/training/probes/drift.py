"""Distance of the student to the initial model, on responses that the initial model sampled in the first step.

KL(initial || student), a mean over their tokens. It shows how far training has moved the policy, whatever the reward
says: a run that forgets or collapses moves far. The initial model itself is not kept: its log-probabilities are, on its
20 most likely tokens and the tail at `rollout.temperature`, so that the divergence is a lower bound of that over the
whole vocabulary.
"""

from __future__ import annotations

import numpy as np

from demopsd_dist.data.records import Logp, Prompt, Rollout, Tokens, TrainingExample, bare_prompt
from demopsd_dist.training.probes import initial_responses
from demopsd_dist.training.probes.initial_responses import InitialResponse
from demopsd_dist.training.run import Run, RunState
from demopsd_dist.training.step_batch import StepBatch
from demopsd_dist.util.errors import CheckpointError

TOP_K = 20
TOKENS = 256  # of a response, its first ones
_NO_TOKENS = np.zeros(0, dtype=np.int32)


async def keep_initial_responses(run: Run, state: RunState, batch: StepBatch) -> None:
    """Write some responses of the first step and the initial model's log-probabilities on them to the run folder,
    before the learners' first update. One response a question, the first `drift.responses` questions."""
    path = run.log.folder.initial_responses
    if not run.cfg.drift.every_steps or state.step or path.exists():
        return
    firsts = [group.rollouts[0] for group in batch.groups if group.rollouts][: run.cfg.drift.responses]
    examples = [_example(rollout.prompt, rollout.tokens_T[:TOKENS]) for rollout in firsts]
    with run.log.timed("drift"):
        scored = await run.roles.learners.logp(examples, None, TOP_K)
        kept = [
            InitialResponse(example.prompt.tokens, example.response_T, ids_TK, logp_TA)
            for example, (ids_TK, logp_TA) in zip(examples, scored, strict=True)
        ]
        initial_responses.write(path, kept)


async def measure_drift(run: Run, state: RunState) -> dict[str, float]:
    """The distance after the first step, after every `drift.every_steps` steps and after the last, as a metric. Empty
    at other steps, and in a run without the initial model's responses."""
    if not run.cfg.drift.every_steps or not (state.step == 1 or run.is_due(run.cfg.drift.every_steps, state)):
        return {}
    path = run.log.folder.initial_responses
    if not path.exists():
        run.log.note_once(
            f"note: {path} is missing, which the first step of a run writes: the distance to the initial model is not "
            "measured (drift.every_steps)"
        )
        return {}
    try:
        kept = initial_responses.read(path)
    except CheckpointError as error:
        run.log.note(f"warning: {error} The distance to the initial model is not measured.")
        return {}
    if not kept:
        return {}
    with run.log.timed("drift"):
        examples = [_example(bare_prompt(str(i), one.prompt), one.tokens_T) for i, one in enumerate(kept)]
        scored = await run.roles.learners.logp(examples, [one.support_TK for one in kept], TOP_K)
    pairs = [(one.logp_TA, logp_TA) for one, (_, logp_TA) in zip(kept, scored, strict=True)]
    return {"drift/initial_kl_nats": mean_kl(pairs)}


def mean_kl(pairs: list[tuple[Logp, Logp]]) -> float:
    """Mean over all tokens of KL(first || second), nats.

    Args:
        pairs: log-probabilities (T, A) of the same atoms, by response.
    """
    kl_N = [(np.exp(first, dtype=np.float64) * (first.astype(np.float64) - second)).sum(-1) for first, second in pairs]
    return float(np.concatenate(kl_N).mean())


def _example(prompt: Prompt, tokens_T: Tokens) -> TrainingExample:
    """A response as the learners' forward takes it."""
    zeros_T = np.zeros(len(tokens_T), np.float32)
    rollout = Rollout(prompt, 0, tokens_T, zeros_T, "", False, np.zeros(len(tokens_T), np.int32), 0)
    return TrainingExample(rollout, 0.0, 0.0, _NO_TOKENS)
