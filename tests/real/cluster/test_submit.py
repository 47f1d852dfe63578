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

from tests.real.conftest import ROOT, refuse_left

RAY = str(Path(sys.executable).with_name("ray"))
START_S, END_S = 90, 120


RUN_COMMANDS = """
import sys
from launch.submit import main
address, *commands = sys.argv[1:]
for command in commands:
    print("exit code", main([*command.split(), f"--address={address}"]))
"""


@dataclass(frozen=True)
class Head:
    url: str
    environment: dict[str, str]

    def submit(self, *words: str) -> subprocess.Popen[str]:
        return self._start("-m", "launch.submit", *words, f"--address={self.url}")

    def answers(self, *commands: str, **environment: str) -> str:
        """Output and exit code of `launch.submit` for each command, run one after the other in one process."""
        output, _ = self._start("-c", RUN_COMMANDS, self.url, *commands, **environment).communicate(timeout=END_S)
        return output

    def _start(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-u", *words],
            cwd=ROOT,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


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
        try:
            refuse_left(mark)
        finally:
            own.cleanup()


@pytest.mark.long
def test_jobs_are_followed_queried_and_stopped(head: Head, tmp_path: Path) -> None:
    """Two jobs at once: one that fails, and one whose follower is interrupted before it is stopped."""
    wrong = head.submit("configs/demo.yaml", f"output_dir={tmp_path}", "data.train=/nowhere/train.jsonl")
    small = ["rollout.num_workers=1", "learner.num_workers=1", "evaluation.at_start=false", "steps=9000"]
    run = head.submit("configs/demo.yaml", f"output_dir={tmp_path}", *small)
    output, _ = wrong.communicate(timeout=END_S)
    failed, last = output.splitlines()[0].removeprefix("job "), output.splitlines()[-1]
    assert wrong.returncode == 2, output
    assert re.fullmatch(rf"{failed} failed with exit code 2: (error: data.train=/nowhere/train\.jsonl: .*)", last), (
        output
    )
    error = last.partition(": ")[2]

    assert run.stdout is not None
    name = run.stdout.readline().strip().removeprefix("job ")
    for line in run.stdout:
        if line.startswith("run folder"):
            break
    else:
        pytest.fail(f"{name} has ended")
    run.send_signal(signal.SIGINT)
    assert run.wait(30) == 130
    assert f"{name} continues to run; --stop {name} ends it" in run.stdout.read()

    output = head.answers(f"--status {failed}", f"--status {name}", f"--stop {name}", f"--logs {name}", "--status any")
    states, _, log = output.partition(f"{name} is asked to stop\nexit code 0\n")
    assert states == f"{failed} FAILED with exit code 2\n{error}\nexit code 0\n{name} RUNNING\nexit code 0\n", output
    stopped = f"interrupted\n{name} was stopped\nexit code 130\n"
    assert log.endswith(f"{stopped}error: --address {head.url}: there is no job any.\nexit code 2\n"), output


def test_a_wrong_token_is_refused(head: Head) -> None:
    output = head.answers("--status any", RAY_AUTH_TOKEN="0" * 64)
    assert "the cluster refuses the token" in output
    assert output.endswith("exit code 2\n")
