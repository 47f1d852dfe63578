"""Loading of questions: real records give questions, broken ones are refused by file and line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from demopsd_dist.config import DataConfig
from demopsd_dist.data.prompts import PromptBuilder
from demopsd_dist.data.records import Question
from demopsd_dist.data.rewards import answer_reward
from demopsd_dist.data.sources import load_data, load_source, question_order
from demopsd_dist.minisci.tasks import Split
from demopsd_dist.minisci.tokenizer import byte_tokenizer
from demopsd_dist.util.errors import DataError

SCIKNOWEVAL = Path(__file__).parents[5] / "shared" / "data" / "sciknoweval" / "mcq"


def write(folder: Path, *lines: str) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def read_jsonl(path: Path, key: str = "data.train") -> list[Question]:
    split: Split = "train" if key == "data.train" else "test"
    return load_source(DataConfig(), split, str(path)).questions


def test_fields_are_read_under_their_usual_names(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        json.dumps({"prompt": "1+1?", "answer": "2", "field": "math", "id": 7, "system": "Be brief."}),
        "",
        json.dumps({"question": r"$\frac{1}{2}$ of {4}?", "answer": 2}),
    )
    first, second = read_jsonl(path, "data.train")
    assert (first.id, first.text, first.answer, first.field, first.system) == (
        "mine/7",
        "1+1?",
        "2",
        "math",
        "Be brief.",
    )
    assert (second.id, second.text, second.answer, second.field, second.system) == (
        "mine/3",
        r"$\frac{1}{2}$ of {4}?",
        "2",
        "all",
        None,
    )


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "holds no record"),
        (["", "  "], "holds no record"),
        (['{"prompt": "a", "answer": "b"}', '{"prompt": "a"}'], "line 2: the record has no 'answer'"),
        (['{"prompt": "a", "answer": "  "}'], "line 1: 'answer' is empty. Write its text, or remove"),
        (['{"answer": "b"}'], "line 1: the record has no 'prompt' or 'question'"),
        (
            ['{"prompt": "a", "reply": "b"}'],
            "; its fields are prompt, reply. Add it, name its field in",
        ),
        (['{"prompt": "a", "answer": ["b"]}'], "line 1: 'answer' must be text, not list"),
        (['{"prompt": "a", "answer": true}'], "line 1: 'answer' must be text, not bool"),
        (["[1]"], "line 1: element 1 must be a JSON object, not int"),
        (["{"], "line 1: not valid JSON: the line ends within its record, after '{'"),
        (
            ['{"prompt": "a", "answer": "1"}', '{"prompt": "a long ques'],
            'line 2: not valid JSON: the line ends within its record, after \'{"prompt": "a long ques\'',
        ),
        (["[" * 100_000], "line 1: not valid JSON"),
        (
            ['{"id": 1, "prompt": "a", "answer": "b"}'] * 2,
            "line 2: two records have the id '1', the other is at line",
        ),
    ],
)
def test_broken_files_are_refused_by_file_and_line(tmp_path: Path, lines: list[str], message: str) -> None:
    path = write(tmp_path, *lines)
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read_jsonl(path, "data.test")
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "key", "end"),
    [
        ("my-gsm8kk.jsonl", "data.train", "Did you mean {0}/my-gsm8k.jsonl?"),
        ("my-gsm8k.json", "data.train", "Did you mean {0}/my-gsm8k.jsonl?"),
        ("splitt", "data.test", "Did you mean split?"),
        ("splitt", "data.train", "or `minisci`."),
        ("minsci", "data.ood", "Did you mean minisci?"),
    ],
)
def test_a_missing_file_names_the_nearest(tmp_path: Path, name: str, key: str, end: str) -> None:
    (tmp_path / "my-gsm8k.jsonl").write_text("")
    with pytest.raises(DataError) as refused:
        read_jsonl(tmp_path / name, key)
    assert str(refused.value).endswith(end.format(tmp_path))
    with pytest.raises(
        DataError, match=re.escape(f"data.train=nowhere.jsonl: there is no such file below {Path.cwd()}")
    ):
        read_jsonl(Path("nowhere.jsonl"), "data.train")


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        read_jsonl(tmp_path / "none.jsonl", "data.train")
    (tmp_path / "binary.jsonl").write_bytes(b'{"prompt": "\xff\xfe"}')
    with pytest.raises(DataError, match="is not UTF-8 text"):
        read_jsonl(tmp_path / "binary.jsonl", "data.train")


def test_a_null_split_is_empty_and_minisci_is_sized() -> None:
    assert load_data(DataConfig(ood=None)).questions["ood"] == []
    assert len(load_data(DataConfig(minisci_train_size=12)).questions["train"]) == 12
    with pytest.raises(DataError, match="minisci_test_size=10000000: MiniSci's ood split gave"):
        load_source(DataConfig(minisci_test_size=10_000_000), "ood", "minisci")


@pytest.mark.skipif(not SCIKNOWEVAL.is_dir(), reason="the SciKnowEval records are not beside the checkout")
@pytest.mark.parametrize("name", ["physics-train", "physics-test", "chemistry-train", "chemistry-test"])
def test_every_real_record_gives_a_question_and_its_answer_is_right(name: str) -> None:
    path = SCIKNOWEVAL / f"{name}.jsonl"
    loaded = read_jsonl(path, "data.train")
    assert len(loaded) == sum(1 for line in path.open(encoding="utf-8") if line.strip())
    builder = PromptBuilder(byte_tokenizer())
    for question in loaded:
        assert question.system
        views = builder.student(question).tokens, builder.privileged(question, "$x = \\frac{1}{2}$ {so}")
        assert all(question.text in builder.tokenizer.decode(view) for view in views)
        reply = "<reasoning>\n$x = \\frac{1}{2}$ {so} 水\n</reasoning>\n<answer>\n%s\n</answer>"
        assert answer_reward(reply % question.answer, question.answer) == 1.0
        assert answer_reward(reply % "not this", question.answer) == 0.0


def test_order_is_a_seeded_permutation_new_in_every_epoch() -> None:
    assert sorted(question_order(50, 0, 0)) == list(range(50))
    assert question_order(50, 0, 0) == question_order(50, 0, 0)
    assert question_order(50, 0, 0) != question_order(50, 0, 1)
    assert question_order(50, 0, 0) != question_order(50, 1, 0)
