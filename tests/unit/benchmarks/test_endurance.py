"""Readings and fits of the endurance benchmark: real processes and files, and series whose growth is known."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.endurance.growth import all_growth, growth_of, report
from benchmarks.endurance.usage import MIB, Usage, read_usage, role_of, written_bytes


def test_the_slope_is_found_through_noise_and_outliers() -> None:
    rng = random.Random(0)
    steps = list(range(100, 1000, 10))
    values = [5 + 0.02 * step + rng.gauss(0, 0.5) + (300 if step % 170 == 0 else 0) for step in steps]
    growth = growth_of("memory", steps, values)
    assert growth.per_1000_steps == pytest.approx(20, abs=1)
    assert growth.low < 20 < growth.high
    level = growth_of("memory", steps, [rng.gauss(40, 1) for _ in steps])
    assert abs(level.per_1000_steps) < 1


def test_too_few_readings_are_no_fit() -> None:
    with pytest.raises(ValueError, match="memory: 3 readings after the warm-up; a fit needs 10"):
        growth_of("memory", [1, 2, 3], [1.0, 2.0, 3.0])


def test_memory_and_files_of_a_process_and_its_child_are_read(tmp_path: Path) -> None:
    """A child that holds 64 MiB and 20 files is in the reading, and so is what the run has written."""
    program = "import time; held = bytearray(64 << 20); files = [open('/dev/null') for _ in range(20)]; time.sleep(60)"
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "step-000001.parquet").write_bytes(bytes(3 * MIB))
    (tmp_path / "ledger.sqlite").write_bytes(bytes(MIB))
    (tmp_path / "ledger.sqlite-wal").write_bytes(bytes(MIB))
    own = psutil.Process(os.getpid())
    before = read_usage(own, tmp_path, 1, 0.0)
    with subprocess.Popen([sys.executable, "-c", program]) as child:
        try:
            deadline = time.monotonic() + 30
            while (usage := read_usage(own, tmp_path, 1, 0.0)).open_files.get("other processes of Ray", 0) < 20:
                assert time.monotonic() < deadline, usage
                time.sleep(0.1)
        finally:
            child.kill()
    others = usage.memory_mib["other processes of Ray"] - before.memory_mib.get("other processes of Ray", 0.0)
    assert 64 < others < 128
    assert usage.processes["driver"] == 1
    assert usage.written_mib == {"ledger": 2.0, "samples": 3.0}
    assert written_bytes(tmp_path) == {"ledger": 2 * MIB, "samples": 3 * MIB}


@pytest.mark.parametrize(
    ("name", "command", "role"),
    [
        ("ray::RolloutWor", ["ray::RolloutWorker.generate"], "rollout"),
        ("ray::LearnerWor", ["ray::LearnerWorker"], "learner"),
        ("ray::IDLE", ["ray::IDLE"], "other processes of Ray"),
        ("raylet", ["/x/raylet", "--session-dir=/tmp/s"], "raylet"),
        ("python", [], "other processes of Ray"),
    ],
)
def test_roles_of_processes(name: str, command: list[str], role: str) -> None:
    assert role_of(name, command) == role


def test_the_page_shows_growth_and_what_10_000_steps_write() -> None:
    readings = [
        Usage(
            step=step,
            seconds=step / 2,
            memory_mib={"driver": 500 + step / 100},
            open_files={"driver": 40},
            processes={"driver": 1},
            shared_mib={"segments": 10.0},
            written_mib={"samples": step / 1024},
        )
        for step in range(10, 1001, 10)
    ]
    growth = {one.name: one for one in all_growth(readings, 1000)}
    assert growth["memory: driver"].per_1000_steps == pytest.approx(10)
    assert growth["open files: driver"].per_1000_steps == 0
    raw = {
        "steps": 1000,
        "samples": 8000,
        "words": ["steps=1000"],
        "exit_code": 0,
        "audit": [],
        "readings": [reading.to_json() for reading in readings],
    }
    page = "\n".join(report(raw))
    assert "| memory: driver | 503.3 | 509.7 | +10.00 (+10.00 to +10.00) |" in page
    assert "| samples | 0.95 | 1,024 | 9.8 |" in page
