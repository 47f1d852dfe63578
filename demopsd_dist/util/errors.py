"""Every error that a user may see. All are picklable, so that they cross a process boundary whole.

A message says what went wrong, with the numbers, and how to mend it; it fits on one line.
"""

LONGEST = 2000


class DemoPSDError(Exception):
    """Root of the family. `exit_code` is what the command line returns for it."""

    exit_code = 1


class InputError(DemoPSDError):
    """What the user gave cannot be used. The message is one printable line, whatever it quotes."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


class ConfigError(InputError):
    """The configuration, the model folder or the machine cannot do what was asked. Nothing was started."""


class DataError(InputError):
    """A data set is missing, empty or holds a record that cannot be used."""


class RewardError(DemoPSDError):
    """A user's reward raised, or gave something that is no mark, for a sample that the message shows."""


class WorkerError(DemoPSDError):
    """A worker died, hung past its bound or raised."""


class WeightSyncError(DemoPSDError):
    """Published weights did not arrive as they were sent, or an engine samples from other weights."""


class NonFiniteLossError(DemoPSDError):
    """The loss or its gradient is not finite; the optimizer step was refused on every rank."""


class CollapseError(DemoPSDError):
    """Figures of the training have left the bands of the alarm: the policy may have collapsed."""

    exit_code = 3


class GoBackError(CollapseError):
    """The run is to go back to a checkpoint of before that.

    Attributes:
        before: the first step that was not as it should be.
    """

    def __init__(self, message: str, before: int = 0) -> None:
        super().__init__(message)
        self.before = before


class RunFolderError(DemoPSDError):
    """The run folder can no longer be written: disk full, read-only, over quota. What was saved is intact."""


class CheckpointError(DemoPSDError):
    """There is no checkpoint that can be resumed from, or it does not fit this run."""

    exit_code = 2


class DifferenceError(DemoPSDError):
    """A step that was done again is not the step on record; names the first tensor that differs."""


class LostStateError(WorkerError):
    """A learner or the teacher died or hung: weights that only it held are gone since the last checkpoint."""


class LostWorkerError(WorkerError):
    """A rollout worker died, hung or gave what cannot be right: it is replaced, and its work done by another."""


def one_line(text: str) -> str:
    """`text` with its control characters escaped, and at most `LONGEST` characters of it: the middle is left out.

    Example: `one_line("a\\nb")` gives `"a\\\\nb"`.
    """
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    if len(text) <= LONGEST:
        return text
    head, tail = LONGEST * 6 // 10, LONGEST * 3 // 10
    return f"{text[:head]} [... {len(text) - head - tail} characters ...] {text[-tail:]}"
