"""What the rollout workers' weights can do: accuracy in several figures, entropy, length, and hints of leakage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from demopsd_dist.data.accuracy import (
    AccuracyEstimate,
    AnswerGroup,
    best_of,
    best_with_replacement,
    figure,
    majority,
    mean_score,
    pass_sizes,
)
from demopsd_dist.data.leakage_signs import behaviour
from demopsd_dist.data.records import Prompt, RewardResult
from demopsd_dist.data.rewards import Reward, same_answer
from demopsd_dist.training.roles import Rollouts, Sampling


@dataclass(frozen=True)
class Evaluation:
    """k = `samples` responses to each of `questions`. What the figures mean is in `accuracy.py`, the shares of
    `behaviour` in `behaviour.py`.

    `example` is one question with its expected answer and one response, for a reader who wonders about the figures.
    """

    mean: AccuracyEstimate  # mean@k
    majority: AccuracyEstimate  # maj@k
    passes: dict[int, AccuracyEstimate]  # pass@j by j, up to k
    best: AccuracyEstimate  # best@k as verl prints it
    entropy_nats: float  # a token's, of the sampling distribution: the mean of -log p of the sampled tokens
    response_tokens_mean: float
    truncated_fraction: float
    unparsed_fraction: float  # without an answer in the reward's form
    reward_errors: int  # responses that the reward failed on, which count as wrong
    behaviour: dict[str, float]
    questions: int
    samples: int
    example: dict[str, str]


async def evaluate(
    rollouts: Rollouts, prompts: Sequence[Prompt], sampling: Sampling, reward: Reward, begun: str = ""
) -> Evaluation:
    """Sample `sampling.samples` responses for each prompt and check them.

    Args:
        begun: how each response was begun for the student, at the end of its prompt; counts as part of the response.
    """
    groups = await rollouts.sample(prompts, sampling)
    texts = [[begun + rollout.text for rollout in group] for group in groups]
    marks = [
        [reward.result_of(text, prompt.question) for text in group]
        for prompt, group in zip(prompts, texts, strict=True)
    ]
    marked = [
        AnswerGroup(
            prompt.question.field,
            [mark.reward if isinstance(mark, RewardResult) else 0.0 for mark in group],
            [reward.extract(text) for text in own],
        )
        for prompt, group, own in zip(prompts, marks, texts, strict=True)
    ]
    responses = [rollout for group in groups for rollout in group]
    tokens = sum(len(rollout.tokens_T) for rollout in responses)
    return Evaluation(
        mean=figure(marked, mean_score),
        majority=figure(marked, lambda m: majority(m, same_answer)),
        passes={size: figure(marked, partial(best_of, draws=size)) for size in pass_sizes(sampling.samples)},
        best=figure(marked, best_with_replacement),
        entropy_nats=-sum(float(rollout.logp_T.sum()) for rollout in responses) / max(tokens, 1),
        response_tokens_mean=tokens / len(responses),
        truncated_fraction=sum(rollout.truncated for rollout in responses) / len(responses),
        unparsed_fraction=sum(answer is None for m in marked for answer in m.answers) / len(responses),
        reward_errors=sum(not isinstance(mark, RewardResult) for group in marks for mark in group),
        behaviour=behaviour([text for group in texts for text in group]),
        questions=len(prompts),
        samples=sampling.samples,
        example={
            "question": prompts[0].question.text,
            "expected": prompts[0].question.answer,
            "response": texts[0][0],
        },
    )


def evaluation_of(record: dict[str, Any]) -> Evaluation:
    """An evaluation from what JSON kept of it, `asdict`."""
    known = {item.name: record[item.name] for item in fields(Evaluation)}
    figures = {name: AccuracyEstimate(**known[name]) for name in ("mean", "majority", "best")}
    passes = {int(samples): AccuracyEstimate(**found) for samples, found in known["passes"].items()}
    return Evaluation(**(known | figures | {"passes": passes}))
