"""Formats and filters: every record gives a question or is counted, and its text reaches the prompt unchanged."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demopsd_dist.config import DataConfig, Duplicates, FieldNames, Format, load
from demopsd_dist.data.prompts import PromptBuilder
from demopsd_dist.data.sources import ParsedQuestion, SourceRecord, load_data, load_source
from demopsd_dist.data.sources.gpqa import parse as parse_gpqa
from demopsd_dist.data.sources.own_records import parse as parse_own
from demopsd_dist.data.sources.sciknoweval import parse as parse_sciknoweval
from demopsd_dist.minisci.tokenizer import byte_tokenizer
from demopsd_dist.util.errors import ConfigError, DataError
from launch.train import main

ROOT = Path(__file__).parents[4]
RAW = ROOT.parent / "shared" / "data" / "sciknoweval"
BUILDER = PromptBuilder(byte_tokenizer())


def raw(question: str = "Why?", kind: str = "mcq-4-choices", key: str = "B", level: str = "L3", **more: Any) -> dict:
    count = {"mcq-4-choices": 4, "mcq-2-choices": 2}.get(kind, 0)
    choices = {"text": [f"option {i}" for i in range(count)], "label": list("ABCD"[:count])}
    return {
        "question": question,
        "choices": choices,
        "answerKey": key,
        "type": kind,
        "domain": "Physics",
        "details": {"level": level},
        "answer": "",
        **more,
    }


def jsonl(path: Path, *records: dict) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


def numbered(path: Path, count: int) -> str:
    return jsonl(path, *({"prompt": f"What is {i}+1?", "answer": i + 1} for i in range(count)))


def gpqa_row(identity: str, question: str = "Which?") -> dict[str, str]:
    wrong = {f"Incorrect Answer {i}": f"wrong {i}\n" for i in (1, 2, 3)}
    return {"Question": question, "Correct Answer": " right ", **wrong, "High-level domain": "Chemistry"} | {
        "Record ID": identity
    }


def gpqa_csv(path: Path, *rows: dict[str, str]) -> str:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def test_sciknoweval_types_are_parsed_or_refused_by_name(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "raw.jsonl",
        raw(),
        raw(kind="mcq-2-choices", key="A"),
        raw(kind="true_or_false", answer="false", key=""),
        raw(kind="true_or_false", key="A", choices={"text": ["True", "False"], "label": ["A", "B"]}),
        raw(kind="true_or_false", key=""),
        raw(kind="filling", answer="x"),
        raw(kind="open-ended-qa", answer="x"),
        raw(key="E"),
        raw(choices={"text": ["one"], "label": ["A"]}),
    )
    loaded = load_source(DataConfig(), "train", path)
    assert [question.answer for question in loaded.questions] == ["B", "A", "False", "True"]
    assert loaded.questions[0].text == (
        "Why?\n\nA: option 0\nB: option 1\nC: option 2\nD: option 3\nPlease reason step by step."
    )
    assert all("<answer>" in (question.system or "") for question in loaded.questions)
    assert loaded.refused == Counter(
        {
            "the answer is neither true nor false": 1,
            "type filling is not multiple choice": 1,
            "type open-ended-qa is not multiple choice": 1,
            "the answer is not among the choices": 1,
            "there are not 4 choices": 1,
        }
    )
    assert loaded.records == 9
    with pytest.raises(DataError, match=r"raw.jsonl, line 2: 'question' is empty"):
        load_source(DataConfig(), "train", jsonl(tmp_path / "raw.jsonl", raw(), raw(question=" ")))
    with pytest.raises(
        DataError, match=r"none of 1 records is left: type filling is not multiple choice \(1, first line 1\)"
    ):
        load_data(DataConfig(train=jsonl(tmp_path / "raw.jsonl", raw(kind="filling"))))


@pytest.mark.skipif(not RAW.is_dir(), reason="the SciKnowEval records are not beside the checkout")
def test_every_published_record_is_parsed_or_counted() -> None:
    paths = sorted(RAW.rglob("*.jsonl"))
    loaded = {path.stem: load_source(DataConfig(), "train", str(path)) for path in paths}
    for path in paths:
        assert loaded[path.stem].records == sum(1 for line in path.open(encoding="utf-8") if line.strip())
    filling = loaded.pop("balancing_chemical_equation")
    assert (filling.questions, filling.refused) == ([], Counter({"type filling is not multiple choice": 300}))
    refused = {name: source.refused for name, source in loaded.items() if source.refused}
    assert refused == {"general_physics_calculation": Counter({"two options have the same text": 6})}
    answers = {question.text: question.answer for question in loaded["general_physics_calculation"].questions}
    published = [*loaded["physics-train"].questions, *loaded["physics-test"].questions]
    exported = {question.text: question.answer for question in published}
    assert len(exported) == len(answers) + 6
    assert answers.items() <= exported.items()


def test_gpqa_options_are_shuffled_by_the_record_alone(tmp_path: Path) -> None:
    rows = [gpqa_row(f"rec{i}", f"Which, of {i}?\nSay, {{why}}") for i in range(40)]
    loaded = load_source(DataConfig(), "ood", gpqa_csv(tmp_path / "gpqa.csv", *rows))
    assert [question.id for question in loaded.questions] == [f"gpqa/rec{i}" for i in range(40)]
    assert {question.answer for question in loaded.questions} == set("ABCD")
    for question in loaded.questions:
        assert f"\n{question.answer}: right\n" in question.text
        assert question.field == "Chemistry"
    alone = load_source(DataConfig(), "ood", gpqa_csv(tmp_path / "other.csv", rows[7])).questions[0]
    assert (alone.text, alone.answer) == (loaded.questions[7].text, loaded.questions[7].answer)
    rows[1]["Incorrect Answer 2"] = ""
    counted = load_source(DataConfig(), "ood", gpqa_csv(tmp_path / "gpqa.csv", *rows))
    assert counted.refused == Counter({"there are not 4 choices": 1})
    (tmp_path / "bad.csv").write_text("prompt,answer\na,b\nc,d,e\n")
    with pytest.raises(DataError, match=r"bad.csv, row 2 \(line 3\): not as many cells as the 2 of the header"):
        load_source(DataConfig(), "ood", str(tmp_path / "bad.csv"))


def test_own_names_of_fields(tmp_path: Path) -> None:
    record = {"q": "1+1?", "reward": {"truth": "2"}, "topic": "sums", "uid": "u", "sys": "Short.", "question": "no"}
    path = jsonl(tmp_path / "own.jsonl", record)
    names = FieldNames(text="q", answer="reward.truth", field="topic", id="uid", system="sys")
    found = load_source(DataConfig(fields=names), "train", path).questions[0]
    assert (found.id, found.text, found.answer, found.field, found.system) == ("own/u", "1+1?", "2", "sums", "Short.")
    with pytest.raises(DataError, match="line 1: the record has no 'ask'"):
        load_source(DataConfig(fields=FieldNames(text="ask")), "train", path)
    words = ["data.fields={text: q}", "data.format=gpqa"]
    with pytest.raises(ConfigError, match=r"data\.fields has no effect with data\.format=gpqa"):
        load(ROOT / "configs" / "demo.yaml", words)
    assert load(ROOT / "configs" / "demo.yaml", words[:1]).data.fields.text == "q"
    with pytest.raises(DataError, match="has no 'Question'"):
        load_source(DataConfig(format=Format.gpqa), "train", path)


def test_filters_count_the_records_that_they_leave_out(tmp_path: Path) -> None:
    records = [raw("a"), raw("b", level="L2"), raw("c", kind="mcq-2-choices"), raw("d", domain="Biology"), raw("e")]
    records.append(raw("f", details=None))
    data = DataConfig(only_fields=["physics"], only_levels=["L3"], only_types=["mcq-4-choices"])
    path = jsonl(tmp_path / "raw.jsonl", *records)
    loaded = load_source(data, "train", path)
    assert [question.id for question in loaded.questions] == ["raw/1", "raw/5"]
    assert loaded.refused == Counter(
        {
            "filtered: level L2 is not among data.only_levels": 1,
            "filtered: no level among data.only_levels": 1,
            "filtered: type mcq-2-choices is not among data.only_types": 1,
            "filtered: field Biology is not among data.only_fields": 1,
        }
    )
    assert load_source(data, "ood", path).records == len(load_source(data, "ood", path).questions) == 6


@pytest.mark.parametrize("test", [None, "split"])
def test_a_tenth_is_held_out_in_any_order(tmp_path: Path, test: str | None) -> None:
    path = numbered(tmp_path / "mine.jsonl", 50)
    data = load_data(DataConfig(train=path, test=test, ood=None))
    parts = {split: {question.text for question in data.questions[split]} for split in ("train", "test")}
    assert (len(parts["train"]), len(parts["test"])) == (45, 5)
    assert not parts["train"] & parts["test"]
    assert data.splits["train"].records == 50
    assert data.notes() == ["left out 5 of 50 train records: held out for data.test (5)"]
    lines = Path(path).read_text().splitlines()
    Path(path).write_text("\n".join(reversed(lines)))
    assert {q.text for q in load_data(DataConfig(train=path, test=test, ood=None)).questions["test"]} == parts["test"]
    other = load_data(DataConfig(train=path, test=test, ood=None, split_seed=1)).questions["test"]
    assert {question.text for question in other} != parts["test"]
    with pytest.raises(DataError, match="cannot be split"):
        load_data(DataConfig(train=numbered(tmp_path / "one.jsonl", 1), test=test, ood=None))


def test_duplicates_in_train_and_test_are_reported_dropped_or_refused(tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", *({"prompt": f"Ｗhat  IS {i}?", "answer": i} for i in range(4)))
    test = jsonl(tmp_path / "test.jsonl", *({"prompt": f"what is\n{i}?", "answer": i} for i in (2, 9)))
    line = "1 of 2 test questions are also in train (first: test/1, in train train/3)"
    reported = load_data(DataConfig(train=train, test=test, ood=None))
    assert reported.notes() == [line]
    assert len(reported.questions["train"]) == 4
    assert reported.summary()["questions_also_in_train"] == {"test": 1}
    dropped = load_data(DataConfig(train=train, test=test, ood=None, duplicates=Duplicates.drop))
    assert [question.id for question in dropped.questions["train"]] == ["train/1", "train/2", "train/4"]
    assert dropped.splits["train"].records == 4
    assert dropped.notes()[1] == line + "; dropped from train"
    with pytest.raises(DataError, match="1 of 2 test questions are also in train"):
        load_data(DataConfig(train=train, test=test, ood=None, duplicates=Duplicates.refuse))


def test_parquet_and_hub_data_sets(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list([{"prompt": "1+1? {{ }} 水", "answer": 2}, {"prompt": "2+2?", "answer": 4}])
    folder = tmp_path / "folder"
    folder.mkdir()
    rows.to_parquet(folder / "train.parquet")
    rows.save_to_disk(tmp_path / "saved")
    DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(tmp_path / "both")
    for source in (folder / "train.parquet", f"hf:{folder}", f"hf:{tmp_path / 'saved'}", f"hf:{tmp_path / 'both'}"):
        found = load_source(DataConfig(), "train", str(source)).questions
        assert [(question.text, question.answer) for question in found] == [("1+1? {{ }} 水", "2"), ("2+2?", "4")]
    assert len(load_source(DataConfig(), "test", f"hf:{tmp_path / 'both'}").questions) == 1
    assert len(load_source(DataConfig(), "test", f"hf:{tmp_path / 'both'}@train").questions) == 2
    with pytest.raises(DataError, match="there is no split dev; it has train, test"):
        load_source(DataConfig(), "test", f"hf:{tmp_path / 'both'}@dev")
    for named, message in (("saved@test", "holds one set of records"), ("both:main@train", "has no subsets")):
        with pytest.raises(DataError, match=message):
            load_source(DataConfig(), "test", f"hf:{tmp_path / named}")
    with pytest.raises(DataError, match="is not of the form hf:owner/name"):
        load_source(DataConfig(), "test", "hf:")
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="cannot be read as Parquet") as caught:
        load_source(DataConfig(), "train", str(tmp_path / "bad.parquet"))
    assert "\n" not in str(caught.value)


def test_a_hub_id_without_network_is_one_clear_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "launch.train", "configs/demo.yaml", "data.train=hf:nobody/nothing", "--dry-run"]
    offline = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=offline, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: data.train=hf:nobody/nothing: the data set cannot be loaded (")


def test_minisci_by_the_name_of_its_split() -> None:
    found = load_source(DataConfig(minisci_test_size=8), "ood", "minisci:test").questions
    assert found == load_source(DataConfig(minisci_test_size=8), "test", "minisci").questions
    with pytest.raises(DataError, match=r"MiniSci has no split tset; it has train, validation, test, ood\."):
        load_source(DataConfig(), "ood", "minisci:tset")


def test_a_dry_run_prints_the_records_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = jsonl(tmp_path / "raw.jsonl", *(raw(f"q{i}") for i in range(30)), raw("z", kind="filling"))
    words = [f"data.train={path}", "data.test=split", "data.ood=null"]
    assert main([str(ROOT / "configs" / "demo.yaml"), *words, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "# questions: 27 train, 3 test, 0 ood" in out
    left_out = "held out for data.test (3), type filling is not multiple choice (1, first line 31)"
    assert f"# left out 4 of 31 train records: {left_out}" in out


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("data.test_fraction=1", "data.test_fraction=1.0 must be above 0 and below 1"),
        ("data.split_seed=-1", "data.split_seed=-1 must be at least 0"),
        ("data.ood=split", "data.ood=split: only data.test can be held out of data.train"),
        ("data.only_level=[L3]", "Did you mean data.only_levels?"),
        ("data.fields.txt=q", "Did you mean data.fields.text?"),
    ],
)
def test_wrong_settings(word: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(ROOT / "configs" / "demo.yaml", [word])
    assert message in str(caught.value)


CODE = st.sampled_from(["{", "}", "{{", "}}", "{% x %}", "%s", "%(x)s", "${HOME}", "{prompt}", "{solution}", "\\n"])
MATHS = st.sampled_from([r"\frac{1}{2}", "$x_1$", r"\boxed{}", "🎈", "é", "水", "<answer>", "<think>", "<|end|>"])
CONTROL = st.sampled_from(["\n", "\r", "\r\n", "\t", "\x00", "\x1b[0m", "\u2028", "\u202e"])
TEXTS = st.lists(CODE | MATHS | CONTROL | st.text(st.characters(exclude_categories=["Cs"])), min_size=1).map("".join)
QUESTIONS = TEXTS.filter(lambda text: text.strip() != "")


@given(question=QUESTIONS, option=QUESTIONS)
def test_any_text_of_a_question_is_unchanged_in_both_prompts(question: str, option: str) -> None:
    stored = json.loads(json.dumps({"prompt": question, "answer": "1"}))
    options = raw(question, choices={"text": [option, "b", "c", "d"], "label": list("ABCD")})
    items = [
        parse_own(SourceRecord(stored, "here", "mine", 1), FieldNames()),
        parse_sciknoweval(SourceRecord(json.loads(json.dumps(options)), "here", "raw", 1)),
        parse_gpqa(
            SourceRecord({**gpqa_row("r"), "Question": f"[{question}]", "Correct Answer": f"[{option}]"}, "", "g", 1)
        ),
    ]
    for item, text in zip(items, (question, question, f"[{question}]"), strict=True):
        assert isinstance(item, ParsedQuestion)
        parsed = item.question
        assert parsed.text == question or (parsed.text.startswith(f"{text}\n\nA: ") and option in parsed.text)
        for view in (BUILDER.student(parsed).tokens, BUILDER.privileged(parsed, "so: {1}")):
            assert parsed.text in BUILDER.tokenizer.decode(view)
