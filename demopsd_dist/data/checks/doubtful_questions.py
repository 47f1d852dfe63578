"""Questions and answers that are legal and hardly meant: lines for the log, with the number and the first place."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from demopsd_dist.data.records import Question
from demopsd_dist.data.rewards.extraction import drop_invisible
from demopsd_dist.data.sources.selection import normalized_text

PLACEHOLDERS = frozenset(
    (
        *("proof", "notfound", "not found", "null", "none", "n/a", "nan", "unknown", "tbd", "todo"),
        *("-", ".", "?", "$$", "[]", "{}"),
    )
)
"""Answers that stand for a missing one, in lower case."""
MOST = 0.5
"""Share of answers with more than a short text above which they are named."""
ANSWER_CHARS = 400
_IMAGE = re.compile(r"<image(?: ?\d+)?>|<img[ >]|(?<!\\)!\[[^\]\n]{0,200}\]\([^)\n]{1,500}\)")
_TURN = re.compile(r"<\|(?:im_start|im_end|user|assistant|start_header_id|eot_id)\|>|<start_of_turn>|\[/?INST\]")


def doubt_lines(split: str, questions: Sequence[Question], places: Mapping[str, str]) -> Iterator[str]:
    """Lines about a split's questions that are doubtful.

    Args:
        places: place of each question's record by the question's id.
    """

    def line(found: Sequence[Question], what: str, fix: str) -> str:
        first = places.get(found[0].id) or found[0].id
        return f"warning: {len(found):,} of {len(questions):,} {split} {what} (first: {first}). {fix}"

    if found := [one for one in questions if _is_placeholder(one.answer)]:
        what = f"answers are placeholders such as {found[0].answer!r}"
        yield line(found, what, "Remove these records, unless their questions ask for it.")
    if len(found := [one for one in questions if _is_long(one.answer)]) > MOST * len(questions):
        what = f"answers have several lines, a box in a text or more than {ANSWER_CHARS} characters"
        yield line(found, what, "A response must repeat all of it: name the field of the final answer alone.")
    if found := _with(questions, _TURN.search):
        fix = "They are read as text inside a turn: give each prompt as a list of messages with role and content."
        yield line(found, "prompts hold a chat template's marks, such as <|im_start|>", fix)
    if found := _with(questions, _IMAGE.search):
        yield line(found, "prompts refer to an image", "The model gets the text alone.")
    yield from _repetition_lines(split, questions, places)


def _repetition_lines(split: str, questions: Sequence[Question], places: Mapping[str, str]) -> Iterator[str]:
    """Lines about questions that occur several times: with the same answer, and with another."""
    firsts: dict[tuple[str, str | None], Question] = {}
    pairs = []
    for question in questions:
        first = firsts.setdefault((normalized_text(question), question.system), question)
        if first is not question:
            pairs.append((first, question))
    if not pairs:
        return
    conflicts = [(first, other) for first, other in pairs if first.answer.strip() != other.answer.strip()]
    earlier, later = (places.get(one.id) or one.id for one in (conflicts or pairs)[0])
    kind, conflict, fix = "note", "", ""
    if conflicts:
        kind, conflict = "warning", f", {len(conflicts):,} of them with another answer"
        fix = " A response is right for one of the two alone: correct or remove one."
    yield (
        f"{kind}: {len(pairs):,} of {len(questions):,} {split} questions repeat an earlier one{conflict} "
        f"(first: {later}, after {earlier}).{fix}"
    )


def _with(questions: Sequence[Question], search: Callable[[str], object]) -> list[Question]:
    return [one for one in questions if search(one.text) or any(search(said) for _, said in one.history)]


def _is_placeholder(answer: str) -> bool:
    plain = " ".join(drop_invisible(answer).split()).casefold()
    return not plain or plain in PLACEHOLDERS


def _is_long(answer: str) -> bool:
    answer = answer.strip().strip("$")
    is_boxed = "\\boxed{" in answer and not answer.startswith("\\boxed{")
    return ("\n" in answer and "\\begin{" not in answer) or is_boxed or len(answer) > ANSWER_CHARS
