"""A data set and a reward of your own: writes the data, trains a few steps, and prints the accuracies.

Run it in this folder, where `own_data.within_one_percent` can be imported:

    cd examples
    python own_data.py              # minutes on two CPU cores; `python own_data.py steps=40` trains longer

The questions here are the demo's, in records of your own kind, because the demo's model answers hardly any others. With
your own questions, give a model too: "model.path".
"""

import json
import sys
from pathlib import Path

from demopsd_dist import train
from demopsd_dist.data.rewards import Question, RewardResult
from demopsd_dist.minisci.tasks import Split, questions


def within_one_percent(response: str, question: Question) -> float | RewardResult:
    """Reward of a response: 1 where its last number is within one percent of the answer, else 0 with feedback."""
    last_word = response.replace("</answer>", " ").replace("<answer>", " ").split()[-1:]
    try:
        value = float(last_word[0])
    except (IndexError, ValueError):
        return RewardResult(0.0, feedback="End with the number alone.")
    return float(abs(value - float(question.answer)) <= 0.01 * abs(float(question.answer)))


def write_records(path: Path, split: Split, count: int) -> None:
    """Write records with fields of your own names, which `data.fields` names below."""
    records = [{"task": one.text, "result": one.answer, "topic": one.field} for one in questions(split, count, seed=0)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


if __name__ == "__main__":
    write_records(Path("own-train.jsonl"), "train", 256)
    write_records(Path("own-test.jsonl"), "test", 32)
    settings = {
        "name": "own_data",
        "data.train": "own-train.jsonl",
        "data.test": "own-test.jsonl",
        "data.ood": None,
        "data.fields.text": "task",
        "data.fields.answer": "result",
        "data.fields.field": "topic",
        "reward": "own_data.within_one_percent",
        "steps": 5,
    }
    run = train("demo", settings | dict(word.split("=", 1) for word in sys.argv[1:]))
    before, after = (run.accuracy_before or {})["average"], (run.accuracy_after or {})["average"]
    print(f"accuracy {before:.1%} -> {after:.1%}; the report is {run.report}")
