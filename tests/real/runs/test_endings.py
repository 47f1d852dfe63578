"""However a run ends, it ends whole: the exit code tells, and no process of it is left ten seconds later."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import ClassVar

import psutil
import pytest

from benchmarks.common.run_processes import command_of, marked
from tests.real.conftest import DEMO, ROOT, SMALL

FEW = ("rollout.num_workers=1", "learner.num_workers=1", "evaluation.at_start=false", "steps=9000")  # starts faster
SECRETS = {"HF_TOKEN": "hf_" + "q7" * 17, "WANDB_API_KEY": "8c" * 20, "AWS_SECRET_ACCESS_KEY": "Zx9" * 13}


class Launched:
    """`demopsd train` in its own session, its output in a file."""

    all: ClassVar[list[Launched]] = []

    def __init__(self, folder: Path, *words: str) -> None:
        folder.mkdir(exist_ok=True)
        self._words = words
        self._output = folder
        self.mark = uuid.uuid4().hex
        self.folder = folder / "demo"
        self.log = folder / "log"
        fast = [*SMALL, "profile.peak_tflops=0.1"]  # not measured, which takes seconds
        command = [sys.executable, "-m", "launch.train", str(DEMO), *fast, f"output_dir={folder}", *words]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
            env={**os.environ, **SECRETS, "DEMOPSD_TEST_MARK": self.mark},
            start_new_session=True,
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # a shell's `&` has it ignored
        )
        self.all.append(self)

    def again(self, *words: str) -> Launched:
        """The same command once more, with these words after it."""
        return Launched(self._output, *self._words, *words)

    def has_said(self, text: str) -> Callable[[], bool]:
        return lambda: text in self.log.read_text()

    def has_said_more(self, text: str, times: int) -> Callable[[], bool]:
        """Condition: the text was printed that many times from now on."""
        before = self.log.read_text().count(text)
        return lambda: self.log.read_text().count(text) >= before + times

    def wait_until(self, what: str, ready: Callable[[], object], within_s: float = 300) -> None:
        deadline = time.monotonic() + within_s
        while not ready():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, f"waited in vain for {what}\n{self.log.read_text()}"
            time.sleep(0.1)

    def actors(self, name: str) -> list[psutil.Process]:
        return [process for process in marked(self.mark) if f"ray::{name}" in command_of(process)]

    def has_actors(self, name: str, count: int) -> bool:
        return len(self.actors(name)) == count

    def end(self, within_s: float = 30) -> int:
        """The exit code; asserts that everything is gone ten seconds after the driver."""
        code = self.process.wait(timeout=within_s)
        left = psutil.wait_procs(marked(self.mark), timeout=10)[1]
        assert not left, f"left behind: {left}"
        return code


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    Launched.all.clear()
    folders = itertools.count()
    yield lambda *words: Launched(tmp_path / f"{next(folders)}", *words)
    for run in Launched.all:
        for process in marked(run.mark):
            process.kill()


@pytest.mark.long
def test_ctrl_c_while_the_engines_start(launch: Callable[..., Launched]) -> None:
    run = launch()
    run.wait_until("an actor", lambda: run.actors("RolloutWorker"))
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 130
    assert run.log.read_text().rstrip().endswith("interrupted")


def test_ctrl_c_and_a_stop_signal_to_every_process_in_training(launch: Callable[..., Launched]) -> None:
    """Two runs side by side: neither the signal nor the end of one reaches the other. A closed terminal signals the
    process group, SLURM every process of the job; the driver alone follows, and the run is saved all the same."""
    interrupted, stopped = launch(*FEW), launch(*FEW)
    for run in (interrupted, stopped):
        run.wait_until("the second step", run.has_said("step    2/9000"))
    interrupted.process.send_signal(signal.SIGINT)
    assert interrupted.end(within_s=60) == 130  # longer than alone: the other run has half of the cores
    stopped.wait_until("one more step", stopped.has_said_more("samples/s", 1))
    os.killpg(stopped.process.pid, signal.SIGHUP)
    for process in marked(stopped.mark):
        with suppress(psutil.NoSuchProcess):
            process.terminate() if process.pid != stopped.process.pid else None
    assert stopped.end(within_s=60) == 130
    for run in (interrupted, stopped):
        said = run.log.read_text()
        assert "the same command with --resume continues" in said
        assert said.rstrip().endswith("interrupted")
        assert "Traceback" not in said
        assert "warning" not in said, "no worker was lost"
        assert list(run.folder.glob("checkpoints/step-*"))


@pytest.mark.long
@pytest.mark.parametrize("victim", ["raylet", "gcs_server"])
def test_a_run_ends_soon_after_a_process_of_ray(victim: str, launch: Callable[..., Launched]) -> None:
    run = launch(*FEW)
    run.wait_until("the first step", run.has_said("step    1/9000"))
    (process,) = [one for one in marked(run.mark) if one.name() == victim]
    process.kill()
    assert run.end() == 1
    said = run.log.read_text().rstrip().splitlines()[-1]
    assert said.startswith(f"error: Ray's {victim} (process {process.pid}, exit code -9) has ended")


def secrets_of(run: Launched) -> list[str]:
    """Secrets that the run's processes hold, once it has a rollout worker."""
    run.wait_until("an actor", lambda: run.actors("RolloutWorker"))
    return [run.actors("RolloutWorker")[0].environ()["RAY_AUTH_TOKEN"], *SECRETS.values()]


def check_what_it_left(run: Launched, secrets: list[str]) -> None:
    """A run that has ended well leaves a student and figures, and writes no secret."""
    files = {path.name for path in run.folder.iterdir() if not path.name.startswith((".", "ledger"))}
    expected = {"config.yaml", "metrics.jsonl", "summary.json", "report.html"}
    expected |= {"student", "checkpoints", "samples", "evaluations", "replay", "inputs.json", "initial_responses.npz"}
    assert files == expected
    assert "Traceback" not in run.log.read_text()
    written = [path for path in run.folder.parent.rglob("*") if path.is_file()]
    assert [path for path in written if any(secret.encode() in path.read_bytes() for secret in secrets)] == []


def test_a_call_after_the_end_looks_for_no_other_cluster() -> None:
    """Ray would connect by itself, and wait for a cluster that is gone: an interrupted run once hung so at its exit."""
    program = "from workers import cluster; import ray; ray.nodes()"
    found = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": "127.0.0.1:1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Ray has not been started yet" in found.stderr
