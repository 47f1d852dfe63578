"""A user's own reward, in a process of its own: one that hangs can be ended, and one that dies takes nothing along.

The run never imports the user's module. The two processes exchange lines of JSON: a sample, and then its mark.
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
from demopsd_dist.util.die_with_parent import end_with_parent
from demopsd_dist.util.errors import ConfigError

SIGNATURE = "def my_reward(response: str, question: Question) -> float | RewardResult"
_BEGIN = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from demopsd_dist.data.rewards.own_reward import serve; serve(int(sys.argv[2]), sys.argv[3])"
)


class NoRewardError(Exception):
    """How it came that there is no mark."""


class OwnReward:
    """The function that a dotted path leads to. Its process serves many calls; after one that it did not survive, or
    that took too long, it is another.

    Args:
        start_s: bound of importing its module.
        call_s: bound of one mark.

    Raises:
        ConfigError: the path leads to nothing that can be called as `SIGNATURE`, or not in time.
    """

    def __init__(self, name: str, start_s: float, call_s: float) -> None:
        self._name, self._start_s, self._call_s = name, start_s, call_s
        self._start()

    def __call__(self, response: str, question: Question) -> RewardResult:
        """
        Raises:
            NoRewardError: it raised, gave something that is no mark, took too long, or its process ended.
        """
        if not self._end.alive:
            self._start()
        try:
            answer = self._asked({"response": response, "question": asdict(question)}, self._call_s)
        except TimeoutError:
            self._ended()
            raise NoRewardError(f"by giving no mark within limits.reward_s={self._call_s:g} s.") from None
        except (EOFError, OSError):
            raise NoRewardError(f"by ending its process, exit code {self._ended()}.") from None
        if "failed" in answer:
            raise NoRewardError(answer["failed"])
        return RewardResult(answer["score"], answer["feedback"])

    def _start(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._lines = self._socket.makefile("rb")
        with theirs:
            command = [sys.executable, "-c", _BEGIN, json.dumps(sys.path), str(theirs.fileno()), self._name]
            # A session of its own: Ctrl-C does not reach it, and what it has started can be ended with it.
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
            )
        self._end = weakref.finalize(self, _end, self._process, self._socket)
        try:
            refused = self._asked({}, self._start_s)["refused"]
        except TimeoutError:
            refused = f"reward={self._name}: importing it took longer than limits.start_s={self._start_s:g} s."
        except (EOFError, OSError):
            refused = f"reward={self._name}: importing it ended its process, exit code {self._ended()}."
        if refused:
            self._ended()
            raise ConfigError(refused)

    def _asked(self, message: dict[str, Any], within_s: float) -> dict[str, Any]:
        self._socket.settimeout(within_s)
        self._socket.sendall(_line(message))
        answer = self._lines.readline()
        if not answer:
            raise EOFError
        return json.loads(answer)

    def _ended(self) -> int:
        """End the process if it has not ended; its exit code."""
        self._lines.close()
        self._end()
        return self._process.wait()


def _end(process: subprocess.Popen, to_it: socket.socket) -> None:
    with suppress(OSError):
        to_it.shutdown(socket.SHUT_RDWR)
    to_it.close()
    try:
        process.wait(0.5)  # with nobody to ask it any more, it ends by itself
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def serve(number: int, name: str) -> None:
    """The other side, at the socket of this number: import the function, then mark what comes until nobody asks."""
    end_with_parent()
    with socket.socket(fileno=number) as asking, asking.makefile("rb") as lines:
        os.set_inheritable(number, False)
        lines.readline()
        try:
            function = imported(name)
        except ConfigError as error:
            asking.sendall(_line({"refused": str(error)}))
            return
        asking.sendall(_line({"refused": None}))
        for line in lines:
            sample = json.loads(line)
            try:
                answer = asdict(marked(function, sample["response"], Question(**sample["question"])))
            except NoRewardError as error:
                answer = {"failed": str(error)}
            asking.sendall(_line(answer))


def marked(
    function: Callable[[str, Question], float | RewardResult], response: str, question: Question
) -> RewardResult:
    """
    Raises:
        NoRewardError: the function raised, or what it gave is no mark.
    """
    try:
        given = function(response, question)
        return given if isinstance(given, RewardResult) else RewardResult(given)
    except NoRewardError:
        raise
    except BaseException as error:  # SystemExit too
        raise NoRewardError(f"{_place(error)} with {type(error).__name__}: {brief(error)}") from error


def imported(name: str) -> Callable[[str, Question], float | RewardResult]:
    """
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
            f"reward={name}: importing {module_name} failed with {type(error).__name__}: {brief(error)}"
        ) from error
    function = getattr(module, attribute, None)
    if function is None:
        near = difflib.get_close_matches(attribute, dir(module), n=1)
        hint = f" Did you mean {module_name}.{near[0]}?" if near else ""
        raise ConfigError(f"reward={name}: {module_name} has no {attribute}.{hint} What is looked for: {SIGNATURE}")
    if not callable(function) or not _takes_two(function):
        raise ConfigError(f"reward={name} cannot be called with a response and its question. Write it as {SIGNATURE}")
    return function


def _takes_two(function: Callable) -> bool:
    if inspect.iscoroutinefunction(function):
        return False
    try:
        inspect.signature(function).bind("", None)
    except TypeError:
        return False
    except ValueError:  # written in C, without a signature to read
        return True
    return True


def _place(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"at {os.path.basename(frame.filename)}:{frame.lineno}"


def brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
