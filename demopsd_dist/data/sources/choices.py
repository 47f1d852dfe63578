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
from demopsd_dist.data.sources.items import ParsedQuestion, RefusedRecord, SourceRecord, chosen_or_usual
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
AMBIGUOUS = "the answer names one option by its letter or index and another by its text"
_ANSWERS = ("answerKey", "answer", "answer_idx", "label", "answer_index")
_LESS_USUAL_ANSWERS = ("answer_letter", "correct")  # read where there is none of the others
_NO_IMAGE = re.compile(r"(?:has|is|num|n)_.*|.*_(?:count|size|id)")
_LETTER = re.compile(r"\(?([A-Ja-j])(?:\)?[.:]?|\.\)?)")
_LABELS = ("label", "key", "letter", "id")


def recognises(values: dict[str, Any]) -> bool:
    """True where a record has a question and options in fields of their own."""
    is_listed = any(values.get(name) and isinstance(values[name], (list, dict)) for name in OPTIONS)
    return any(name in values for name in QUESTIONS) and (is_listed or bool(lettered(values)))


def lettered(values: dict[str, Any]) -> list[str]:
    """Names of the fields `A`, `B` and so on that hold options; empty where there are fewer than two, or the answer is
    not one of these letters."""
    names = [name for name in multiple_choice.LETTERS if values.get(name) not in (None, "")]
    answers = {letter_of(str(values[name])) for name in _ANSWERS if values.get(name) not in (None, "")}
    return names if names[:2] == ["A", "B"] and answers & set(names) else []


def letter_of(answer: str) -> str | None:
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
    text = record.required_text(*chosen_or_usual(names.text, (*QUESTIONS, "prompt")))
    labels, options = _labelled_options(record)
    if not 2 <= len(options) <= len(multiple_choice.LETTERS):
        return RefusedRecord(f"there are {len(options)} options, not 2 to {len(multiple_choice.LETTERS)}")
    if multiple_choice.repeated_option(options):
        return RefusedRecord(multiple_choice.REPEATED)
    answers = _given_answers(record, names)
    named = [_named_options(answer, labels, options) for answer in answers.values()]
    if not all(named):
        is_number = len(answers) == 1 and type(answer := next(iter(answers.values()))) is int and answer == len(options)
        return RefusedRecord(ONE_TOO_MANY if is_number else NOT_AMONG)
    common = set.intersection(*named)
    if len(common) != 1:
        return RefusedRecord(AMBIGUOUS if common else f"{' and '.join(answers)} name different options")
    index = common.pop()
    question = Question(
        id=record.id(record.optional_label(*chosen_or_usual(names.id, ("question_id", "id", "idx")))),
        text=multiple_choice.options_text(text, options),
        answer=multiple_choice.LETTERS[index],
        field=record.label(names.field, "field", "subject", "category", "domain") or "all",
        system=multiple_choice.options_system(len(options)),
        solution=None if names.solution is None else record.optional_text(names.solution),
    )
    level = record.optional_label(names.level or "level")
    return ParsedQuestion(question, level=level, type=f"mcq-{len(options)}-choices")


def _given_answers(record: SourceRecord, names: FieldNames) -> dict[str, Any]:
    """The fields of a record that hold an answer.

    Raises:
        DataError: there is none.
    """
    usual = chosen_or_usual(names.answer, _ANSWERS)
    for answers in (usual, _LESS_USUAL_ANSWERS if names.answer is None else ()):
        if given := {name: value for name in answers if (value := record.value(name)) not in (None, "")}:
            return given
    raise DataError(f"{record.where}: {record.absence(usual, advice='Add it')}")


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
    others = (value for other, value in record.values.items() if other != name)
    return isinstance(text, str) and any(text.strip() in whole for other in others for whole in _texts_in(other))


def _texts_in(value: Any) -> list[str]:
    """A text, or the texts of a list of messages."""
    if isinstance(value, list):
        return [text for one in value if isinstance(one, dict) for text in one.values() if isinstance(text, str)]
    return [value] if isinstance(value, str) else []


def refuse_more_of_the_question(record: SourceRecord, otherwise: str) -> None:
    """Refuse a record with a text or an image that belongs to its question and would be left out.

    Args:
        otherwise: setting that leaves it out, and says so.

    Raises:
        DataError: names the field.
    """
    for name, value in record.values.items():
        folded = name.strip().casefold()
        if folded not in MORE_OF_A_QUESTION and ("image" not in folded or _NO_IMAGE.fullmatch(folded)):
            continue
        if value in (None, [], {}, "") or isinstance(value, (int, float)):
            continue
        if not is_in_another_text(record, name):
            raise DataError(
                f"{record.where}: {name!r} seems to belong to the question, and would be left out. Put all of the "
                f"question into one field and name it in data.fields.text; {otherwise}."
            )


def _named_options(answer: Any, labels: list[str], options: list[str]) -> set[int]:
    """Indices of the options that an answer may name: a number from 0, a label, a letter such as `(B)`, or the option's
    text. A label as it is written names one option, whatever the texts are."""
    if isinstance(answer, bool) or not isinstance(answer, (int, str)):
        return set()
    text = str(answer).strip()
    if labels.count(text) == 1:
        return {labels.index(text)}
    if isinstance(answer, int):
        return {answer} if 0 <= answer < len(labels) else set()
    folded = [label.casefold() for label in labels]
    letter = (letter_of(text) or "").casefold()
    found = {folded.index(letter)} if folded.count(letter) == 1 else set()
    if options.count(text) == 1:
        is_index = text.isdecimal() and int(text) < len(labels)
        found |= {options.index(text)} | ({int(text)} if is_index else set())
    return found
