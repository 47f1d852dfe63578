"""Errors that a user may see. All are picklable, so that they cross a process boundary with all their fields.

A message states the fault, the numbers and the fix, on one line.
"""

MAX_MESSAGE_CHARS = 2000


class DemoPSDError(Exception):
    """Base class of the project's errors. `exit_code` is the exit code of a command that ends with it."""

    exit_code = 1


class InputError(DemoPSDError):
    """An input of the user cannot be used. The message is one printable line, whatever it quotes."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class ConfigError(InputError):
    """The configuration, the model folder or the machine cannot do what was asked. Nothing was started."""


class DataError(InputError):
    """A data set is missing, empty or holds a record that cannot be used."""


class RewardError(DemoPSDError):
    """A user's reward raised, or returned no reward, for a sample that the message shows."""


class WorkerError(DemoPSDError):
    """A worker died, hung past its time limit or raised. `died` is set where its process has ended."""

    died = False


class EngineStartError(WorkerError):
    """A rollout engine did not start. `rank` is the worker's; `full_text` holds the traceback."""

    def __init__(self, message: str, rank: int = 0, full_text: str = "") -> None:
        super().__init__(one_line(message))
        self.rank, self.full_text = rank, full_text


class WeightSyncError(DemoPSDError):
    """Published weights did not arrive as they were sent, or an engine samples from other weights."""


class BrokenGroupError(DemoPSDError):
    """A transfer through a publishing group failed or took too long: a member has died, hangs or cannot be
    reached. The group cannot be used again."""


class NonFiniteLossError(DemoPSDError):
    """The loss or its gradient is not finite; the optimizer step was refused on every rank."""


class CollapseError(DemoPSDError):
    """Metrics of the training have left the bands of the alarm: the policy may have collapsed."""

    exit_code = 3


class GoBackError(CollapseError):
    """A collapse after which the run goes back to a checkpoint.

    Attributes:
        first_bad_step: the first step outside the bands; the checkpoint must be from before it.
    """

    def __init__(self, message: str, first_bad_step: int = 0) -> None:
        super().__init__(message)
        self.first_bad_step = first_bad_step


class RunFolderError(DemoPSDError):
    """The run folder can no longer be written: disk full, read-only, over quota. What was saved is intact."""


class CheckpointError(DemoPSDError):
    """No checkpoint can be resumed from, or the checkpoint does not fit this run."""

    exit_code = 2


class ExportError(DemoPSDError):
    """The exported student does not load, or is another model than the one trained. The checkpoints are intact."""


class DifferenceError(DemoPSDError):
    """A replayed step differs from the recorded step; the message names the first tensor that differs."""


class LostStateError(WorkerError):
    """A learner or the teacher died or hung: the weights that only it held since the last checkpoint are lost."""


class LostWorkerError(WorkerError):
    """A rollout worker died, hung or returned invalid rollouts: it is replaced, and another does its work."""


def kind_and_message(error: Exception) -> str:
    """Kind and message of an exception of foreign code, on one line.

    Example: `kind_and_message(ValueError("no\n  number"))` gives `"ValueError: no number"`.
    """
    return f"{type(error).__name__}: {' '.join(str(error).split()) or 'without a message'}"


def one_line(text: str) -> str:
    """`text` with control characters escaped, cut in the middle to `MAX_MESSAGE_CHARS` characters.

    Example: `one_line("a\\nb")` gives `"a\\\\nb"`.
    """
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    if len(text) <= MAX_MESSAGE_CHARS:
        return text
    head, tail = MAX_MESSAGE_CHARS * 6 // 10, MAX_MESSAGE_CHARS * 3 // 10
    return f"{text[:head]} [... {len(text) - head - tail} characters ...] {text[-tail:]}"
