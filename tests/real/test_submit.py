"""`launch.submit` against a cluster of one node with token authentication and a dashboard."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.real.conftest import ROOT, marked

RAY = str(Path(sys.executable).with_name("ray"))
START_S, END_S = 90, 120


@dataclass(frozen=True)
class Head:
    url: str
    environment: dict[str, str]

    def submit(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "launch.submit", *words, f"--address={self.url}"],
            cwd=ROOT,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def said(self, *words: str, **environment: str) -> tuple[int, str]:
        """Exit code and output of `launch.submit` with these words."""
        process = self.submit(*words, **environment)
        said, _ = process.communicate(timeout=END_S)
        return process.returncode, said


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    token = tmp_path_factory.mktemp("token") / "token"
    token.write_text("a" * 64)
    mark, port, dashboard = uuid.uuid4().hex, free_port(), free_port()
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "DEMOPSD_TEST_MARK": mark,
    }
    words = ["--head", f"--port={port}", "--node-ip-address=127.0.0.1", f"--dashboard-port={dashboard}"]
    words += ["--dashboard-host=127.0.0.1", "--num-cpus=2", "--disable-usage-stats", "--block"]
    own = tempfile.TemporaryDirectory(prefix="ray")  # its path is short, as sockets need it
    words += [f"--temp-dir={own.name}", f"--dashboard-agent-listen-port={free_port()}"]
    node = subprocess.Popen(
        [RAY, "start", *words], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        give_up = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", dashboard), timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < give_up, "no dashboard"
                time.sleep(0.2)
        yield Head(f"http://127.0.0.1:{dashboard}", environment)
    finally:
        node.terminate()
        node.wait(30)
        give_up = time.monotonic() + 15
        while marked(mark) and time.monotonic() < give_up:
            time.sleep(0.5)
        left = marked(mark)
        for process in left:
            process.kill()
        own.cleanup()
        assert not left, left


def test_a_job_that_fails_gives_its_exit_code_and_its_error(head: Head, tmp_path: Path) -> None:
    code, said = head.said("configs/demo.yaml", f"output_dir={tmp_path}", "data.train=/nowhere/train.jsonl")
    assert code == 2, said
    first, *_, last = said.splitlines()
    name = first.removeprefix("job ")
    assert re.fullmatch(rf"{name} failed with exit code 2: error: .*/nowhere/train\.jsonl.*", last), said
    code, said = head.said("--status", name)
    assert code == 0
    assert said.startswith(f"{name} FAILED with exit code 2\nerror: "), said
    assert "/nowhere/train.jsonl" in said


def test_a_job_is_followed_left_alone_and_stopped(head: Head, tmp_path: Path) -> None:
    small = ["rollout.num_workers=1", "learner.num_workers=1", "evaluation.at_start=false", "steps=9000"]
    run = head.submit("configs/demo.yaml", f"output_dir={tmp_path}", *small)
    assert run.stdout is not None
    name = run.stdout.readline().strip().removeprefix("job ")
    for line in run.stdout:
        if line.startswith("run folder"):
            break
    else:
        pytest.fail(f"{name} has ended")
    run.send_signal(signal.SIGINT)
    assert run.wait(30) == 130
    assert f"{name} goes on; --stop {name} ends it" in run.stdout.read()
    assert head.said("--status", name) == (0, f"{name} RUNNING\n")
    assert head.said("--stop", name) == (0, f"{name} is asked to stop\n")
    code, said = head.said("--logs", name)
    assert code == 130
    assert "interrupted" in said
    assert f"{name} was stopped" in said


def test_without_the_token_nothing_is_told(head: Head, tmp_path: Path) -> None:
    code, said = head.said("--status", "any", RAY_AUTH_TOKEN="0" * 64)
    assert code == 2
    assert "the cluster refuses the token" in said
    assert head.said("--status", "any") == (2, f"error: --address {head.url}: there is no job any.\n")
