"""Multiple choice as it is published: MMLU, MMLU-Pro, ARC and others with options in a field of their own.

The options are in `choices` or `options`: a list of texts or of `{"label": ..., "text": ...}`, a mapping `{"text":
[...], "label": [...]}` or one of letters to texts; or in fields `A`, `B` and so on, as C-Eval has them. The answer is
the index of an option (from 0), its label or letter, or its text.
"""

from __future__ import annotations

import re
from typing import Any

from demopsd_dist.config import FieldNames
from demopsd_dist.data.records import Question
from demopsd_dist.data.sources import multiple_choice
from demopsd_dist.data.sources.items import ParsedQuestion, RefusedRecord, SourceRecord
from demopsd_dist.util.errors import DataError

OPTIONS = ("choices", "options")
QUESTIONS = ("question", "question_stem", "problem", "query", "stem")
MORE_OF_A_QUESTION = {
    *("context", "passage", "article", "paragraph", "story", "premise", "background", "support", "document", "table"),
    *("contexts", "passages", "paragraphs", "premises", "documents", "tables", "body", "theory", "dialogue"),
    *("pre_text", "post_text", "starter_code", "audio", "video", "img", "figure", "diagram"),
}
"""Fields of known data sets (SQuAD, RACE, DROP, SciQ, ScienceQA, ASDiv, FinQA and others) without which a question has
no answer, as is each field whose name holds `image`."""
NOT_AMONG = "the answer is not among the choices"
ONE_TOO_MANY = "the answer is the number of the choices, which are counted from 0"
_ANSWERS = ("answerKey", "answer", "answer_idx", "label", "answer_index", "answer_letter", "correct")
_LETTER = re.compile(r"\(?([A-Ja-j])(?:\)?[.:]?|\.\)?)")
_LABELS = ("label", "key", "letter", "id")


def recognises(values: dict[str, Any]) -> bool:
    """True where a record has a question and options in fields of their own."""
    has_options = any(isinstance(values.get(name), (list, dict)) for name in OPTIONS) or bool(lettered(values))
    return any(name in values for name in QUESTIONS) and has_options


def lettered(values: dict[str, Any]) -> list[str]:
    """Names of the fields `A`, `B` and so on that hold options; empty where there are fewer than two, or the answer is
    not one of these letters."""
    names = [name for name in multiple_choice.LETTERS if values.get(name) not in (None, "")]
    answers = {_letter(str(values[name])) for name in _ANSWERS if values.get(name) not in (None, "")}
    return names if names[:2] == ["A", "B"] and answers & set(names) else []


def _letter(answer: str) -> str | None:
    """The letter of an answer such as `B`, `b`, `(B)` or `B.`; None for another."""
    match = _LETTER.fullmatch(answer.strip())
    return match and match[1].upper()


def parse(record: SourceRecord, names: FieldNames, is_chosen: bool = True) -> ParsedQuestion | RefusedRecord:
    """Question of a record.

    Args:
        names: fields that the user has named, in place of the usual ones.
        is_chosen: the user has set `data.format=choices`, and takes the question without a text that belongs to it.

    Raises:
        DataError: question, options or answer are missing, or a field has the wrong type.
    """
    if not is_chosen:
        refuse_more_of_the_question(record, "data.format=choices takes the question without it")
    text = record.required_text(*((*QUESTIONS, "prompt") if names.text is None else (names.text,)))
    labels, options = _labelled_options(record)
    if not 2 <= len(options) <= len(multiple_choice.LETTERS):
        return RefusedRecord(f"there are {len(options)} options, not 2 to {len(multiple_choice.LETTERS)}")
    if multiple_choice.repeated_option(options):
        return RefusedRecord(multiple_choice.REPEATED)
    answers = _ANSWERS if names.answer is None else (names.answer,)
    given = [name for name in answers if record.value(name) not in (None, "")]
    if not given:
        raise DataError(f"{record.where}: {record.absence(answers, advice='Add it')}")
    chosen = {_index(record.value(name), labels, options) for name in given}
    if None in chosen:
        counted = len(given) == 1 and type(answer := record.value(given[0])) is int and answer == len(options)
        return RefusedRecord(ONE_TOO_MANY if counted else NOT_AMONG)
    if len(chosen) > 1:
        return RefusedRecord(f"{' and '.join(given)} name different options")
    index = chosen.pop()
    assert index is not None
    question = Question(
        id=record.id(record.optional_label(*(("question_id", "id", "idx") if names.id is None else (names.id,)))),
        text=multiple_choice.options_text(text, options),
        answer=multiple_choice.LETTERS[index],
        field=_field(record, names) or "all",
        system=multiple_choice.options_system(len(options)),
        solution=None if names.solution is None else record.optional_text(names.solution),
    )
    level = record.optional_label(names.level or "level")
    return ParsedQuestion(question, level=level, type=f"mcq-{len(options)}-choices")


def _field(record: SourceRecord, names: FieldNames) -> str | None:
    usual = ("field", "subject", "category", "domain")
    return record.usual_label(*usual) if names.field is None else record.optional_label(names.field)


def _labelled_options(record: SourceRecord) -> tuple[list[str], list[str]]:
    """Labels and texts of the options; labels are the letters where there are none."""
    name = next((name for name in OPTIONS if isinstance(record.values.get(name), (list, dict))), None)
    if name is None and (text := next((one for one in OPTIONS if isinstance(record.values.get(one), str)), None)):
        raise DataError(f"{record.where}: {text!r} is text, not a list of options. Write a list, or remove the record.")
    letters = lettered(record.values)
    if name is None and not letters:
        raise DataError(f"{record.where}: {record.absence(OPTIONS, advice='Add a list of the options')}")
    value = {letter: record.value(letter) for letter in letters} if name is None else record.value(name)
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        texts, labels = value["text"], [str(label) for label in value.get("label") or multiple_choice.LETTERS]
    elif isinstance(value, dict):
        # Parquet fills labels that a record does not have with null
        filled = {str(label): text for label, text in value.items() if text is not None}
        texts, labels = list(filled.values()), list(filled)
    elif value and all(isinstance(one, dict) and isinstance(one.get("text"), str) for one in value):
        label = next((one for one in _LABELS if all(option.get(one) is not None for option in value)), None)
        texts = [option["text"] for option in value]
        labels = [str(option[label]) for option in value] if label else list(multiple_choice.LETTERS)
    else:
        texts, labels = value, list(multiple_choice.LETTERS)
    named = {f"{name}[{index}]": text for index, text in enumerate(texts)}
    entries = SourceRecord(named, record.where, record.source, record.number)
    options = [entries.required_text(entry).strip() for entry in named]
    return labels[: len(options)], options


def is_in_another_text(record: SourceRecord, name: str) -> bool:
    """True where a field is a text that another field of the record holds too, as a question that is already whole."""
    text = record.values[name]
    others = (value for other, value in record.values.items() if other != name and isinstance(value, str))
    return isinstance(text, str) and any(text.strip() in other for other in others)


def refuse_more_of_the_question(record: SourceRecord, otherwise: str) -> None:
    """Refuse a record with a text or an image that belongs to its question and would be left out.

    Args:
        otherwise: setting that leaves it out, and says so.

    Raises:
        DataError: names the field.
    """
    for name, value in record.values.items():
        folded = name.strip().casefold()
        if folded not in MORE_OF_A_QUESTION and "image" not in folded:
            continue
        if value in (None, [], {}, "") or isinstance(value, (int, float)):
            continue
        if not is_in_another_text(record, name):
            raise DataError(
                f"{record.where}: {name!r} seems to belong to the question, and would be left out. Put all of the "
                f"question into one field and name it in data.fields.text; {otherwise}."
            )


def _index(answer: Any, labels: list[str], options: list[str]) -> int | None:
    """Index of the option that an answer names: a number from 0, a label, a letter such as `(B)`, or the option's text;
    None where it names none, or may name two."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        return answer if 0 <= answer < len(labels) and str(answer) not in labels else _only(str(answer), labels)
    if not isinstance(answer, str):
        return None
    answer = answer.strip()
    by_text = _only(answer, options)
    readings = [_only(answer, labels), _only(_letter(answer), labels)]
    by_label = next((index for index in readings if index is not None), None)
    if by_label is not None:
        return by_label if by_text in (None, by_label) else None
    is_number = answer.isdecimal() and int(answer) < len(labels)  # perhaps an index
    return None if is_number and by_text != int(answer) else by_text


def _only(text: str | None, among: list[str]) -> int | None:
    """Index of a text that occurs once; None for another."""
    return among.index(text) if text is not None and among.count(text) == 1 else None
