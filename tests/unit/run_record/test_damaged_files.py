"""Full disks, locked and damaged files of a run folder: one line with the file and the cause, and nothing else lost."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sqlite3
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from demopsd_dist.config import load
from demopsd_dist.report import write_report
from demopsd_dist.run_record import samples
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.run_record.ledger import Ledger
from demopsd_dist.run_record.log import RunLog
from demopsd_dist.util.errors import CheckpointError, ConfigError, DataError, RunFolderError
from launch import watch
from launch._training_run import write_final_report
from tests.unit.run_record.sample_rows import prompt
from workers.weights.tensor_files import refuse_non_finite, write_tensors

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"
STEP = {"rollout/samples": 1.0, "rollout/tokens": 1.0, "rollout/reward_mean": 0.5}
LOCKING = """
import sqlite3, sys
file = sqlite3.connect(sys.argv[1], isolation_level=None)
file.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(load(DEMO, [f"output_dir={tmp_path}"]))


def log_of(folder: RunFolder) -> tuple[RunLog, StringIO]:
    text = StringIO()
    return RunLog(folder, 9, Console(file=text, width=1000)), text


def test_metrics_on_a_full_disk(folder: RunFolder) -> None:
    folder.metrics.symlink_to("/dev/full")
    log, _ = log_of(folder)
    with pytest.raises(RunFolderError, match=r"metrics\.jsonl cannot be written: .*No space left"), log:
        log.write_step(1, dict(STEP))


def test_an_output_folder_that_is_a_file_or_a_broken_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    (tmp_path / "file").write_text("")
    for name in ("link", "file"):
        with pytest.raises(ConfigError, match=rf"output_dir={tmp_path / name} is a file, or a link to a folder that"):
            RunFolder.create(load(DEMO, [f"output_dir={tmp_path / name}"]))


def test_a_file_system_without_locks_is_not_taken_for_a_running_process(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Lustre does it that is mounted without `flock`; a folder made there is removed again."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    with folder.locked():
        assert folder.in_use()
    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(RunFolderError, match=r"keeps no file locks \(Function not implemented\)"):
        folder.in_use()
    parent = folder.path.parent / "other"
    with pytest.raises(ConfigError, match=rf"output_dir={parent}: the file system .* keeps no file locks"):
        RunFolder.create(load(DEMO, [f"output_dir={parent}"]))
    assert list(parent.iterdir()) == []


@pytest.mark.parametrize("name", ["metrics.jsonl", ".lock"])
def test_a_run_folder_that_cannot_be_written_at_the_start(folder: RunFolder, name: str) -> None:
    (folder.path / name).unlink(missing_ok=True)
    (folder.path / name).mkdir()
    with pytest.raises(RunFolderError, match=f"{name} cannot be written"), folder.locked():
        log_of(folder)


def test_samples_that_cannot_be_written(folder: RunFolder) -> None:
    folder.samples.write_text("a file where the folder should be")
    with pytest.raises(RunFolderError, match=r"step-000001\.parquet cannot be written"):
        samples.write(folder.samples, 1, [])


def test_a_ledger_that_another_process_locks_is_waited_for_and_the_process_named(folder: RunFolder) -> None:
    ledger = Ledger(folder.ledger, locked_s=0.3)
    ledger.begin(0, "started")
    locking = [sys.executable, "-c", LOCKING, str(folder.ledger)]
    with subprocess.Popen(locking, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        for _ in range(2):  # the second finds no transaction of the first
            with pytest.raises(
                RunFolderError, match=rf"was locked by another process for 0\.3 s: process {other.pid} "
            ):
                ledger.issued(1, [prompt("q")], 2)
        other.communicate("\n")
    ledger.issued(1, [prompt("r")], 2)
    ledger.close()
    with sqlite3.connect(folder.ledger) as file:
        assert file.execute("SELECT prompt, sample FROM events").fetchall() == [("r", 0), ("r", 1)]


def test_a_damaged_line_of_the_metrics_is_said_at_a_resume_and_moved(folder: RunFolder) -> None:
    lines = [json.dumps({"step": step, **STEP, "perf/step_s": 1.0}) for step in (1, 2, 3)]
    folder.metrics.write_text("\n".join([lines[0], lines[1][:20], lines[2], lines[2][:10]]))
    log, text = log_of(folder)
    with log:
        log.roll_back(3)
    assert "warning: 1 lines of" in text.getvalue()
    assert [json.loads(line)["step"] for line in folder.metrics.read_text().splitlines()] == [1, 3]
    assert lines[1][:20] in folder.undone_metrics.read_text()


def test_watching_goes_on_after_a_damaged_line_and_a_damaged_sample(folder: RunFolder) -> None:
    step = json.dumps({"step": 2, **STEP, "perf/step_s": 1.0, "perf/samples_per_s": 1.0, "rollout/learned_fraction": 1})
    folder.metrics.write_text(f'{{"step": 1, "rol\n{step}\n')
    folder.samples.mkdir()
    samples.file_path(folder.samples, 1).write_bytes(b"PAR1 and no more")
    folder.summary.write_text("{}")
    text = StringIO()
    assert watch.watch(folder, Console(file=text, width=1000)) == 0
    assert "metrics.jsonl is damaged: the line that ends at byte 17" in text.getvalue()
    assert "step-000001.parquet is damaged" in text.getvalue()
    assert "step  2/" in text.getvalue()


def test_a_report_names_a_damaged_file(folder: RunFolder) -> None:
    folder.metrics.write_text("")
    folder.summary.write_text('{"steps": ')
    with pytest.raises(DataError, match=r"summary\.json is damaged\. Remove it"):
        write_report([folder.path], folder.report)
    folder.summary.unlink()
    folder.samples.mkdir()
    samples.file_path(folder.samples, 1).write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"step-000001\.parquet is damaged"):
        write_report([folder.path], folder.report)


def test_a_finished_run_does_not_fail_for_its_report(folder: RunFolder) -> None:
    said: list[str] = []
    write_final_report(RunFolder(folder.path / "missing"), said.append)
    assert "warning: the report could not be written (DataError: " in said[0]
    assert "demopsd report" in said[0]


def test_prebuild_explains_itself_without_building() -> None:
    command = [sys.executable, "-m", "launch.prebuild", "--help"]
    shown = subprocess.run(command, cwd=DEMO.parents[1], env=os.environ, capture_output=True, text=True, check=True)
    assert "usage: python -m launch.prebuild" in shown.stdout


def test_tensors_come_back_as_they_were(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5)}
    write_tensors(tensors, tmp_path / "file", {"version": "3"})
    found = load_file(tmp_path / "file")
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "weights-00000.safetensors"
    with pytest.raises(RunFolderError, match=r"weights-00000\.safetensors cannot be written: .*free disk space"):
        write_tensors({"a": torch.zeros(3)}, path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_named(tmp_path: Path, value: float) -> None:
    tensor = torch.ones(2, 3)
    refuse_non_finite(tensor, "lm_head.weight/value", tmp_path)
    tensor[1, 2] = value
    with pytest.raises(CheckpointError, match=r"lm_head\.weight/value has 1 of 6 values that are not finite"):
        refuse_non_finite(tensor, "lm_head.weight/value", tmp_path)
