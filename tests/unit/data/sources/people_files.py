"""Files of 40 records each in the layouts in which people have their data, made of MiniSci's questions."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from demopsd_dist.data.records import Question
from demopsd_dist.minisci.tasks import questions

RECORDS = 40


def people_files(folder: Path) -> dict[str, Path]:
    """Write a file in each layout; their paths by the layout's name."""
    drawn = questions("train", RECORDS, seed=5)
    makers = {"gsm8k": _gsm8k, "verl": _verl, "trl": _trl, "mmlu": _mmlu}
    paths = {name: folder / f"{name}-like.{'parquet' if name == 'verl' else 'jsonl'}" for name in makers}
    for name, make in makers.items():
        records = [make(question, index) for index, question in enumerate(drawn)]
        if name == "verl":
            pq.write_table(pa.Table.from_pylist(records), paths[name])
        else:
            paths[name].write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return paths


def working(question: Question) -> str:
    """The solution of a question without its answer."""
    return (question.solution or "").partition("</reasoning>")[0].partition("<reasoning>")[2]


def _gsm8k(question: Question, index: int) -> dict[str, Any]:
    return {"question": question.text, "answer": f"{working(question)}\n#### {question.answer}"}


def _verl(question: Question, index: int) -> dict[str, Any]:
    return {
        "data_source": f"own/{question.field}",
        "prompt": [{"role": "user", "content": question.text}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": question.answer},
        "extra_info": {"answer": f"{working(question)}\n#### {question.answer}", "index": index, "split": "train"},
    }


def _trl(question: Question, index: int) -> dict[str, Any]:
    return {
        "prompt": [{"role": "user", "content": question.text}],
        "completion": [{"role": "assistant", "content": question.solution}],
    }


def _mmlu(question: Question, index: int) -> dict[str, Any]:
    right = int(question.answer)
    options = [str(right + shift) for shift in (0, 1, 10, -1)]
    random.Random(index).shuffle(options)
    return {
        "question": question.text,
        "subject": question.field,
        "choices": options,
        "answer": options.index(question.answer),
    }
