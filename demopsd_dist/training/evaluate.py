"""Evaluation of the rollout workers' weights: accuracy at k, entropy, response length, and signs of leakage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from demopsd_dist.data.accuracy import (
    AccuracyEstimate,
    AnswerGroup,
    best_with_replacement,
    estimate_accuracy,
    majority_reward,
    mean_reward,
    pass_at,
    pass_sizes,
)
from demopsd_dist.data.leakage_signs import sign_fractions
from demopsd_dist.data.records import Prompt, RewardResult, Rollout
from demopsd_dist.data.rewards import AnswerForm, Reward, same_answer
from demopsd_dist.training.roles import Rollouts, Sampling


@dataclass(frozen=True)
class Evaluation:
    """Results of `samples` = k responses to each of `questions`.

    `data/accuracy.py` defines the accuracies, `data/leakage_signs.py` the fractions in `behaviour`. `example` is one
    question with its expected answer and one response, which helps to explain a low accuracy.
    """

    mean: AccuracyEstimate  # mean@k
    majority: AccuracyEstimate  # maj@k
    passes: dict[int, AccuracyEstimate]  # pass@j by j, up to k
    best: AccuracyEstimate  # best@k as verl prints it
    entropy_nats: float  # mean -log p of the sampled tokens under the sampling distribution
    response_tokens_mean: float
    truncated_fraction: float
    unparsed_fraction: float  # without an answer in the reward's form
    reward_errors: int  # responses that the reward failed on or could not compare in time, which count as wrong
    behaviour: dict[str, float]
    questions: int
    samples: int
    example: dict[str, str]


async def evaluate(
    rollouts: Rollouts,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    reward: Reward,
    begun: AnswerForm | None = None,
    keep: Callable[[Prompt, Sequence[str], AnswerGroup], None] | None = None,
) -> Evaluation:
    """Sample `sampling.samples` responses for each prompt and reward them.

    Args:
        begun: form of the answer whose beginning ends each prompt. Such a response counts up to the end of its first
            answer.
        keep: called for each prompt with the texts of its responses, and their answers and rewards.
    """
    groups = await rollouts.sample(prompts, sampling)
    texts = [[_text_of(rollout, begun) for rollout in group] for group in groups]
    results = [
        [
            reward.result_of(text, prompt.question, is_truncated=rollout.truncated and begun is None)
            for rollout, text in zip(group, group_texts, strict=True)
        ]
        for prompt, group, group_texts in zip(prompts, groups, texts, strict=True)
    ]
    answers = [
        AnswerGroup(
            prompt.question.field,
            [result.reward if isinstance(result, RewardResult) else 0.0 for result in group],
            [reward.extract(text) for text in group_texts],
        )
        for prompt, group, group_texts in zip(prompts, results, texts, strict=True)
    ]
    if keep is not None:
        for prompt, group_texts, answer_group in zip(prompts, texts, answers, strict=True):
            keep(prompt, group_texts, answer_group)
    responses = [rollout for group in groups for rollout in group]
    tokens = sum(len(rollout.tokens_T) for rollout in responses)
    return Evaluation(
        mean=estimate_accuracy(answers, mean_reward),
        majority=estimate_accuracy(answers, lambda group: majority_reward(group, same_answer)),
        passes={
            size: estimate_accuracy(answers, partial(pass_at, draws=size)) for size in pass_sizes(sampling.samples)
        },
        best=estimate_accuracy(answers, best_with_replacement),
        entropy_nats=-sum(float(rollout.logp_T.sum()) for rollout in responses) / max(tokens, 1),
        response_tokens_mean=tokens / len(responses),
        truncated_fraction=sum(rollout.truncated for rollout in responses) / len(responses),
        unparsed_fraction=sum(answer is None for group in answers for answer in group.answers) / len(responses),
        reward_errors=sum(
            not isinstance(result, RewardResult) or result.undecided for group in results for result in group
        ),
        behaviour=sign_fractions([text for group in texts for text in group]),
        questions=len(prompts),
        samples=sampling.samples,
        example={
            "question": prompts[0].question.text,
            "expected": prompts[0].question.answer,
            "response": texts[0][0],
        },
    )


def _text_of(rollout: Rollout, begun: AnswerForm | None) -> str:
    return begun.first_answer(begun.opening + rollout.full_text) if begun else rollout.full_text


def evaluation_from_record(record: dict[str, Any]) -> Evaluation:
    """Rebuild an evaluation from the dictionary that `asdict` made of it."""
    values = {item.name: record[item.name] for item in fields(Evaluation)}
    accuracies = {name: AccuracyEstimate(**values[name]) for name in ("mean", "majority", "best")}
    passes = {int(samples): AccuracyEstimate(**accuracy) for samples, accuracy in values["passes"].items()}
    return Evaluation(**(values | accuracies | {"passes": passes}))
