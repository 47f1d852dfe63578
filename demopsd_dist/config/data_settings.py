"""Settings of the data: sources of questions, layout of their records, and filters."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from demopsd_dist.config.ranges import ENTRIES, setting

MINISCI = "minisci"
SPLIT = "split"


class Format(Enum):
    """Layout of the records of a file or hub data set (docs/data.md)."""

    auto = "auto"  # recognised by the first record of each source
    records = "records"  # a question and its answer, under the names in data.fields
    sciknoweval = "sciknoweval"  # as published: question, choices, answerKey, type
    choices = "choices"  # MMLU, MMLU-Pro, ARC: question, options in a field of their own, answer
    gpqa = "gpqa"  # as published: Question, Correct Answer, Incorrect Answer 1 to 3


class Duplicates(Enum):
    """Reaction to questions of test or ood that are also in train."""

    report = "report"  # the log counts them
    drop = "drop"  # they are removed from train
    refuse = "refuse"  # the run does not start


@dataclass
class FieldNames:
    """Names of the fields in your own records; `a.b` is the field b inside a."""

    text: str | None = None
    """Text of the question, or its chat as a list of messages; null for `prompt`, `question`, `problem`, `input`,
    `messages`, `conversations` or `instruction`."""
    answer: str | None = None
    """Expected answer; null for `answer`, `expected_answer`, `reward_model.ground_truth`, `ground_truth` or `label`, or
    else the answer that the solution states."""
    solution: str | None = None
    """Worked solution; null for `solution`, `completion`, `extra_info.answer` or the chat's last message."""
    field: str | None = None
    """Branch of science by which accuracy is reported; null for `field`, `domain`, `dataset`, `subject`,
    `category` or `data_source`."""
    id: str | None = None
    """Identifier, unique in its source; null for `id` or `idx`, or else the number of the line or row."""
    system: str | None = None
    """System message; null for `system`."""
    level: str | None = None
    """Level that data.only_levels filters by; null for `level`."""
    type: str | None = None
    """Type that data.only_types filters by; null for `type` or `kind`."""


@dataclass
class DataConfig:
    train: Any = field(default=MINISCI, metadata={ENTRIES: True})
    """Training questions: `minisci`, a .jsonl, .json, .parquet or .csv file, or `hf:owner/name`, also as
    `hf:owner/name:subset@split`, or tasks of reasoning-gym as `gym:chain_sum?level=2,leg_counting`. Or a list of such
    sets, each drawn by its weight: `[{path: a.jsonl, weight: 3}, ...]`, perhaps with a `format`, `fields`, `system` and
    `suffix` of its own."""
    test: str | None = MINISCI
    """Questions for evaluation in the domain, named as for train; never trained on. null or `split` holds out a part of
    train."""
    ood: str | None = MINISCI
    """Questions for evaluation out of distribution, named as for train; null for none. Filters do not apply to them."""
    format: Format = Format.auto
    """`auto`, `records`, `sciknoweval`, `choices` or `gpqa`: layout of the records of files and hub data sets."""
    fields: FieldNames = field(default_factory=FieldNames)
    """Names of the fields of your own records."""
    system: str | None = None
    """System message of questions of files and hub data sets that have none of their own; null for none."""
    suffix: str = ""
    """Text at the end of each question of a file or hub data set, such as a request for the form of the answer."""
    only_fields: list[str] = field(default_factory=list)
    """Use only these fields (`Physics`) for train and test; empty for all. Case is ignored."""
    only_levels: list[str] = field(default_factory=list)
    """Use only these levels (`L3`); empty for all."""
    only_types: list[str] = field(default_factory=list)
    """Use only these types (`mcq-4-choices`); empty for all."""
    test_fraction: float = setting(0.1, above=0, below=1)
    """Fraction of train held out where `test: split`."""
    split_seed: int = setting(42, at_least=0)
    """Seed of the split, which depends only on the seed and on the questions' texts."""
    duplicates: Duplicates = Duplicates.report
    """`report`, `drop` or `refuse`: reaction to questions of test or ood that are also in train."""
    minisci_train_size: int = setting(4096, above=0)
    """Number of questions drawn for training where `train: minisci`."""
    minisci_test_size: int = setting(192, above=0)
    """Number of questions drawn for each of test and ood where they are `minisci`."""
