"""From the `data` section of the settings to the questions of a run, and what became of every record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from typing import Any, cast

from demopsd_dist.config import MINISCI, SPLIT, DataConfig, Duplicates, Format
from demopsd_dist.data.records import Question
from demopsd_dist.data.sources import gpqa, own_records, sciknoweval
from demopsd_dist.data.sources.files import records
from demopsd_dist.data.sources.items import LoadedSource, ParsedQuestion, RefusedRecord, SourceRecord
from demopsd_dist.data.sources.selection import DuplicateQuestions, filtered, held_out, same_text, twins
from demopsd_dist.minisci.tasks import Split, questions
from demopsd_dist.util.errors import DataError

Read = Callable[[SourceRecord], ParsedQuestion | RefusedRecord]
SPLITS: tuple[Split, ...] = ("train", "test", "ood")
MINISCI_SPLITS = ("train", "validation", "test", "ood")
HELD_OUT = "held out for data.test"
TWIN = "stands in a test set too"


@dataclass(frozen=True)
class LoadedData:
    """All splits of a run; one that is not asked for is empty."""

    splits: dict[Split, LoadedSource]
    twins: list[DuplicateQuestions]  # of test and ood with train, as read; those without any left out

    @property
    def questions(self) -> dict[Split, list[Question]]:
        return {split: loaded.questions for split, loaded in self.splits.items()}

    def notes(self) -> list[str]:
        """What a reader must know: a line for each split of which something was left out, one for each with twins."""
        lines = [
            f"left out {loaded.refused.total()} of {loaded.records} {split} records: {loaded.told()}"
            for split, loaded in self.splits.items()
            if loaded.refused
        ]
        return lines + [f"{found.told()}{'; taken from train' if self._dropped else ''}" for found in self.twins]

    def figures(self) -> dict[str, Any]:
        """The same for the summary."""
        return {
            "left_out_records": {split: dict(loaded.refused) for split, loaded in self.splits.items()},
            "questions_also_in_train": {found.split: len(found.found) for found in self.twins},
        }

    @property
    def _dropped(self) -> bool:
        return self.splits["train"].refused[TWIN] > 0


def sources(data: DataConfig) -> dict[Split, str | None]:
    """Where each split's questions come from, for the reader."""
    test = f"{data.test_fraction:g} of {data.train}" if _splits(data) else data.test
    return {"train": data.train, "test": test, "ood": data.ood}


def load_data(data: DataConfig) -> LoadedData:
    """
    Raises:
        DataError: a source is missing, empty or broken (the message names file and line), nothing of it is left, or
            test questions stand in train and `data.duplicates` is `refuse`.
    """
    splits: dict[Split, LoadedSource] = {split: load_split(data, split) for split in SPLITS}
    if _splits(data):
        splits["train"], splits["test"] = _split(data, splits["train"])
    found = [twins(splits["train"].questions, split, splits[split].questions) for split in SPLITS[1:]]
    found = [pairs for pairs in found if pairs.found]
    if found and data.duplicates is Duplicates.refuse:
        raise DataError(
            f"data.duplicates=refuse: {'; '.join(pairs.told() for pairs in found)}. Remove them, or set "
            "data.duplicates=drop."
        )
    if found and data.duplicates is Duplicates.drop:
        splits["train"] = _without(splits["train"], {same_text(test) for pairs in found for test, _ in pairs.found})
        _refuse_empty(splits["train"], f"data.train={data.train}")
    return LoadedData(splits, found)


def load_source(data: DataConfig, split: Split, source: str) -> LoadedSource:
    """What became of each record of one source; nothing may be left of it. Filters are for train and test alone."""
    if source.partition(":")[0] == MINISCI:
        return _sorted_out(_minisci(data, split, source), data, split)
    stream = records(source, f"data.{split}", "train" if split == "train" else "test")
    first = next(stream, None)
    if first is None:
        raise DataError(f"data.{split}={source} holds no record. Give one with a record a line or row.")
    read = _format(first, data)
    loaded = _sorted_out(map(read, chain([first], stream)), data, split)
    _refuse_same_ids(loaded.questions, f"data.{split}={source}")
    return loaded


def load_split(data: DataConfig, split: Split) -> LoadedSource:
    """What the split's own source holds; nothing where it has none.

    Raises:
        DataError: the source is missing, empty or broken, or nothing of it is left.
    """
    source = {"train": data.train, "test": data.test, "ood": data.ood}[split]
    if source is None or (split == "test" and _splits(data)):
        return LoadedSource([])
    loaded = load_source(data, split, source)
    _refuse_empty(loaded, f"data.{split}={source}")
    return loaded


def _splits(data: DataConfig) -> bool:
    return data.test is None or data.test == SPLIT


def _sorted_out(items: Iterable[ParsedQuestion | RefusedRecord], data: DataConfig, split: Split) -> LoadedSource:
    taken: list[Question] = []
    refused: Counter[str] = Counter()
    for item in items:
        if isinstance(item, ParsedQuestion) and split != "ood":  # another data set, with other fields and levels
            item = filtered(item, data) or item
        if isinstance(item, RefusedRecord):
            refused[item.reason] += 1
        else:
            taken.append(item.question)
    return LoadedSource(taken, refused)


def _minisci(data: DataConfig, split: Split, source: str) -> Iterator[ParsedQuestion]:
    """`minisci` has this split's own questions, `minisci:validation` those of a split of its own."""
    name = source.partition(":")[2] or split
    if name not in MINISCI_SPLITS:
        raise DataError(f"data.{split}={source}: MiniSci has no split {name}; it has {', '.join(MINISCI_SPLITS)}.")
    which = "train" if split == "train" else "test"
    size = data.minisci_train_size if split == "train" else data.minisci_test_size
    try:
        return iter([ParsedQuestion(question) for question in questions(cast(Split, name), size, seed=0)])
    except ValueError as error:
        raise DataError(f"data.minisci_{which}_size={size}: {error}") from None


def _format(first: SourceRecord, data: DataConfig) -> Read:
    """A source is read as what its first record looks like, unless `data.format` says it."""
    names = set(first.values)
    mapped = {name for name in asdict(data.fields).values() if name is not None}
    chosen = data.format
    if chosen is Format.auto:
        # Who says what fields are called has records of their own, whatever those are called.
        if mapped and {name.partition(".")[0] for name in mapped} <= names:
            chosen = Format.records
        elif sciknoweval.recognises(names):
            chosen = Format.sciknoweval
        elif gpqa.recognises(names):
            chosen = Format.gpqa
    if chosen is Format.sciknoweval:
        return sciknoweval.read
    return gpqa.read if chosen is Format.gpqa else partial(own_records.read, names=data.fields)


def _split(data: DataConfig, loaded: LoadedSource) -> tuple[LoadedSource, LoadedSource]:
    train, test = held_out(loaded.questions, data.test_fraction, data.split_seed)
    if not train or not test:
        raise DataError(
            f"data.test: {len(loaded.questions)} questions of data.train={data.train} cannot be split in two parts of "
            "different questions. Give data.test a source of its own."
        )
    return LoadedSource(train, loaded.refused + Counter({HELD_OUT: len(test)})), LoadedSource(test)


def _without(loaded: LoadedSource, texts: set[str]) -> LoadedSource:
    kept = [question for question in loaded.questions if same_text(question) not in texts]
    return LoadedSource(kept, loaded.refused + Counter({TWIN: len(loaded.questions) - len(kept)}))


def _refuse_empty(loaded: LoadedSource, where: str) -> None:
    if not loaded.questions:
        raise DataError(f"{where}: none of {loaded.records} records is left: {loaded.told()}.")


def _refuse_same_ids(found: list[Question], where: str) -> None:
    seen: set[str] = set()
    for question in found:
        if question.id in seen:
            raise DataError(f"{where}: two records have the id {question.id.partition('/')[2]!r}. Ids must be unique.")
        seen.add(question.id)
