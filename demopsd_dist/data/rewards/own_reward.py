"""A user's own reward, in a process of its own: a hung function is ended, and a crash ends that process alone.

The run never imports the user's module. The two processes exchange lines of JSON: a sample, and then its reward.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from demopsd_dist.data.records import Question, RewardResult
from demopsd_dist.util.die_with_parent import die_with_parent
from demopsd_dist.util.errors import ConfigError

SIGNATURE = "def my_reward(response: str, question: Question) -> float | RewardResult"
_SERVE_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from demopsd_dist.data.rewards.own_reward import serve; serve(int(sys.argv[2]), sys.argv[3])"
)


class NoRewardError(Exception):
    """A call that gave no reward; the message is the reason."""


class OwnReward:
    """A user's reward function, called in a process of its own.

    The process serves many calls; after a call that it did not survive or that took too long, a new one is started.

    Args:
        name: dotted path of the function.
        start_s: limit of the import of its module.
        call_s: limit of one call.

    Raises:
        ConfigError: the path leads to nothing that can be called as `SIGNATURE`, or the import took too long.
    """

    def __init__(self, name: str, start_s: float, call_s: float) -> None:
        self._name, self._start_s, self._call_s = name, start_s, call_s
        self._start()

    def __call__(self, response: str, question: Question) -> RewardResult:
        """Reward one response.

        Raises:
            NoRewardError: the function raised, returned no reward, took too long, or its process ended.
        """
        if not self._stop.alive:
            self._start()
        try:
            reply = self._request({"response": response, "question": asdict(question)}, self._call_s)
        except TimeoutError:
            self._stop_process()
            raise NoRewardError(f"by giving no reward within limits.reward_s={self._call_s:g} s.") from None
        except (EOFError, OSError):
            raise NoRewardError(f"by ending its process, exit code {self._stop_process()}.") from None
        except BaseException:  # interrupted: its reply would be taken for that of the next response
            self._stop_process()
            raise
        if "failed" in reply:
            raise NoRewardError(reply["failed"])
        return RewardResult(reply["reward"], reply["feedback"])

    @property
    def pid(self) -> int:
        return self._process.pid

    def _start(self) -> None:
        self._socket, child_socket = socket.socketpair()
        self._lines = self._socket.makefile("rb")
        with child_socket:
            command = [
                *(sys.executable, "-c", _SERVE_CODE),
                *(json.dumps(sys.path), str(child_socket.fileno()), self._name),
            ]
            # A session of its own: Ctrl-C does not reach it, and the processes that it starts can be ended with it.
            self._process = subprocess.Popen(
                command, pass_fds=[child_socket.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
            )
        self._stop = weakref.finalize(self, _stop_session, self._process, self._socket)
        try:
            refusal = self._request({}, self._start_s)["refused"]
        except TimeoutError:
            refusal = f"reward={self._name}: importing it took longer than limits.start_s={self._start_s:g} s."
        except (EOFError, OSError):
            refusal = f"reward={self._name}: importing it ended its process, exit code {self._stop_process()}."
        except BaseException:
            self._stop_process()
            raise
        if refusal:
            self._stop_process()
            raise ConfigError(refusal)

    def _request(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        self._socket.settimeout(timeout_s)
        self._socket.sendall(_json_line(message))
        reply = self._lines.readline()
        if not reply:
            raise EOFError
        return json.loads(reply)

    def _stop_process(self) -> int:
        """Stop the process if it still runs; its exit code."""
        self._lines.close()
        self._stop()
        return self._process.wait()


def _stop_session(process: subprocess.Popen, to_process: socket.socket) -> None:
    """End the process and every process that it has started."""
    with suppress(OSError):
        to_process.shutdown(socket.SHUT_RDWR)
    to_process.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(0.5)  # it ends by itself once its socket is closed
    with suppress(ProcessLookupError, PermissionError):  # nothing of the session is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _json_line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def serve(number: int, name: str) -> None:
    """Serve calls in the reward's process: import the function, then reward samples until the socket is closed.

    Args:
        number: file descriptor of the socket.
        name: dotted path of the function.
    """
    die_with_parent()
    with socket.socket(fileno=number) as to_run, to_run.makefile("rb") as lines:
        os.set_inheritable(number, False)
        lines.readline()
        try:
            function = import_reward(name)
        except ConfigError as error:
            to_run.sendall(_json_line({"refused": str(error)}))
            return
        to_run.sendall(_json_line({"refused": None}))
        for line in lines:
            sample = json.loads(line)
            try:
                reply = asdict(call_reward(function, sample["response"], Question(**sample["question"])))
            except NoRewardError as error:
                reply = {"failed": str(error)}
            to_run.sendall(_json_line(reply))


def call_reward(
    function: Callable[[str, Question], float | RewardResult], response: str, question: Question
) -> RewardResult:
    """Call a reward function and check its value.

    Raises:
        NoRewardError: the function raised, or its value is no reward.
    """
    try:
        value = function(response, question)
        return value if isinstance(value, RewardResult) else RewardResult(value)
    except (NoRewardError, KeyboardInterrupt):
        raise
    except BaseException as error:  # SystemExit too
        raise NoRewardError(f"{_source_line(error)} with {type(error).__name__}: {_brief(error)}") from error


def import_reward(name: str) -> Callable[[str, Question], float | RewardResult]:
    """Import the function at a dotted path.

    Raises:
        ConfigError: the path leads to nothing that can be called as `SIGNATURE`.
    """
    module_name, _, attribute = name.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"reward={name}: there is no module {error.name} to import from {os.getcwd()}. Start the run where `import "
            f"{module_name}` works, or install it. What is looked for: {SIGNATURE}"
        ) from None
    except BaseException as error:
        raise ConfigError(
            f"reward={name}: importing {module_name} failed with {type(error).__name__}: {_brief(error)}"
        ) from error
    function = getattr(module, attribute, None)
    if function is None:
        near = difflib.get_close_matches(attribute, dir(module), n=1)
        hint = f" Did you mean {module_name}.{near[0]}?" if near else ""
        raise ConfigError(f"reward={name}: {module_name} has no {attribute}.{hint} What is looked for: {SIGNATURE}")
    if not callable(function) or not _takes_two_arguments(function):
        raise ConfigError(f"reward={name} cannot be called with a response and its question. Write it as {SIGNATURE}")
    return function


def _takes_two_arguments(function: Callable) -> bool:
    if inspect.iscoroutinefunction(function):
        return False
    try:
        inspect.signature(function).bind("", None)
    except TypeError:
        return False
    except ValueError:  # written in C, without a signature to read
        return True
    return True


def _source_line(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"at {os.path.basename(frame.filename)}:{frame.lineno}"


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
