"""Multiple choice as it is published: MMLU, MMLU-Pro, ARC and others with options in a field of their own.

The options are in `choices` or `options`: a list, `{"text": [...], "label": [...]}`, or a mapping of letters to texts;
or in fields `A`, `B` and so on, as C-Eval has them. The answer is the index of an option (from 0), its label or letter.
"""

from __future__ import annotations

from typing import Any

from demopsd_dist.data.records import Question
from demopsd_dist.data.sources import multiple_choice
from demopsd_dist.data.sources.items import ParsedQuestion, RefusedRecord, SourceRecord
from demopsd_dist.util.errors import DataError

OPTIONS = ("choices", "options")
MORE_OF_A_QUESTION = (
    *("context", "passage", "article", "paragraph", "story", "premise", "background", "support", "document", "table"),
    *("image", "images", "image_1", "audio", "video"),
)
"""Fields of known data sets (SQuAD, RACE, DROP, SciQ, MMMU and others) without which a question has no answer."""
_ANSWERS = ("answerKey", "answer", "answer_idx", "label", "answer_index")


def recognises(values: dict[str, Any]) -> bool:
    """True where a record has a question and options in fields of their own."""
    has_options = any(isinstance(values.get(name), (list, dict)) for name in OPTIONS) or bool(lettered(values))
    return "question" in values and has_options


def lettered(values: dict[str, Any]) -> list[str]:
    """Names of the fields `A`, `B` and so on that hold options; empty where there are fewer than two, or the answer is
    not one of these letters."""
    names = [name for name in multiple_choice.LETTERS if values.get(name) not in (None, "")]
    answers = {str(values[name]).strip() for name in _ANSWERS if values.get(name) not in (None, "")}
    return names if names[:2] == ["A", "B"] and answers & set(names) else []


def parse(record: SourceRecord, is_chosen: bool = True) -> ParsedQuestion | RefusedRecord:
    """Question of a record.

    Args:
        is_chosen: the user has set `data.format=choices`, and takes the question without a text that belongs to it.

    Raises:
        DataError: question, options or answer are missing, or a field has the wrong type.
    """
    if not is_chosen:
        refuse_more_of_the_question(record, "data.format=choices takes the question without it")
    text = record.required_text("question", "prompt")
    labels, options = _labelled_options(record)
    if not 2 <= len(options) <= len(multiple_choice.LETTERS):
        return RefusedRecord(f"there are {len(options)} options, not 2 to {len(multiple_choice.LETTERS)}")
    if multiple_choice.repeated_option(options):
        return RefusedRecord(multiple_choice.REPEATED)
    given = [name for name in _ANSWERS if record.values.get(name) not in (None, "")]
    if not given:
        raise DataError(f"{record.where}: {record.absence(_ANSWERS, advice='Add it')}")
    chosen = {_index(record.value(name), labels) for name in given}
    if None in chosen:
        return RefusedRecord("the answer is not among the choices")
    if len(chosen) > 1:
        return RefusedRecord(f"{' and '.join(given)} name different options")
    index = chosen.pop()
    assert index is not None
    question = Question(
        id=record.id(record.optional_label("question_id", "id", "idx")),
        text=multiple_choice.options_text(text, options),
        answer=multiple_choice.LETTERS[index],
        field=record.optional_label("field", "subject", "category", "domain") or "all",
        system=multiple_choice.options_system(len(options)),
    )
    return ParsedQuestion(question, level=record.optional_label("level"), type=f"mcq-{len(options)}-choices")


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
    for name in MORE_OF_A_QUESTION:
        value = record.values.get(name)
        if value in (None, [], {}, "") or isinstance(value, (int, float)):
            continue
        if not is_in_another_text(record, name):
            raise DataError(
                f"{record.where}: {name!r} seems to belong to the question, and would be left out. Put all of the "
                f"question into one field and name it in data.fields.text; {otherwise}."
            )


def _index(answer: Any, labels: list[str]) -> int | None:
    """Index of the option that an answer names: a number from 0, or a label; None where it names none."""
    if isinstance(answer, int) and not isinstance(answer, bool):
        return answer if 0 <= answer < len(labels) and str(answer) not in labels else _label_index(str(answer), labels)
    return _label_index(answer.strip(), labels) if isinstance(answer, str) else None


def _label_index(label: str, labels: list[str]) -> int | None:
    return labels.index(label) if labels.count(label) == 1 else None
