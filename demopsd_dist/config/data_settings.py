"""The settings of the data: which questions, what their records look like, and which are left out."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

MINISCI = "minisci"
SPLIT = "split"


class Format(Enum):
    """What the records of a file or hub data set look like (docs/data.md)."""

    auto = "auto"  # each source by its first record
    records = "records"  # a question and its answer, under the names in data.fields
    sciknoweval = "sciknoweval"  # as published: question, choices, answerKey, type
    gpqa = "gpqa"  # as published: Question, Correct Answer, Incorrect Answer 1 to 3


class Duplicates(Enum):
    """What happens when questions of test or ood also stand in train."""

    report = "report"  # the log says how many
    drop = "drop"  # train does without them
    refuse = "refuse"  # the run does not start


@dataclass
class FieldNames:
    """What your own records call their fields; `a.b` is the field b inside a."""

    text: str | None = None
    """The question; null for `prompt` or `question`."""
    answer: str | None = None
    """The expected answer; null for `answer`."""
    field: str | None = None
    """The branch by which accuracy is reported; null for `field`, `domain` or `dataset`."""
    id: str | None = None
    """Unique in its source; null for `id` or `idx`, and where there is none the line or row."""
    system: str | None = None
    """The system message; null for `system`."""
    level: str | None = None
    """What data.only_levels looks at; null for `level`."""
    type: str | None = None
    """What data.only_types looks at; null for `type` or `kind`."""


@dataclass
class DataConfig:
    train: str = MINISCI
    """`minisci`, a .jsonl, .parquet or .csv file, or `hf:owner/name` (perhaps `hf:owner/name:subset@split`)."""
    test: str | None = MINISCI
    """The same, for evaluation in the domain; never trained on. null or `split` holds a part of train out."""
    ood: str | None = MINISCI
    """The same, for evaluation out of the distribution; null for none. Filters do not apply to it."""
    format: Format = Format.auto
    """`auto`, `records`, `sciknoweval` or `gpqa`: what the records of files and hub data sets look like."""
    fields: FieldNames = field(default_factory=FieldNames)
    """Names of the fields of your own records."""
    only_fields: list[str] = field(default_factory=list)
    """Take only these fields (`Physics`) for train and test; empty for all. Case does not count."""
    only_levels: list[str] = field(default_factory=list)
    """Take only these levels (`L3`); empty for all."""
    only_types: list[str] = field(default_factory=list)
    """Take only these types (`mcq-4-choices`); empty for all."""
    test_fraction: float = 0.1
    """Part of train held out where `test: split`; above 0 and below 1."""
    split_seed: int = 42
    """What is held out follows from it and from the questions' texts; >= 0."""
    duplicates: Duplicates = Duplicates.report
    """`report`, `drop` or `refuse`: questions of test or ood that also stand in train."""
    minisci_train_size: int = 4096
    """Questions drawn for training where `train: minisci`; > 0."""
    minisci_test_size: int = 192
    """Questions drawn for each of test and ood where they are `minisci`; > 0."""
