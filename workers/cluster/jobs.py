"""Jobs of a Ray cluster over its job API: submission, state, log and stop."""

from __future__ import annotations

import logging
import math
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from demopsd_dist.util.errors import ConfigError, WorkerError, one_line
from workers.cluster.session import CONNECT_S, MODE, authenticate

EXCLUDED = (".git", ".ci", ".venv", "/tests/", "/docs/", "/benchmarks/")  # in addition to .gitignore
LOGGERS = ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk")  # log a line for every file
FINAL_STATE_S = 30.0  # time limit for the final state of a job whose log has ended
LEEWAY_S = 15.0  # time beyond limits.stop_s for a run to end its processes
LAST_LINES = 20  # lines at the end of a log that are searched for an error


@dataclass(frozen=True)
class SubmittedJob:
    """State of a job."""

    name: str
    status: str  # PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED
    exit_code: int | None  # exit code of the run, where it ended by itself
    message: str  # from Ray

    @property
    def ended(self) -> bool:
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")


class JobClient:
    """Client of a cluster's job API.

    Args:
        address: `http://host:port` of the head's dashboard.

    Raises:
        ConfigError: nothing answers there, there is no token for it, or it refuses the token.
    """

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
            raise ConfigError("--address must be http://host:port, as in http://head:8265.")
        self._address = address
        authenticate(f"--address {address}")
        with self._answering():
            port = parts.port or {"http": 80, "https": 443}[parts.scheme]
            socket.create_connection((parts.hostname, port), timeout=CONNECT_S).close()
            from ray.job_submission import JobSubmissionClient

            for name in LOGGERS:
                logging.getLogger(name).setLevel(logging.ERROR)
            self._client = JobSubmissionClient(address)

    def submit(self, entrypoint: str, root: Path, environment: dict[str, str], stop_s: float) -> str:
        """Send the checkout `root` and run the command in it, on the head.

        Args:
            stop_s: seconds that the run needs to save and end after it was asked to stop; Ray waits some seconds more.

        Returns:
            The job's name.
        """
        wait_s = math.ceil(stop_s + LEEWAY_S)
        runtime = {
            "working_dir": str(root),
            "excludes": list(EXCLUDED),
            "env_vars": environment | {"RAY_JOB_STOP_WAIT_TIME_S": str(wait_s)},
        }
        with self._answering():
            return self._client.submit_job(entrypoint=entrypoint, runtime_env=runtime)

    def state(self, name: str) -> SubmittedJob:
        """State of a job.

        Raises:
            ConfigError: there is no such job.
        """
        with self._answering(name):
            info: Any = self._client.get_job_info(name)
            return SubmittedJob(name, info.status.value, info.driver_exit_code, info.message or "")

    def final_state(self, name: str) -> SubmittedJob:
        """State of a job once it has ended, or after `FINAL_STATE_S`."""
        give_up = time.monotonic() + FINAL_STATE_S
        while not (job := self.state(name)).ended and time.monotonic() < give_up:
            time.sleep(0.5)
        return job

    def log(self, name: str) -> str:
        """Output of a job so far."""
        with self._answering(name):
            return self._client.get_job_logs(name)

    def stop(self, name: str) -> bool:
        """Ask a job to stop; False where it had ended already."""
        with self._answering(name):
            return self._client.stop_job(name)

    async def follow_log(self, name: str) -> AsyncIterator[str]:
        """Output of a job from its beginning to its end, as it is written.

        Raises:
            WorkerError: the connection broke off. The job may still run.
        """
        try:
            async for text in self._client.tail_job_logs(name):
                yield text
        except Exception as error:
            raise WorkerError(
                f"{self._address}: the log of {name} broke off ({one_line(str(error))}). The job may still run: "
                "check with --status."
            ) from None

    @contextmanager
    def _answering(self, name: str | None = None) -> Iterator[None]:
        """Turn errors of Ray's client into a `ConfigError` with the fix."""
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError:
            raise ConfigError(
                f"--address {self._address}: the cluster refuses the token. RAY_AUTH_TOKEN, or the file that "
                "RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token must hold the one that its nodes were started with; "
                f"for a cluster without tokens set {MODE}=disabled."
            ) from None
        except (OSError, RuntimeError, ValueError) as error:
            if name is not None and "does not exist" in str(error):
                raise ConfigError(f"--address {self._address}: there is no job {name}.") from None
            raise ConfigError(
                f"--address {self._address}: no jobs can be handled there ({str(error).strip(' .')}). Its head must "
                "have been started with a dashboard (docs/nodes.md)."
            ) from None


def last_error(log: str) -> str:
    """Line of a log with the reason of the failure: the last `error:` line, or else the last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines[-LAST_LINES:] if line.startswith("error:")]
    return (errors or lines or ["it wrote nothing"])[-1]
