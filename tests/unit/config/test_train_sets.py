"""Several training sets by weight: entries as written, and one line for each wrong one."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from demopsd_dist.config import FieldNames, Format, load, to_yaml, train_sets, train_text
from demopsd_dist.config.train_sets import sources_of
from demopsd_dist.util.errors import ConfigError

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"
TWO = "data.train=[{path: a/007.jsonl, weight: 3, format: choices}, {path: b.jsonl, fields: {text: 010, id: null}}]"


def test_entries_as_they_are_written(tmp_path: Path) -> None:
    config = load(DEMO, [TWO, "data.suffix=' Why?'", "data.ood=null"])
    first, second = train_sets(config.data)
    assert (first.label, first.path, first.weight, first.format) == ("007", "a/007.jsonl", 3.0, Format.choices)
    assert (second.label, second.weight, second.fields) == ("b", 1.0, FieldNames(text="010"))
    assert (first.suffix, second.suffix, second.format) == (" Why?", " Why?", Format.auto)
    assert train_text(config.data) == "a/007.jsonl (weight 3) + b.jsonl (weight 1)"
    assert sources_of(config.data) == ["a/007.jsonl", "b.jsonl", "minisci"]
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load(tmp_path / "again.yaml") == config
    (tmp_path / "file.yaml").write_text(f"base: {DEMO}\ndata:\n  train:\n  - {{path: 1e5, weight: 2}}\n")
    assert [one.path for one in train_sets(load(tmp_path / "file.yaml").data)] == ["1e5"]


def test_one_source_is_text() -> None:
    for text in ("a.jsonl", "007", "off", "minisci:validation"):
        data = load(DEMO, [f"data.train={text}"]).data
        assert (data.train, train_sets(data), train_text(data)) == (text, [], text)


def test_sets_of_one_name_are_named_by_their_folders() -> None:
    words = (
        "data.train=[{path: x/train.jsonl}, {path: y/train.jsonl}, {path: minisci:validation}, {path: hf:o/n@train}]"
    )
    labels = [one.label for one in train_sets(load(DEMO, [words]).data)]
    assert labels == ["x-train", "y-train", "minisci-validation", "n-train"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[]", r"must be a source, or a list of sets such as \[{path: a.jsonl, weight: 3}"),
        ("null", "must be a source, or a list of sets"),
        ("{path: a}", r"there is no setting data.train.path\. Did you mean data.train\?"),
        ("[a.jsonl]", r"data.train\[0\] is 'a.jsonl', not a set such as {path: a.jsonl, weight: 3}\."),
        ("[{weight: 1}]", r"data.train\[0\] has no path\. Name its source"),
        ("[{path: a, weight: 0}]", r"data.train\[0\].weight=0 must be a number greater than 0\."),
        ("[{path: a}, {path: b, weight: -1.5}]", r"data.train\[1\].weight=-1.5 must be a number greater than 0"),
        ("[{path: a, weight: .inf}]", r"weight=inf must be a number greater than 0"),
        ("[{path: a, weight: .nan}]", r"weight=nan must be a number greater than 0"),
        ("[{path: a, weight: yes}]", r"weight=True must be a number greater than 0"),
        ("[{path: a, weigth: 1}]", r"data.train\[0\] has no weigth; its keys are .* Did you mean weight\?"),
        ("[{path: a, format: choice}]", r"format=choice is none of .* Did you mean choices\?"),
        ("[{path: a, fields: {answr: x}}]", r"data.train\[0\].fields has no answr; .* Did you mean answer\?"),
        ("[{path: a, fields: x}]", r"data.train\[0\].fields='x' must name fields"),
        ("[{path: a}, {path: a}]", r"data.train\[1\].path=a is there twice\. Add the weights up in one entry\."),
        ("[{path: x/a.csv}, {path: x/a.jsonl}]", r"has the name x-a of another set.* Rename the file\."),
        ("[{path: ~/a.jsonl}]", r"data.train\[0\].path=~/a.jsonl would be a folder named ~\. Write /"),
        ("[{path: split}]", "only data.test can be held out"),
        ("[{path: minisci, suffix: x}]", r"data.train\[0\].suffix has no effect with path=minisci"),
    ],
)
def test_a_wrong_set_is_one_line(value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load(DEMO, [f"data.train={value}"])
    assert "\n" not in str(caught.value)


def test_an_infinite_share_is_no_share() -> None:
    assert math.isfinite(sum(one.weight for one in train_sets(load(DEMO, [TWO]).data)))
