"""The file of an experiment's records: complete lines, whatever happens to a writer."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from benchmarks.experiment.run_arms import RESULTS
from benchmarks.experiment.run_records import Record, RunRecords
from demopsd_dist.util.errors import InputError

RECORD: Record = {"words": ["seed=0"], "config": "seed: 0\n", "summary": {"alpha_mean": 0.1 + 0.2}, "curves": {}}


def append_many(path: Path, writer: int) -> None:
    records = RunRecords(path)
    for index in range(20):
        records.append(f"{writer}-{index}", {"words": ["x" * 10_000], "index": index})


def test_records_are_read_as_they_were_written(tmp_path: Path) -> None:
    records = RunRecords(tmp_path / "new" / "records.jsonl")
    assert records.load() == {}
    records.append("one", RECORD)
    records.append("two", RECORD | {"words": []})
    records.append("one", RECORD | {"words": ["seed=1"]})
    assert records.load() == {"one": RECORD | {"words": ["seed=1"]}, "two": RECORD | {"words": []}}
    assert records.path.read_bytes().count(b"\n") == 3


@pytest.mark.parametrize("size", [1, 20, -2])
def test_an_incomplete_last_line_is_reported_and_replaced(tmp_path: Path, size: int) -> None:
    """A writer that was killed in mid-write leaves such a line."""
    messages: list[str] = []
    records = RunRecords(tmp_path / "records.jsonl", messages.append)
    records.append("one", RECORD)
    complete = records.path.read_bytes()
    records.path.write_bytes(complete + complete.replace(b"one", b"two")[:size])
    assert records.load() == {"one": RECORD}
    (message,) = messages
    assert f"the last line is incomplete ({len(complete[:size])} bytes) and is ignored" in message
    records.append("three", RECORD)
    assert list(records.load()) == ["one", "three"]
    assert len(messages) == 1
    assert records.path.read_bytes() == complete + complete.replace(b"one", b"three")


def test_an_incomplete_only_line_is_replaced(tmp_path: Path) -> None:
    records = RunRecords(tmp_path / "records.jsonl", lambda _: None)
    records.path.write_text('{"run": "o')
    assert records.load() == {}
    records.append("one", RECORD)
    assert records.load() == {"one": RECORD}


def test_a_last_line_without_its_line_feed_is_a_record(tmp_path: Path) -> None:
    records = RunRecords(tmp_path / "records.jsonl")
    records.append("one", RECORD)
    records.path.write_bytes(records.path.read_bytes()[:-1])
    assert records.load() == {"one": RECORD}
    records.append("two", RECORD)
    assert list(records.load()) == ["one", "two"]


def test_a_broken_line_between_others_is_refused(tmp_path: Path) -> None:
    records = RunRecords(tmp_path / "records.jsonl")
    records.append("one", RECORD)
    records.path.write_bytes(b"{}\n" + records.path.read_bytes())
    with pytest.raises(InputError, match=r"records.jsonl, line 1 is not the record of a run: b'{}'"):
        records.load()


def test_two_processes_do_not_tear_the_file(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.starmap(append_many, [(path, writer) for writer in range(2)])
    records = RunRecords(path, pytest.fail).load()
    assert sorted(records) == sorted(f"{writer}-{index}" for writer in range(2) for index in range(20))
    assert all(record["words"] == ["x" * 10_000] for record in records.values())


@pytest.mark.parametrize("folder", sorted(RESULTS.iterdir()), ids=lambda folder: folder.name)
def test_the_shipped_records_are_complete(folder: Path) -> None:
    records = RunRecords(folder / "records.jsonl", pytest.fail).load()
    lines = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
    assert sorted(json.loads(line)["run"] for line in lines) == sorted(records), "one line a run"
    (keys,) = {tuple(record) for record in records.values()}
    every = ("words", "config", "summary", "curves", "evaluations", "by_question")
    assert keys in {every[:4], every[:5], every}, "records of earlier versions have fewer"
