"""Evaluations of a run: their prompts, sampling parameters and times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from demopsd_dist.config import Config
from demopsd_dist.data.accuracy import AnswerGroup
from demopsd_dist.data.leakage_signs import early_answer_prompts
from demopsd_dist.data.records import Prompt
from demopsd_dist.data.rewards import AnswerForm, answer_form
from demopsd_dist.run_record import samples
from demopsd_dist.training.evaluate import evaluate
from demopsd_dist.training.roles import Sampling
from demopsd_dist.training.run import Run, RunState, Task
from demopsd_dist.training.step_prompts import evaluation_sampling

UNCLOSED_ANSWER_TOKENS = 8
"""Longest early answer in a form that nothing closes, such as `#### 12`."""


@dataclass(frozen=True)
class EvaluationSplit:
    """Prompts that are evaluated together, under the name that their metrics are recorded under."""

    name: str
    prompts: Sequence[Prompt]
    sampling: Sampling
    form: AnswerForm | None = None  # of the answer that is begun at the end of the prompts, for each response to finish


async def evaluate_splits(run: Run, state: RunState) -> None:
    """Evaluate every split and record the results, unless a stop is requested first.

    Every evaluation of a run has the same questions and the same random numbers, so that only the weights differ.
    """
    await run.stop.until_stopped(_evaluate_splits(run, state))


async def _evaluate_splits(run: Run, state: RunState) -> None:
    for split in evaluation_splits(run.cfg, run.task):
        rows: list[samples.Row] = []
        limit = 0 if split.form else run.cfg.samples.evaluation_questions

        def keep(
            prompt: Prompt, texts: Sequence[str], group: AnswerGroup, rows: list = rows, limit: int = limit
        ) -> None:
            if len(rows) < limit:
                rows.append(samples.evaluation_row(state.step, prompt.question, texts, group))

        with run.log.timed("evaluate"):
            result = await evaluate(
                run.roles.rollouts, split.prompts, split.sampling, run.task.reward, split.form, keep
            )
        if rows:
            samples.write_evaluation(run.log.folder.evaluations, state.step, split.name, rows)
        run.log.write_evaluation(state.step, split.name, result)


async def evaluate_if_due(run: Run, state: RunState) -> None:
    """Evaluate after every `evaluation.every_steps` steps, except after the last, which has an evaluation anyway."""
    if run.is_due(run.cfg.evaluation.every_steps, state) and state.step < run.cfg.steps:
        await evaluate_splits(run, state)


def evaluation_splits(cfg: Config, task: Task) -> Iterator[EvaluationSplit]:
    """The splits of one evaluation that have prompts."""
    sampling = evaluation_sampling(cfg)
    splits = [EvaluationSplit("test", task.test, sampling), EvaluationSplit("ood", task.ood, sampling)]
    if early := cfg.evaluation.early_answer_samples:
        form = answer_form(cfg.reward)
        limit = sampling.max_response_tokens
        early_sampling = replace(
            sampling, samples=early, max_response_tokens=limit if form.after else min(limit, UNCLOSED_ANSWER_TOKENS)
        )
        count = min(len(task.train), len(task.test))
        spread = [task.train[i * len(task.train) // count] for i in range(count)]  # a list of tasks is in their order
        train = [task.prompts.evaluation(prompt.question) for prompt in spread]
        for name, prompts in (("test", task.test), ("train", train)):
            forced = early_answer_prompts(prompts, task.prompts.tokenizer, form.opening)
            splits.append(EvaluationSplit(f"early/{name}", forced, early_sampling, form))
    return (split for split in splits if split.prompts)
