"""Sinks of metrics: every sink gets the same numbers, under names that are in the glossary."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from demopsd_dist.config import load
from demopsd_dist.run_record import metric_glossary, samples, sinks
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.run_record.run_inputs import write_inputs
from demopsd_dist.training.run import Task
from demopsd_dist.util.errors import ConfigError, DataError
from launch import report
from launch.watch import watch
from tests.driver.test_loop import DEMO, DriverRun, task

__all__ = ["task"]


def test_every_metric_of_a_run_is_in_the_glossary(tmp_path: Path, task: Task) -> None:
    run = DriverRun(tmp_path, task, "steps=2", "leakage.every_steps=1")
    names = {name for line in run.log_of_steps() for name in line} - {"step"}
    assert len(names) > 20
    assert [name for name in sorted(names) if metric_glossary.find_metric(name) is None] == []


def test_samples_of_a_run(tmp_path: Path, task: Task) -> None:
    """Samples of every second step, as many as requested; training examples have the values of their tokens."""
    run = DriverRun(tmp_path, task, "steps=3", "samples.every_steps=2", "samples.responses=10", skill=0.15)
    files = samples.files(run.folder.samples)
    assert [path.name for path in files] == ["step-000001.parquet", "step-000003.parquet"]
    rows = samples.read(files[1])
    assert len({(row["prompt_id"], row["sample"]) for row in rows}) == 10
    learned = {item.id for item in run.batches[2].items}
    for row in rows:
        assert row["step"] == 3
        assert row["learned"] == (f"{row['prompt_id']}#{row['sample']}" in learned)
        assert (row["alpha"] is not None) == row["learned"]
        assert len(row["token_texts"]) == len(row["token_ids"]) == len(row["response"]), "a stand-in's token is a byte"
        assert set(row["versions"]) == {2}
        assert row["privileged_view"] is None or row["expected"] in row["privileged_view"]
    assert {row["learned"] for row in rows} == {True, False}
    assert "time/samples_s" in run.log_of_steps()[0]
    assert "time/samples_s" not in run.log_of_steps()[1]


def test_tensorboard_has_the_metrics(tmp_path: Path, task: Task) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: make setup")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = DriverRun(tmp_path, task, "steps=2", "sinks.tensorboard=true")
    events = EventAccumulator(str(run.folder.path / "tensorboard"))
    events.Reload()
    recorded = {event.step: event.value for event in events.Scalars("rollout/reward_mean")}
    assert recorded == pytest.approx({line["step"]: line["rollout/reward_mean"] for line in run.log_of_steps()})
    accuracy = [(event.step, event.value) for event in events.Scalars("evaluation/test/mean/average")]
    assert [step for step, _ in accuracy] == [0, 2]
    assert accuracy[-1][1] == pytest.approx(run.summary["accuracy_after"]["average"])


def test_wandb_offline_has_the_metrics(tmp_path: Path, task: Task) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: make setup")
    run = DriverRun(tmp_path, task, "steps=2", "sinks.wandb=offline")
    (written,) = (run.folder.path / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"rollout/reward_mean" in written.read_bytes()
    assert b"evaluation/test/mean/average" in written.read_bytes()


def wandb_records(path: Path) -> Iterator[Any]:
    """Records of an offline W&B file: a header of 7 bytes, then LevelDB's log of protocol buffers."""
    from wandb.proto import wandb_internal_pb2

    block, header = 1 << 15, 7
    data, position, part = path.read_bytes(), header, b""
    while position + header <= len(data):
        if (left := block - position % block) < header:
            position += left
            continue
        size, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        position += header
        part += data[position : position + size]
        position += size
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(part)
            part = b""
            yield record


def test_wandb_goes_on_with_one_run_after_a_rollback_and_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: make setup")
    config = load(DEMO, ["sinks.wandb=offline", f"output_dir={tmp_path}"])
    folder = RunFolder.create(config)
    write_inputs(folder, {})
    for steps in ([1, 2, 3, 2, 3], [3, 4]):  # back after step 3; resumed after step 2
        sink = sinks.WeightsAndBiases(config, folder)
        for step in steps:
            sink.write(step, {"rollout/reward_mean": step / 10})
            sink.write(step, {"evaluation/test/mean/average": 0.5})
        sink.close()
    files = sorted((folder.path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert [path.name for path in files] == [f"run-{folder.identity}.wandb"] * 2
    records = [record for path in files for record in wandb_records(path)]
    assert {record.run.run_id for record in records if record.HasField("run")} == {folder.identity}
    metrics = [record.metric for record in records if record.HasField("metric")]
    assert {(metric.glob_name, metric.step_metric) for metric in metrics} >= {("*", "step")}
    history = [
        {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]
    rewards = [(row["step"], row["rollout/reward_mean"]) for row in history if "rollout/reward_mean" in row]
    assert rewards == [(str(step), str(step / 10)) for step in (1, 2, 3, 2, 3, 3, 4)]
    assert sum("evaluation/test/mean/average" in row for row in history) == 7


def test_a_sink_without_its_package_names_the_command() -> None:
    for word, message in (
        ("sinks.tensorboard=true", "sinks.tensorboard=true needs a package that is not installed: pip install tensor"),
        ("sinks.wandb=offline", "sinks.wandb=offline needs a package that is not installed: pip install wandb."),
    ):
        with pytest.raises(ConfigError, match=message):
            sinks.check_sinks(load(DEMO, [word]), is_installed=lambda package: False)
    sinks.check_sinks(load(DEMO), is_installed=lambda package: False)


def test_watch_prints_the_lines_of_the_run(tmp_path: Path, task: Task) -> None:
    run = DriverRun(tmp_path, task, "steps=3")
    run.folder.write_summary(run.summary)
    file = StringIO()
    assert watch(run.folder, Console(file=file, width=200, soft_wrap=True, highlight=False)) == 0
    printed, watched = run.console.getvalue().splitlines(), file.getvalue().splitlines()
    assert watched[: len(printed)] == printed
    assert watched[len(printed)].startswith("step 3  ")
    assert any(line.startswith("expected ") for line in watched[len(printed) :])


def test_a_folder_of_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match=r"is no run folder: it has no metrics.jsonl"):
        watch(RunFolder(tmp_path), Console(file=StringIO()))
    assert report.main([str(tmp_path)]) == 2
    assert "is no run folder: it has no metrics.jsonl. Name a folder in runs/." in capsys.readouterr().err


def test_the_report_of_a_run(tmp_path: Path, task: Task, capsys: pytest.CaptureFixture[str]) -> None:
    run = DriverRun(tmp_path, task, "steps=2")
    assert report.main([str(run.folder.path)]) == 0
    assert f"{run.folder.report} (" in capsys.readouterr().out
    page = run.folder.report.read_text(encoding="utf-8")
    assert "://" not in page.replace("http://www.w3.org/2000/svg", ""), "nothing from elsewhere"
    config = page.split('id="data">')[1].split("</script>")[0]
    assert json.loads(config)["runs"][0]["samples"] == 32
