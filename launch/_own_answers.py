"""Own answers of the data before a run: lines for the log, and the refusal of data that nobody can answer right."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from demopsd_dist.data.own_answers import OwnAnswers, check_own_answers, is_built_in, likely_fix, quoted
from demopsd_dist.data.records import Prompt
from demopsd_dist.data.rewards import Reward, answer_form
from demopsd_dist.data.sources import LoadedSource
from demopsd_dist.minisci.tasks import Split
from demopsd_dist.training.run import Task
from demopsd_dist.util.errors import DataError

REQUESTS = {
    "answer": "Give the final answer as <answer>X</answer>.",
    "auto": "Give the final answer as <answer>X</answer>.",
    "boxed": "Put the final answer within \\boxed{}.",
    "math": "Put the final answer within \\boxed{}.",
}
"""Sentences that ask for the form of a built-in reward, as `data.suffix` adds them."""


def own_answer_lines(task: Task, splits: Mapping[Split, LoadedSource]) -> list[str]:
    """Lines about the records of each split whose own answer the reward marks wrong, and whose prompt asks for no form.

    Raises:
        DataError: a built-in reward marks most of a split's own answers wrong; names the likely fix.
    """
    started = time.monotonic()
    prompts = {"train": task.train, "test": task.test, "ood": task.ood}
    results = {
        split: check_own_answers([prompt.question for prompt in prompts[split]], task.reward)
        for split in splits
        if prompts[split]
    }
    checked = sum(result.checked for result in results.values())
    count = sum(result.questions for result in results.values())
    wrong = sum(len(result.wrong) for result in results.values())
    lines = [
        f"own answers {checked:,} of {count:,} checked by reward={task.reward.name} in "
        f"{time.monotonic() - started:.1f} s: {f'{wrong:,} wrong' if wrong else 'all right'}"
    ]
    for split, result in results.items():
        lines += _lines_of_split(split, result, splits[split], task.reward, prompts[split])
    return lines


def _lines_of_split(
    split: Split, result: OwnAnswers, loaded: LoadedSource, reward: Reward, prompts: Sequence[Prompt]
) -> list[str]:
    lines = []
    if result.wrong:
        first = result.wrong[0]
        question = first.question
        read = "" if first.read is None or not is_built_in(reward) else f", read as {quoted(first.read)}"
        example = f": expected {quoted(question.answer)}, written {quoted(first.written)}{read}"
        example = "" if question.id in loaded.withheld else example
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in result.reasons.items())
        found = (
            f"reward={reward.name} marks the own answer of {len(result.wrong):,} of {result.checked:,} {split} records "
            f"wrong: {reasons}. First: {loaded.places.get(question.id) or question.id}{example}."
        )
        if is_built_in(reward) and result.mostly_wrong:
            raise DataError(f"{found} {likely_fix(reward, result.wrong)}")
        lines.append(f"warning: {found}")
    asking = REQUESTS.get(reward.name)
    from_files = sum(bool(loaded.places.get(prompt.id)) for prompt in prompts)
    if asking and from_files and result.unasked:
        lines.append(
            f"warning: {result.unasked:,} of {result.questions:,} {split} prompts ask for no form of an answer, and "
            f"reward={reward.name} reads {answer_form(reward.name).write('X')}. Unless the model answers so by itself, "
            f"ask for it in data.suffix: {asking!r}"
        )
    return lines
