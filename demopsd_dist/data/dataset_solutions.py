"""Solutions of the data set that the teacher may see: checked as a sibling's is, and counted where they may not.

A solution is shown without its thought. Where the reward reads an answer in the rest, that must be the expected one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from demopsd_dist.config import Config, train_text
from demopsd_dist.data.examples import SUCCESS
from demopsd_dist.data.prompts import PromptBuilder
from demopsd_dist.data.records import Question, RewardResult
from demopsd_dist.data.rewards import ANSWER_FORMS, Reward
from demopsd_dist.data.thinking import holds_thought, strip_thinking
from demopsd_dist.util.errors import DataError

MISSING = "have none"
ALL_THOUGHT = "have one that is all thought"
OTHER_ANSWER = "have one with another answer than the expected one"
_EXAMPLES = 3


@dataclass(frozen=True)
class DatasetSolutions:
    """Solutions of the training questions that may be shown.

    Attributes:
        texts: solution without its thought, by question id.
        left_out: ids of the questions without a solution to show, by reason.
        cut: ids of the questions whose solution is longer than privileged.max_tokens allows.
    """

    texts: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    cut: Sequence[str] = ()

    def notes(self, config: Config) -> list[str]:
        """Lines for the log about solutions that are not shown, or not whole."""
        count = len(self.texts) + sum(map(len, self.left_out.values()))
        source = f"privileged.source={config.privileged.source.value}"
        lines = [
            f"{source}: {len(ids)} of {count} training questions {reason} ({_some(ids)}); theirs is never shown"
            for reason, ids in self.left_out.items()
        ]
        if self.cut:
            lines.append(
                f"{source}: {len(self.cut)} of {len(self.texts)} solutions are longer than privileged.max_tokens="
                f"{config.privileged.max_tokens} allows and are cut from the right ({_some(self.cut)})"
            )
        return lines


def dataset_solutions(
    config: Config, questions: Sequence[Question], builder: PromptBuilder, reward: Reward
) -> DatasetSolutions:
    """The solutions of the training questions, where `privileged.source` shows them; none otherwise.

    Raises:
        DataError: no question has a solution that may be shown.
    """
    if not config.privileged.source.reads_data:
        return DatasetSolutions()
    texts, cut = {}, []
    left_out: dict[str, list[str]] = {}
    for question in questions:
        if (reason := reason_to_leave_out(question, reward)) is not None:
            left_out.setdefault(reason, []).append(question.id)
            continue
        texts[question.id] = strip_thinking(question.solution or "")
        if builder.privileged_or_cut(question, texts[question.id])[1]:
            cut.append(question.id)
    if questions and not texts:
        counts = Counter({reason: len(ids) for reason, ids in left_out.items()})
        listed = ", ".join(f"{count} {reason}" for reason, count in counts.items())
        named = config.data.fields.solution
        read = f"data.fields.solution={named}" if named else "data.fields.solution=null, the names of docs/data.md"
        raise DataError(
            f"privileged.source={config.privileged.source.value} shows solutions of the data set, and of "
            f"{len(questions)} questions of data.train={train_text(config.data)} {listed} ({read}). Name the field in "
            "data.fields.solution, or set privileged.source=sibling."
        )
    return DatasetSolutions(texts, left_out, cut)


def reason_to_leave_out(question: Question, reward: Reward) -> str | None:
    """Reason that the question's solution is not shown; None where it may be.

    A built-in reward checks the answer that it reads outside the thought, if there is one. `gsm8k` reads an answer only
    after a `####`, since the last number of a working need not be the answer. A reward of the user's own is asked only
    where there is a thought, as for a sibling.
    """
    if not (question.solution or "").strip():
        return MISSING
    text = strip_thinking(question.solution or "")
    if not text:
        return ALL_THOUGHT
    if reward.name not in ANSWER_FORMS:
        asked = holds_thought(question.solution or "")
    else:
        asked = reward.extract(text) is not None and (reward.name != "gsm8k" or "####" in text)
    if not asked:
        return None
    result = reward.result_of(text, question)
    return None if isinstance(result, RewardResult) and result.reward >= SUCCESS else OTHER_ANSWER


def _some(ids: Sequence[str]) -> str:
    """The first ids, for a message."""
    return ", ".join(ids[:_EXAMPLES]) + (", ..." if len(ids) > _EXAMPLES else "")
