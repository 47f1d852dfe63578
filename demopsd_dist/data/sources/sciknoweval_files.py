"""SciKnowEval of one domain as two files: `python -m demopsd_dist.data.sources.sciknoweval_files physics data`

Fetches the data set from the Hugging Face hub (MIT licence), takes the domain's questions of level L3 with two or four
options, as SDPO's code does, holds out a tenth, and writes `physics-train.jsonl` and
`physics-test.jsonl` into the folder, with each record as published. The held-out tenth is chosen as `data.test=split`
chooses it, and is not the one that other projects publish.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demopsd_dist.data.records import Question
from demopsd_dist.data.sources import sciknoweval
from demopsd_dist.data.sources.files import read_records
from demopsd_dist.data.sources.items import ParsedQuestion
from demopsd_dist.data.sources.selection import split_held_out
from demopsd_dist.util.errors import DataError, DemoPSDError

PUBLISHED = "hf:hicai-zju/SciKnowEval"
DOMAINS = ("biology", "chemistry", "material", "physics")
LEVEL = "L3"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit code 0, or 2 where the data set cannot be read."""
    parser = argparse.ArgumentParser(
        prog="python -m demopsd_dist.data.sources.sciknoweval_files",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("domain", choices=DOMAINS)
    parser.add_argument("folder", type=Path, help="folder of the two files")
    parser.add_argument(
        "--source", default=PUBLISHED, help="another copy: hf:FOLDER or a file, as in data.train (%(default)s)"
    )
    arguments = parser.parse_args(argv)
    try:
        write_files(arguments.source, arguments.domain, arguments.folder)
    except DemoPSDError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def write_files(source: str, domain: str, folder: Path) -> None:
    """Write training and test file of a domain, each record as published.

    Raises:
        DataError: the source cannot be read, or has too few questions of the domain.
    """
    records, questions = domain_records(source, domain)
    if len(questions) < 2:
        raise DataError(
            f"{source} has {len(questions)} questions of {domain}, level {LEVEL}, with two or four options; at least 2 "
            "are needed. Name a copy of SciKnowEval as published."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in zip(("train", "test"), split_held_out(questions, fraction=0.1, seed=42), strict=True):
        path = folder / f"{domain}-{name}.jsonl"
        path.write_text(
            "".join(f"{json.dumps(records[question.id], ensure_ascii=False)}\n" for question in part), encoding="utf-8"
        )
        print(f"{len(part)} questions in {path}")


def domain_records(source: str, domain: str) -> tuple[dict[str, dict[str, Any]], list[Question]]:
    """Published records by question id, and the questions that are read from them."""
    records: dict[str, dict[str, Any]] = {}
    questions = []
    for record in read_records(source, "--source", "test"):
        parsed = sciknoweval.parse(record)
        if not isinstance(parsed, ParsedQuestion) or parsed.type not in sciknoweval.OPTION_COUNTS:
            continue
        if parsed.level == LEVEL and parsed.question.field.casefold().startswith(domain):
            records[parsed.question.id] = record.values
            questions.append(parsed.question)
    return records, questions


if __name__ == "__main__":
    sys.exit(main())
