"""Data of a run as its log and its dry run show it: one question of each data set in every view, and own answers.

Data that nobody can answer right is refused (`demopsd_dist/data/checks/own_answers.py`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from demopsd_dist.config import MINISCI, Config, DataConfig, SolutionSource
from demopsd_dist.data.checks.doubtful_questions import doubt_lines
from demopsd_dist.data.checks.own_answers import OwnAnswers, check_own_answers, is_built_in, likely_fix, quoted
from demopsd_dist.data.mixture import MixedPrompts
from demopsd_dist.data.records import Prompt, Question
from demopsd_dist.data.rewards import Reward, answer_form
from demopsd_dist.data.sources import LoadedData, LoadedSource, describe_sources
from demopsd_dist.methods import resolve_method
from demopsd_dist.minisci.tasks import Split
from demopsd_dist.training.run import Task
from demopsd_dist.util.errors import DataError
from demopsd_dist.util.printable import abridged_lines, escape_control_chars

SIBLING = "[a right sibling response]"
OTHER_QUESTION = "[the solution of another question of the step]"
FEEDBACK = "[the feedback of the reward on the response]"
UNLEARNED = "none: the record has no solution to show and is not trained on"
HIGH_LEARNING_RATE = 1e-4  # for all weights of a pretrained model
HIGHEST_LEARNING_RATE = 3e-3  # for adapters, and for the demo's small model
WITHHELD = "not shown, since items of GPQA must not be republished; --show prints it"

REQUESTS = {
    "answer": "Give the final answer as <answer>X</answer>.",
    "auto": "Give the final answer as <answer>X</answer>.",
    "boxed": "Put the final answer within \\boxed{}.",
    "math": "Put the final answer within \\boxed{}.",
}
"""Sentences that ask for the form of a built-in reward, as `data.suffix` adds them."""


@dataclass(frozen=True)
class ShownExample:
    """A question of a data set with the texts that students, teacher and reward get.

    Attributes:
        title: split, question id and place of the record.
        texts: text by its name.
        withheld: the texts are printed with `--show` alone.
    """

    title: str
    texts: dict[str, str]
    withheld: bool = False

    def lines(self, whole: bool) -> Iterator[str]:
        """Lines for the terminal: the texts shortened in their middle, or whole."""
        yield f"example of {escape_control_chars(self.title)}"
        for name, text in self.texts.items():
            if self.withheld and not whole:
                lines = [WITHHELD]
            elif whole:
                lines = escape_control_chars(text, lines=True).split("\n")
            else:
                lines = abridged_lines(text)
                if lines != [escape_control_chars(line) for line in text.split("\n")]:
                    name += " (shortened; --show prints it whole)"
            if len(lines) == 1:
                yield f"  {name}: {lines[0]}"
            else:
                yield f"  {name}:"
                yield from (f"    | {line}" for line in lines)


def shown_examples(config: Config, task: Task, data: LoadedData) -> list[ShownExample]:
    """The first question of each training set, and of each evaluation split with another source."""
    shown: list[tuple[Split, Prompt]] = []
    for split in _splits_to_show(config.data, task):
        if split == "train" and isinstance(task.train, MixedPrompts):
            shown += [("train", prompts[0]) for prompts in task.train.sets.values()]
        else:
            shown.append((split, {"train": task.train, "test": task.test, "ood": task.ood}[split][0]))
    return [_example(config, task, data, split, prompt) for split, prompt in shown]


def example_lines(config: Config, task: Task, data: LoadedData, whole: bool = False) -> list[str]:
    """Lines for the log: solutions of the data that are not shown or are cut, then all examples; `whole` does not
    shorten these."""
    examples = [line for example in shown_examples(config, task, data) for line in example.lines(whole)]
    return [*advice_lines(config, task, data), *task.solutions.notes(config), *examples]


def advice_lines(config: Config, task: Task, data: LoadedData) -> Iterator[str]:
    """Lines about settings that are legal and hardly meant: solutions of the data that nobody sees, the demo's model on
    other questions, the demo's learning rate for a pretrained model."""
    places = data.splits["train"].places if "train" in data.splits else {}
    own = [prompt.question for prompt in task.train if places.get(prompt.id)]
    unseen = sum(question.solution is not None for question in own)
    source = config.privileged.source
    if unseen and resolve_method(config).shows_solutions and not source.reads_data:
        yield (
            f"note: {unseen:,} of {len(own):,} training records have a solution, which the teacher does not see with "
            f"privileged.source={source.value}; with dataset or sibling_or_dataset it does"
        )
    if config.model.path == MINISCI and own:
        yield (
            "note: model.path=minisci answers hardly anything but MiniSci's questions; for your own set model.path to "
            "a pretrained model"
        )
    rate = config.learner.learning_rate
    if config.model.path != MINISCI and not config.model.lora_rank and rate > HIGH_LEARNING_RATE:
        yield (
            f"warning: learner.learning_rate={rate:g} is high for a pretrained model; 1e-6 to 1e-5 is usual, and the "
            "demo's 3e-4 is for its own small one"
        )
    elif rate > HIGHEST_LEARNING_RATE:
        yield f"warning: learner.learning_rate={rate:g} is high; the demo has 3e-4, adapters have 1e-4 to 1e-3"
    yield from _long_solutions(config, task, own)


def _long_solutions(config: Config, task: Task, questions: Sequence[Question]) -> Iterator[str]:
    """A line about solutions of the data that are longer than a response may be, among the first thousand."""
    room, encode = config.rollout.max_response_tokens, task.prompts.tokenizer.encode
    lengths = [len(encode(question.solution)) for question in questions[:1000] if question.solution]
    if too_long := sum(length > room for length in lengths):
        yield (
            f"note: {too_long:,} of {len(lengths):,} solutions of the data have more than "
            f"rollout.max_response_tokens={room} tokens (the longest {max(lengths):,}); responses as long would be cut"
        )


def _splits_to_show(data: DataConfig, task: Task) -> Iterator[Split]:
    """Splits with prompts whose source is that of no earlier split; a held-out part has the source of train."""
    sources = {split: source for split, source in describe_sources(data).items() if source}
    prompts = {"train": task.train, "test": task.test, "ood": task.ood}
    shown: set[str] = set()
    for split, source in sources.items():
        held_out = split == "test" and data.test != source
        if prompts[split] and not held_out and source not in shown:
            shown.add(source)
            yield split


def _solutions(config: Config, task: Task, question: Question) -> list[str]:
    """Solutions in the teacher's prompt of an example; what only a step will give is named in brackets."""
    source, own = config.privileged.source, task.solutions.texts.get(question.id)
    if source is SolutionSource.answer_only:
        return [answer_form(config.reward).write(question.answer)]
    if source is SolutionSource.other_question:
        return [OTHER_QUESTION]
    if source is SolutionSource.sibling_or_dataset and own is not None:
        return [f"{SIBLING} or, where there is none: {own}"]
    siblings = [SIBLING] if source.shows_siblings else []
    return siblings if own is None else [*siblings, own]


def _example(config: Config, task: Task, data: LoadedData, split: Split, prompt: Prompt) -> ShownExample:
    question, decode = prompt.question, task.prompts.tokenizer.decode
    viewer = "student's prompt" if split == "train" else "prompt"
    texts = {f"{viewer} of {len(prompt.tokens):,} tokens": decode(prompt.tokens)}
    if split == "train" and resolve_method(config).shows_solutions:
        solutions, feedback = _solutions(config, task, question), config.privileged.feedback
        tokens = task.prompts.privileged(question, solutions, FEEDBACK if feedback else None)
        name = f"teacher's prompt of {len(tokens):,} tokens (privileged.source={config.privileged.source.value})"
        texts[name] = decode(tokens) if solutions or feedback else UNLEARNED
    loaded = data.splits[split]
    place = loaded.places.get(question.id)
    return ShownExample(
        title=f"{split}: {question.id}" + (f" ({place})" if place else ""),
        texts=texts | {"expected answer": question.answer},
        withheld=question.id in loaded.withheld,
    )


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
        example = f": the answer {quoted(question.answer)}, written as {quoted(first.written)}{read}"
        example = "" if question.id in loaded.withheld else example
        reasons = ", ".join(f"{reason} ({count:,})" for reason, count in result.reasons.items())
        found = (
            f"reward={reward.name} marks the expected answer of {len(result.wrong):,} of {result.checked:,} {split} "
            f"records wrong: {reasons}. First: {loaded.places.get(question.id) or question.id}{example}."
        )
        if is_built_in(reward) and result.mostly_wrong:
            raise DataError(f"{found} {likely_fix(reward, result.wrong)}")
        lines.append(f"warning: {found} They stay in the data; mend or remove them, since no response can be right.")
    asking = REQUESTS.get(reward.name)
    own = [prompt.question for prompt in prompts if loaded.places.get(prompt.id)]
    lines += doubt_lines(split, own, loaded.places)
    if asking and own and result.unasked:
        lines.append(
            f"warning: {result.unasked:,} of {result.questions:,} {split} prompts ask for no form of an answer, and "
            f"reward={reward.name} reads {answer_form(reward.name).write('X')}. Unless the model answers so by itself, "
            f"ask for it in data.suffix: {asking!r}"
        )
    return lines
