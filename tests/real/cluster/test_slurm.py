"""`launch/slurm.sbatch` with stand-ins for Slurm's commands: they run what they are given here, and one node never
comes. Ray is real."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.real.conftest import refuse_left

ROOT = Path(__file__).parents[3]
BOUND_S = 240

SRUN = """#!/usr/bin/env bash
# Runs the command here. Node "absent" never starts anything; "broken" ends at once.
while [[ $1 == --* ]]; do
  [[ $1 == --nodelist=* ]] && node=${1#*=}
  shift
done
case $node in
  absent) exec sleep 600 ;;
  broken) echo "no GPU found" ; exit 3 ;;
esac
[[ $1 == hostname ]] && { echo 127.0.0.1; exit; }
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
[[ "$1 $2" == "show hostnames" ]] || exit 1
tr ',' '\\n' <<< "$3"
"""


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a job; whatever it leaves behind is killed, and is a failure."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        command = tmp_path / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.write_text(text)
        command.chmod(0o755)
    mark = uuid.uuid4().hex
    yield os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": str(int(mark, 16) % 100_000),
        "SLURM_CPUS_PER_TASK": "1",
        "DEMOPSD_TEST_MARK": mark,
    }
    refuse_left(mark)


def run(environment: dict[str, str], nodes: str, *words: str, within_s: int = 60) -> subprocess.CompletedProcess[str]:
    (Path(environment["SLURM_SUBMIT_DIR"]) / "configs").symlink_to(ROOT / "configs")
    return subprocess.run(
        ["bash", str(ROOT / "launch" / "slurm.sbatch"), *words],
        env=environment | {"SLURM_JOB_NODELIST": nodes, "NODES_WITHIN_S": str(within_s)},
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )


@pytest.mark.long
def test_two_nodes_train(slurm: dict[str, str], tmp_path: Path) -> None:
    small = ["steps=1", "rollout.prompts_per_step=8", "evaluation.at_start=false", "data.minisci_test_size=8"]
    small += ["evaluation.samples=1", "data.ood=null", "data.minisci_train_size=64"]
    small += [f"{role}.cpus_per_worker=0.3" for role in ("rollout", "teacher", "learner")]  # five on two nodes of one
    done = run(slurm, "first,second", "configs/demo.yaml", *small)
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-2000:])
    assert "2 nodes have joined" in done.stdout
    assert (tmp_path / "runs" / "demo" / "summary.json").is_file()
    assert not list(tmp_path.glob("slurm-*/token")), "the token outlived the job"


def test_a_node_that_never_comes_is_named(slurm: dict[str, str]) -> None:
    done = run(slurm, "first,absent", "configs/demo.yaml", within_s=15)
    assert done.returncode == 1
    assert "1 of 2 nodes did not join" in done.stderr
    assert "within 15 s: absent." in done.stderr


def test_a_node_whose_ray_ends_is_named_at_once(slurm: dict[str, str]) -> None:
    began = time.monotonic()
    done = run(slurm, "first,broken", "configs/demo.yaml", within_s=120)
    assert done.returncode == 1
    assert "Ray on node broken has ended before the run began" in done.stderr
    assert "no GPU found" in done.stderr
    assert time.monotonic() - began < 60
