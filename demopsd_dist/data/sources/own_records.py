"""Parser of your own data (`data.format=records`), and of data sets with a question, an answer and a solution.

A record has a question and an answer; a system message, field, level, type, id and solution are optional. Fields are
found by the default names below, or by the names that `data.fields` sets. The names cover GSM8K, MATH (`problem`,
`solution`), verl (`prompt`, `reward_model.ground_truth`), TRL (`prompt`, `messages`, `completion`), OpenRLHF (`input`,
`label`), ShareGPT (`conversations`), Alpaca (`instruction`), and SciKnowEval exported as question and answer.
"""

from __future__ import annotations

import ast
import json
import re
from contextlib import suppress
from typing import Any

from demopsd_dist.config import FieldNames
from demopsd_dist.data.records import Question
from demopsd_dist.data.sources import choices
from demopsd_dist.data.sources.conversations import Conversation, conversation
from demopsd_dist.data.sources.items import ParsedQuestion, SourceRecord, chosen_or_usual
from demopsd_dist.data.sources.solutions import MARK, answer_in_solution, split_marked
from demopsd_dist.util.errors import DataError

DEFAULT_FIELD_NAMES = {
    "text": ("prompt", "question", "problem", "input", "messages", "conversations", "instruction"),
    "answer": ("answer", "expected_answer", "reward_model.ground_truth", "ground_truth", "label"),
    "solution": ("solution", "completion", "extra_info.answer"),
    "field": ("field", "domain", "dataset", "subject", "category", "data_source"),
    "id": ("id", "idx"),
    "system": ("system",),
    "level": ("level",),
    "type": ("type", "kind"),
}

_NUMBERED_OPTION = re.compile(
    r"(?P<stem>(?:opt?|options?|choices?|alternatives?|candidates?|endings?|distractors?|sol|(?P<answer>ans|answers?))"
    r"[_ -]?)([a-j]|(?(answer)(?!)|\d))",
    re.IGNORECASE,
)
"""Names of fields that hold an option each, such as `opa`, `Option A`, `answerB` and `distractor2`."""
_LISTED_OPTIONS = ("choice", "option", "candidates", "alternatives", "endings", "answer_choices", "answer_options")
"""Names of lists of options other than those that `data.format=choices` reads, in lower case."""
_STORED_CHAT = re.compile(r"\s*\[\s*\{\s*['\"](?:role|content|from|value)['\"]\s*:")


def parse(record: SourceRecord, names: FieldNames) -> ParsedQuestion:
    """Parse a record into a question.

    Raises:
        DataError: the question or the answer is missing or not text, or another field has the wrong type; or the record
            has options, which `data.format=choices` reads.
    """

    def names_of(part: str) -> tuple[str, ...]:
        return chosen_or_usual(getattr(names, part), DEFAULT_FIELD_NAMES[part])

    if names.text is None:
        _refuse_options(record)
        choices.refuse_more_of_the_question(record, "data.fields.text with the question's field takes it without")
        _refuse_two_parts(record)
    chat = _question(record, names_of("text"))
    answer, solution = _answer_and_solution(record, names_of("answer"), names_of("solution"), chat.reply)

    system = record.optional_text(*names_of("system"))
    if system is not None and chat.system is not None and system != chat.system:
        name = names_of("system")[0]
        raise DataError(f"{record.where}: {name!r} and the chat have different system messages. Keep one.")
    return ParsedQuestion(
        Question(
            id=record.id(record.optional_label(*names_of("id"))),
            text=chat.text,
            answer=answer,
            field=record.label(names.field, *DEFAULT_FIELD_NAMES["field"]) or "all",
            system=chat.system if system is None else system,
            history=chat.history,
            solution=solution,
        ),
        level=record.label(names.level, *DEFAULT_FIELD_NAMES["level"]),
        type=record.label(names.type, *DEFAULT_FIELD_NAMES["type"]),
    )


def _refuse_options(record: SourceRecord) -> None:
    """Refuse a record whose options would be left out of the question."""
    for name in choices.OPTIONS:
        options = record.values.get(name)
        if isinstance(options, (list, dict, str)) and options and not choices.is_in_another_text(record, name):
            raise DataError(
                f"{record.where}: the record has options in {name!r}, which data.format=records leaves out. "
                + ("Write them as a list" if isinstance(options, str) else "Set data.format=choices")
                + ", or name the field of the whole question in data.fields.text."
            )
    if letters := choices.lettered(record.values):
        raise DataError(
            f"{record.where}: the record has options in {', '.join(letters)}, which data.format=records leaves out. "
            "Set data.format=choices, or name the field of the whole question in data.fields.text."
        )
    if several := _other_options(record) or _numbered_options(record):
        raise DataError(
            f"{record.where}: the record has options in {', '.join(several)}, which data.format=records leaves out. "
            "Write them as a list in 'choices', or name the field of the whole question in data.fields.text."
        )


def _other_options(record: SourceRecord) -> list[str]:
    """Names of fields with options that `data.format=choices` does not read: lists, or texts in `a`, `b` and so on. Of
    names that may mean something else, the answer must be among the options, as a text, a letter or an index."""
    given = record.first_value(*DEFAULT_FIELD_NAMES["answer"])
    answer = "" if given is None else str(given[1]).strip()
    letter = choices.letter_of(answer)
    folded = {name.strip().casefold(): name for name, value in record.values.items() if value not in (None, "", [], {})}
    index = int(answer) if answer.isdecimal() and len(answer) < 3 else None

    def holds_answer(options: Any) -> bool:
        is_index = index is not None and isinstance(options, (list, dict)) and index < len(options)
        return isinstance(options, (list, dict)) and (letter is not None or answer in options or is_index)

    listed = [folded[name] for name in (*choices.OPTIONS, *_LISTED_OPTIONS) if name in folded]
    if lists := [name for name in listed if holds_answer(record.values[name])]:
        return lists
    letters = [folded[one] for one in "abcdefghij" if one in folded]
    texts = [record.values[name] for name in letters]
    is_among = (letter is not None and letter.lower() in folded) or answer in texts
    return letters if {"a", "b"} <= set(folded) and is_among and all(isinstance(text, str) for text in texts) else []


def _numbered_options(record: SourceRecord) -> list[str]:
    """Names of the first family of fields with an option each."""
    families: dict[str, list[str]] = {}
    for name, value in record.values.items():
        if value not in (None, "") and (match := _NUMBERED_OPTION.fullmatch(name)):
            families.setdefault(match["stem"], []).append(name)
    return next((family for family in families.values() if len(family) > 1), [])


def _refuse_two_parts(record: SourceRecord) -> None:
    """Refuse a record in Alpaca's layout, whose question is an instruction and its input, or with one of these beside
    its question."""
    filled = [name for name in ("instruction", "input") if str(record.values.get(name) or "").strip()]
    main = next((name for name in ("prompt", "question", "problem") if record.first_value(name)), None)
    if main is not None:
        filled = [main, *(name for name in filled if not choices.is_in_another_text(record, name))]
    if len(filled) > 1:
        count = {2: "two", 3: "three"}[len(filled)]
        raise DataError(
            f"{record.where}: the question seems to be in {count} fields, {' and '.join(map(repr, filled))}. Put all "
            "of it into one field and name that in data.fields.text."
        )


def _question(record: SourceRecord, names: tuple[str, ...]) -> Conversation:
    """The question as a chat; one of a single message where it is text."""
    found = record.first_value(*names)
    if found is not None and isinstance(found[1], list):
        return conversation(record, *found)
    if found is not None and isinstance(found[1], str) and _STORED_CHAT.match(found[1]):
        raise DataError(
            f"{record.where}: {found[0]!r} is a list of messages that was stored as text, as a CSV file does it. Store "
            "it as a list, in .jsonl or .parquet."
        )
    return Conversation(None, (), record.required_text(*names), None)


def _answer_and_solution(
    record: SourceRecord, answer_names: tuple[str, ...], solution_names: tuple[str, ...], reply: str | None
) -> tuple[str, str | None]:
    """Expected answer and worked solution: from an answer with `####` both, from a solution its stated answer."""
    solution = _solution(record, solution_names)
    solution = reply if solution is None else solution
    if record.first_value(*answer_names) is None and solution is not None:
        stated = answer_in_solution(solution)
        if stated is None:
            raise DataError(
                f"{record.where}: the record has no {' or '.join(map(repr, answer_names))}, and its solution states no "
                f"answer after {MARK}, in <answer> or in \\boxed{{}}. Add one, or name its field in data.fields.answer."
            )
        return stated, _without_mark(solution)
    answer = _answer(record, answer_names)
    marked = split_marked(answer)
    if marked is not None:
        return marked[1], marked[0] if solution is None else _without_mark(solution)
    if MARK in answer:
        raise DataError(
            f"{record.where}: the answer holds {MARK} but no last line of the form `{MARK} answer`, as GSM8K has it. "
            "Mend the record, or name the field of the answer alone in data.fields.answer."
        )
    return answer, None if solution is None else _without_mark(solution)


def _answer(record: SourceRecord, names: tuple[str, ...]) -> str:
    """Text of the expected answer."""
    found = record.first_value(*names)
    if found is not None and _is_stored_record(found[1]):
        raise DataError(
            f"{record.where}: {found[0]!r} is a record that was stored as text, {found[1][:60]!r}. Store its "
            "'ground_truth' as a field of its own."
        )
    return record.required_text(*names)


def _is_stored_record(value: Any) -> bool:
    """True for a text that writes a mapping with a `ground_truth`, in JSON or as Python does."""
    if not (isinstance(value, str) and value.lstrip().startswith("{") and "ground_truth" in value):
        return False
    for read in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return isinstance(read(value), dict)
    return False


def _solution(record: SourceRecord, names: tuple[str, ...]) -> str | None:
    found = record.first_value(*names)
    if found is None:
        return None
    name, value = found
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):  # OlympiadBench
        return SourceRecord({name: value[0]}, record.where, "", record.number).optional_text(name)
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):  # TRL's completion as a message
        return SourceRecord({name: value[0].get("content")}, record.where, "", record.number).required_text(name)
    return record.optional_text(name)


def _without_mark(solution: str) -> str:
    """A solution without GSM8K's last line, which states the answer in no form that a response is asked for."""
    marked = split_marked(solution)
    return solution if marked is None else marked[0] or solution
