"""Accuracy of whatever the rollout workers hold: mean@k by field, entropy, length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from demopsd_dist.data.records import Prompt
from demopsd_dist.data.rewards import Reward
from demopsd_dist.roles import Rollouts, Sampling


@dataclass(frozen=True)
class Evaluation:
    """`by_field` and `average` are mean@samples in [0, 1]; the average is over fields, each counting once.

    `example` is one question with its expected answer and one response, for a reader who wonders about the figures.
    """

    by_field: dict[str, float]
    average: float
    entropy_nats: float  # a token's, of the sampling distribution: the mean of -log p of the sampled tokens
    response_tokens_mean: float
    truncated_fraction: float
    unparsed_fraction: float  # without an answer in the reward's form
    questions: int
    samples: int
    example: dict[str, str]


async def evaluate(rollouts: Rollouts, prompts: Sequence[Prompt], sampling: Sampling, reward: Reward) -> Evaluation:
    """Sample `sampling.samples` responses for each prompt and check them."""
    groups = await rollouts.sample(prompts, sampling)
    scores: dict[str, list[float]] = {}
    for prompt, group in zip(prompts, groups, strict=True):
        scores.setdefault(prompt.question.field, []).append(
            sum(reward(rollout.text, prompt.question).score for rollout in group) / len(group)
        )
    by_field = {name: sum(values) / len(values) for name, values in sorted(scores.items())}
    responses = [rollout for group in groups for rollout in group]
    tokens = sum(len(rollout.tokens_T) for rollout in responses)
    return Evaluation(
        by_field=by_field,
        average=sum(by_field.values()) / len(by_field),
        entropy_nats=-sum(float(rollout.logp_T.sum()) for rollout in responses) / max(tokens, 1),
        response_tokens_mean=tokens / len(responses),
        truncated_fraction=sum(rollout.truncated for rollout in responses) / len(responses),
        unparsed_fraction=sum(reward.extract(rollout.text) is None for rollout in responses) / len(responses),
        questions=len(prompts),
        samples=sampling.samples,
        example={
            "question": prompts[0].question.text,
            "expected": prompts[0].question.answer,
            "response": groups[0][0].text,
        },
    )
