"""Questions of a run from the `data` section of its settings, with a count of every record that is left out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, cast

from demopsd_dist.config import (
    MINISCI,
    SPLIT,
    DataConfig,
    Duplicates,
    FieldNames,
    Format,
    TrainSet,
    train_sets,
    train_text,
)
from demopsd_dist.config.cross_checks import check_layout_has_records
from demopsd_dist.data.records import Question
from demopsd_dist.data.sources import choices, gpqa, own_records, sciknoweval
from demopsd_dist.data.sources.files import read_records
from demopsd_dist.data.sources.gym_tasks import GYM, gym_questions
from demopsd_dist.data.sources.items import LoadedSource, ParsedQuestion, RefusedRecord, SourceRecord, has_field
from demopsd_dist.data.sources.selection import (
    DuplicateQuestions,
    find_duplicates,
    normalized_text,
    refused_by_filters,
    split_held_out,
)
from demopsd_dist.minisci.tasks import Split, questions
from demopsd_dist.util.errors import DataError

Parse = Callable[[SourceRecord], ParsedQuestion | RefusedRecord]
SPLITS: tuple[Split, ...] = ("train", "test", "ood")
MINISCI_SPLITS = ("train", "validation", "test", "ood")
HELD_OUT = "held out for data.test"
CHANCE = 2
"""Number of records whose answer is one too large, above which all answers of a source seem to count from 1."""
DUPLICATE = "is also in a test set"


@dataclass(frozen=True)
class LoadedData:
    """All splits of a run; a split without a source is empty.

    Attributes:
        duplicates: test and ood questions that are also in the training set as it was read, before any were dropped.
        train_sets: the training sets, where there are several.
    """

    splits: dict[Split, LoadedSource]
    duplicates: list[DuplicateQuestions]
    train_sets: Sequence[TrainSet] = ()

    @property
    def questions(self) -> dict[Split, list[Question]]:
        return {split: loaded.questions for split, loaded in self.splits.items()}

    def notes(self) -> list[str]:
        """Lines for the log: one for each of several training sets, one for each split with records left out, one for
        each split with duplicates."""
        counts = Counter(set_label(question) for question in self.splits["train"].questions)
        weights = sum(one.weight for one in self.train_sets)
        lines = [
            f"train set {one.label}: {counts[one.label]:,} records of {one.path}, weight {one.weight:g}: "
            f"{one.weight / weights:.1%} of the questions drawn"
            for one in self.train_sets
        ]
        lines += [
            f"left out {loaded.refused.total()} of {loaded.records} {split} records: {loaded.refusal_summary()}"
            for split, loaded in self.splits.items()
            if loaded.refused
        ]
        lines += [
            f"fields of {split} records that are not read: {loaded.unread_summary()}"
            for split, loaded in self.splits.items()
            if loaded.unread
        ]
        dropped = "; dropped from train" if self._dropped else ""
        return lines + [f"{duplicates.summary()}{dropped}" for duplicates in self.duplicates]

    def summary(self) -> dict[str, Any]:
        """Counts for `summary.json`: records left out by split and reason, duplicates by split."""
        return {
            "left_out_records": {split: dict(loaded.refused) for split, loaded in self.splits.items()},
            "questions_also_in_train": {duplicates.split: len(duplicates.pairs) for duplicates in self.duplicates},
        }

    @property
    def _dropped(self) -> bool:
        return self.splits["train"].refused[DUPLICATE] > 0


def describe_sources(data: DataConfig) -> dict[Split, str | None]:
    """The source of each split, for the log."""
    train = train_text(data)
    test = f"{data.test_fraction:g} of {train}" if _holds_out_test(data) else data.test
    return {"train": train, "test": test, "ood": data.ood}


def load_data(data: DataConfig) -> LoadedData:
    """Load all splits, hold out a test set if so configured, and look for duplicates.

    Raises:
        DataError: a source is missing, empty or broken (the message names file and line), nothing of it is left, or
            test questions are also in train and `data.duplicates` is `refuse`.
        ConfigError: settings of a layout, and no set with records.
    """
    check_layout_has_records(data)
    splits: dict[Split, LoadedSource] = {split: load_split(data, split) for split in SPLITS}
    if _holds_out_test(data):
        splits["train"], splits["test"] = _hold_out_test(data, splits["train"])
    compared = [find_duplicates(splits["train"].questions, split, splits[split].questions) for split in SPLITS[1:]]
    duplicates = [one for one in compared if one.pairs]
    if duplicates and data.duplicates is Duplicates.refuse:
        raise DataError(
            f"data.duplicates=refuse: {'; '.join(one.summary() for one in duplicates)}. Remove them, or set "
            "data.duplicates=drop."
        )
    every = data.duplicates is Duplicates.drop
    if texts := {normalized_text(test) for one in duplicates for test, train in one.pairs if every or train.task}:
        splits["train"] = _drop_duplicates(splits["train"], texts)
        _refuse_empty(splits["train"], f"data.train={train_text(data)}")
    for one in (sets := train_sets(data)):
        if one.label not in {set_label(question) for question in splits["train"].questions}:
            raise DataError(
                f"data.train: no record of {one.path} is left after data.test and data.duplicates took theirs. Take it "
                "out of the list, or set data.test to another source."
            )
    return LoadedData(splits, duplicates, sets)


def load_source(data: DataConfig, split: Split, source: str) -> LoadedSource:
    """Load one source, which may leave no question. Filters apply to train and test alone.

    Raises:
        DataError: the source is missing, empty or broken, or two of its records have the same id.
    """
    if source.partition(":")[0] == MINISCI:
        return _filter_and_count(_minisci_questions(data, split, source), data, split)
    if source.partition(":")[0] == GYM:
        items = (_with_data_settings(item, getattr(item, "where", ""), data) for item in gym_questions(source, split))
        return _filter_and_count(items, data, split)
    records = read_records(source, f"data.{split}", "train" if split == "train" else "test")
    first = next(records, None)
    if first is None:
        raise DataError(f"data.{split}={source} holds no record. Name a source with one record per line or row.")
    parse = question_parser(first, data, is_train=split == "train")
    unread: Counter[str] = Counter()
    unseen = {name: part for part, name in asdict(data.fields).items() if name is not None}

    def parsed() -> Iterator[ParsedQuestion | RefusedRecord]:
        for record in chain([first], records):
            item = parse(record)
            unread.update(record.unread())
            for name in [name for name in unseen if has_field(record.values, name)]:
                del unseen[name]
            yield _with_data_settings(item, record.where, data)

    loaded = _filter_and_count(parsed(), data, split)
    wrong = loaded.refused[choices.ONE_TOO_MANY]
    if wrong > CHANCE and not any(one.answer == "A" for one in loaded.questions):
        raise DataError(
            f"data.{split}={source}: the answer of {wrong:,} of {loaded.records:,} records is the number of their "
            "choices, and of none the first choice, 0: the answers seem to count from 1. Subtract 1, or write letters."
        )
    listed = ", ".join(map(str, first.values))
    is_published = parse in (sciknoweval.parse, gpqa.parse)
    return replace(
        loaded,
        unread=Counter() if is_published else unread,
        unseen={
            name: f"data.fields.{part}={name}: no record of {source} has this field; those of the first are {listed}. "
            "Correct the name."
            for name, part in unseen.items()
        },
    )


def load_split(data: DataConfig, split: Split) -> LoadedSource:
    """Load the split's own source; empty where it has none.

    Raises:
        DataError: the source is missing, empty or broken, or nothing of it is left.
    """
    if split == "train" and (sets := train_sets(data)):
        return _load_sets(data, sets)
    source = {"train": data.train, "test": data.test, "ood": data.ood}[split]
    if source is None or (split == "test" and _holds_out_test(data)):
        return LoadedSource([])
    loaded = load_source(data, split, source)
    _refuse_empty(loaded, f"data.{split}={source}")
    if split == "train":
        _refuse_unseen([loaded])
    return loaded


def _refuse_unseen(sets: Sequence[LoadedSource]) -> None:
    """Refuse a field that the user has named and that none of these sets has.

    Raises:
        DataError: names the field.
    """
    for name, message in sets[0].unseen.items():
        if all(name in one.unseen for one in sets):
            raise DataError(message)


def set_label(question: Question) -> str:
    """Name of the training set of a question, where there are several: the first part of its id."""
    return question.id.partition("/")[0]


def _load_sets(data: DataConfig, sets: Sequence[TrainSet]) -> LoadedSource:
    """Load several training sets into one, in which the id of a question begins with its set's name.

    A record without a field of its own gets the set's name as its field, so that accuracy is reported by set.
    """
    questions: list[Question] = []
    refused: Counter[str] = Counter()
    places: dict[str, str] = {}
    withheld: set[str] = set()
    first_refused: dict[str, str] = {}
    unread: Counter[str] = Counter()
    by_fields: dict[str, list[LoadedSource]] = defaultdict(list)  # sets whose fields have the same names
    for index, one in enumerate(sets):
        own = replace(data, train=one.path, format=one.format, fields=one.fields, system=one.system, suffix=one.suffix)
        loaded = load_source(own, "train", one.path)
        _refuse_empty(loaded, f"data.train[{index}].path={one.path}")
        if one.path.partition(":")[0] not in (MINISCI, GYM):
            by_fields[repr(one.fields)].append(loaded)
        refused += loaded.refused
        unread += loaded.unread
        for reason, place in loaded.first_refused.items():
            first_refused.setdefault(reason, f"{one.label} {place}".rstrip())
        for question in loaded.questions:
            rest = question.id if one.path.partition(":")[0] == MINISCI else question.id.partition("/")[2]
            field = one.label if question.field == "all" else question.field
            questions.append(replace(question, id=f"{one.label}/{rest}", field=field))
            places[questions[-1].id] = loaded.places.get(question.id, "")
            if question.id in loaded.withheld:
                withheld.add(questions[-1].id)
    for alike in by_fields.values():
        _refuse_unseen(alike)
    return LoadedSource(questions, refused, places, frozenset(withheld), first_refused, unread)


def _holds_out_test(data: DataConfig) -> bool:
    return data.test is None or data.test == SPLIT


def _filter_and_count(items: Iterable[ParsedQuestion | RefusedRecord], data: DataConfig, split: Split) -> LoadedSource:
    selected: list[Question] = []
    refused: Counter[str] = Counter()
    spellings: dict[str, str] = {}  # the first spelling of each field
    places: dict[str, str] = {}
    withheld: set[str] = set()
    first_refused: dict[str, str] = {}
    for item in items:
        if isinstance(item, ParsedQuestion) and split != "ood":  # another data set, with other fields and levels
            item = refused_by_filters(item, data) or item
        if isinstance(item, RefusedRecord):
            refused[item.reason] += 1
            first_refused.setdefault(item.reason, item.where.rpartition(", ")[2])
        else:
            field = " ".join(item.question.field.split())
            spelling = spellings.setdefault(field.casefold(), field)
            _refuse_same_id(item, places)
            selected.append(replace(item.question, field=spelling))
            places[item.question.id] = item.where
            if item.withheld:
                withheld.add(item.question.id)
    return LoadedSource(selected, refused, places, frozenset(withheld), first_refused)


def _with_data_settings(
    item: ParsedQuestion | RefusedRecord, where: str, data: DataConfig
) -> ParsedQuestion | RefusedRecord:
    """The question of the record at `where`: with `data.system` where it has no system message, and with `data.suffix`
    at its end."""
    if isinstance(item, RefusedRecord):
        return replace(item, where=where)
    question = item.question
    system = data.system if question.system is None else question.system
    question = replace(question, text=question.text + data.suffix, system=system, suffix=data.suffix)
    return replace(item, question=question, where=where)


def _minisci_questions(data: DataConfig, split: Split, source: str) -> Iterator[ParsedQuestion]:
    """MiniSci's questions: `minisci` gives those of this split, `minisci:validation` those of the named split."""
    name = source.partition(":")[2] or split
    if name not in MINISCI_SPLITS:
        raise DataError(f"data.{split}={source}: MiniSci has no split {name}; it has {', '.join(MINISCI_SPLITS)}.")
    which = "train" if split == "train" else "test"
    size = data.minisci_train_size if split == "train" else data.minisci_test_size
    try:
        return iter([ParsedQuestion(question) for question in questions(cast(Split, name), size, seed=0)])
    except ValueError as error:
        raise DataError(f"data.minisci_{which}_size={size}: {error}") from None


def question_parser(first: SourceRecord, data: DataConfig, is_train: bool = True) -> Parse:
    """Parser of a source's format: `data.format`, or the format that its first record looks like.

    Args:
        is_train: `data.fields` is for this source; test and ood may be other data sets, with a layout of their own.
    """
    names = set(first.values)
    chosen = data.format
    if chosen is Format.auto:
        # A user who names fields of this record has a layout of their own, even if it looks like a published one.
        named = {name.partition(".")[0] for name in asdict(data.fields).values() if name is not None}
        has_text = data.fields.text is not None and has_field(first.values, data.fields.text)
        if named & names and (is_train or has_text or named <= names):
            chosen = Format.records
        elif sciknoweval.recognises(names):
            chosen = Format.sciknoweval
        elif gpqa.recognises(names):
            chosen = Format.gpqa
        elif choices.recognises(first.values):
            chosen = Format.choices
    is_chosen = data.format is Format.choices
    main = [name for name in (data.fields.text, data.fields.answer) if name is not None]
    is_of_this = is_chosen and (is_train or all(has_field(first.values, name) for name in main))
    own_names = data.fields if is_of_this else FieldNames()
    published: dict[Format, Parse] = {
        Format.sciknoweval: sciknoweval.parse,
        Format.gpqa: gpqa.parse,
        Format.choices: partial(choices.parse, names=own_names, is_chosen=is_chosen),
    }
    return published[chosen] if chosen in published else partial(own_records.parse, names=data.fields)


def _hold_out_test(data: DataConfig, loaded: LoadedSource) -> tuple[LoadedSource, LoadedSource]:
    """The training and the test part of one source."""
    train, test = split_held_out(loaded.questions, data.test_fraction, data.split_seed)
    if not train or not test:
        raise DataError(
            f"data.test: {len(loaded.questions)} questions of data.train={train_text(data)} cannot be split in two "
            "parts of different questions. Set data.test to another source."
        )
    held_out = Counter({HELD_OUT: len(test)})
    return replace(loaded, questions=train, refused=loaded.refused + held_out), replace(
        loaded, questions=test, refused=Counter(), unread=Counter()
    )


def _drop_duplicates(loaded: LoadedSource, texts: set[str]) -> LoadedSource:
    remaining = [question for question in loaded.questions if normalized_text(question) not in texts]
    duplicates = Counter({DUPLICATE: len(loaded.questions) - len(remaining)})
    return replace(loaded, questions=remaining, refused=loaded.refused + duplicates)


def _refuse_empty(loaded: LoadedSource, where: str) -> None:
    if not loaded.questions:
        raise DataError(
            f"{where}: none of {loaded.records} records is left: {loaded.refusal_summary()}. Change the records or the "
            "setting that each reason names, or use another source."
        )


def _refuse_same_id(item: ParsedQuestion, places: dict[str, str]) -> None:
    """Refuse a question whose id an earlier one has; `places` are those of the earlier ones by id."""
    if (earlier := places.get(item.question.id)) is not None:
        raise DataError(
            f"{item.where}: two records have the id {item.question.id.partition('/')[2]!r}, the other is at "
            f"{earlier.rpartition(', ')[2]}. Ids must be unique: correct one, or name another field in data.fields.id."
        )
