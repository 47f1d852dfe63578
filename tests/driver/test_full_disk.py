"""A volume that is full in truth, wherever the run happens to be: one line with the cause, and nothing lost."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from demopsd_dist.training.run import Task
from demopsd_dist.util.errors import ConfigError, RunFolderError
from tests.driver.test_loop import task as task  # a fixture
from tests.driver.test_nothing_lost import RecordedRun

SIZE_MIB = 32
ROOM = (0.0, 0.02, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.75, 0.9, 0.97)
"""Room that is left at the start, as a share of what an undisturbed run writes."""


@contextmanager
def volume(folder: Path) -> Iterator[Path]:
    """A small file system of its own at this folder."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "demopsd-test", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"mounting a file system needs rights: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def used_bytes(folder: Path) -> int:
    statistics = os.statvfs(folder)
    return (statistics.f_blocks - statistics.f_bfree) * statistics.f_frsize


def fill(folder: Path, left: int) -> Path:
    """Write a file that leaves this many bytes."""
    path, statistics = folder / "filler", os.statvfs(folder)
    with path.open("wb") as file:
        file.write(bytes(statistics.f_bfree * statistics.f_frsize - left))
    return path


def test_a_volume_that_fills_up_at_any_moment_loses_nothing(tmp_path: Path, task: Task) -> None:
    """The run ends with one line that names file and cause; with room again it resumes and trains the same samples."""
    with volume(tmp_path / "calm") as folder:
        calm = RecordedRun(folder, task)
        calm.go()
        needed = used_bytes(folder)
    assert 2**18 < needed < SIZE_MIB * 2**20 / 2
    resumed = 0
    for index, share in enumerate(ROOM):
        with volume(tmp_path / f"{index}") as folder:
            filler = fill(folder, int(needed * share))
            messages = []
            run = None
            with suppress(ConfigError):
                run = RecordedRun(folder, task)
            for _ in range(2):  # the second time as by a user who has not made room
                with pytest.raises((ConfigError, RunFolderError)) as failed:
                    (run or RecordedRun(folder, task)).go(resume=bool(run and run.checkpoints()))
                messages.append(str(failed.value))
            for message in messages:
                assert "No space left on device" in message
                assert "\n" not in message
            filler.unlink()
            if run is None or not run.checkpoints():
                continue
            resumed += 1
            assert run.go(resume=True).step == 8
            assert run.audit().faults == []
            assert run.learned == calm.learned
            assert run.steps_on_record() == list(range(1, 9))
    assert resumed >= 2, "some of the runs had a checkpoint"
