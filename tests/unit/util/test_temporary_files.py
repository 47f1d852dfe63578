"""Temporary folders of processes: which of them are left, where several machines or containers share the place."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from demopsd_dist.util.temporary_files import is_left, started_ticks

CODE = "from demopsd_dist.util.temporary_files import use_own_temporary_folder; print(use_own_temporary_folder())"


def folder_of_another_process(parent: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env=os.environ | {"TMPDIR": str(parent)},
        check=True,
        capture_output=True,
        text=True,
    )
    return Path(done.stdout.strip())


def test_a_folder_of_an_ended_process_is_left_and_one_of_another_machine_is_not(tmp_path: Path) -> None:
    folder = folder_of_another_process(tmp_path)
    assert folder.is_dir()
    assert is_left(folder)
    place, pid, ticks = folder.name.split("-")
    other = f"{int(place, 16) ^ 1:06x}"
    assert not is_left(folder.with_name(f"{other}-{pid}-{ticks}")), "its processes cannot be seen from here"


def test_a_folder_of_a_living_process_is_not_left(tmp_path: Path) -> None:
    place = folder_of_another_process(tmp_path).name.partition("-")[0]
    own = tmp_path / f"{place}-{os.getpid()}-{started_ticks(os.getpid())}"
    assert not is_left(own)
    assert is_left(own.with_name(f"{place}-{os.getpid()}-1")), "an earlier process of that id"
