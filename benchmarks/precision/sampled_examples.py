"""Training examples without a rollout engine: responses by transformers, with the data's own answer as the solution."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from demopsd_dist.config import Config
from demopsd_dist.data.records import Prompt, Rollout, TrainingExample
from demopsd_dist.data.rewards import answer_form
from demopsd_dist.training.run import Task
from workers.forward import PaddedBatch, ResponseModel


def sampled_examples(
    student: ResponseModel, task: Task, prompts: Sequence[Prompt], config: Config, samples: int
) -> list[TrainingExample]:
    """Responses to each prompt at the run's temperature, with the privileged prompt of the teacher.

    Args:
        samples: responses to each prompt.
    """
    torch.manual_seed(config.seed)
    examples = []
    for prompt in prompts:
        solution = answer_form(config.reward).write(prompt.question.answer)
        privileged = task.prompts.privileged(prompt.question, [solution], None)
        for number in range(samples):
            rollout = _rollout(student, prompt, number, config)
            examples.append(TrainingExample(rollout, 1.0, 0.0, privileged))
    return examples


@torch.no_grad()
def _rollout(student: ResponseModel, prompt: Prompt, number: int, config: Config) -> Rollout:
    """One response, with the student's own log-probabilities."""
    given, rollout = torch.from_numpy(prompt.tokens.astype(np.int64))[None], config.rollout
    made = student.model.generate(
        given,
        attention_mask=torch.ones_like(given),
        do_sample=True,
        temperature=rollout.temperature,
        top_k=0,
        max_new_tokens=rollout.max_response_tokens,
    )
    tokens_T = made[0, given.shape[1] :].numpy().astype(np.int32)
    batch = PaddedBatch([[(prompt.tokens, tokens_T)]], torch.device("cpu"))
    logits_NV = student(batch, lambda head, hidden_NH: head.logits(hidden_NH)).float() / rollout.temperature
    logp_T = logits_NV.log_softmax(-1).gather(-1, batch.response_N[:, None])[:, 0]
    return Rollout(
        prompt=prompt,
        sample=number,
        tokens_T=tokens_T,
        logp_T=logp_T.numpy(),
        text="",
        truncated=False,
        version_T=np.zeros(len(tokens_T), np.int32),
        worker=0,
    )
