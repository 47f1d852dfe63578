"""Every error that a user may see. All are picklable, so that they cross a process boundary whole.

A message says what went wrong, with the numbers, and how to mend it; it fits on one line.
"""


class DemoPSDError(Exception):
    """Root of the family. `exit_code` is what the command line returns for it."""

    exit_code = 1


class ConfigError(DemoPSDError):
    """The configuration, the model folder or the machine cannot do what was asked. Nothing was started."""

    exit_code = 2


class DataError(DemoPSDError):
    """A data set is missing, empty or holds a record that cannot be used."""

    exit_code = 2


class RewardError(DemoPSDError):
    """A user's reward raised, or gave something that is no mark, for a sample that the message shows."""


class WorkerError(DemoPSDError):
    """A worker died, hung past its bound or raised."""


class WeightSyncError(DemoPSDError):
    """Published weights did not arrive as they were sent, or an engine samples from other weights."""


class NonFiniteLossError(DemoPSDError):
    """The loss or its gradient is not finite; the optimizer step was refused on every rank."""


class RunFolderError(DemoPSDError):
    """The run folder can no longer be written: disk full, read-only, over quota. What was saved is intact."""


class CheckpointError(DemoPSDError):
    """There is no checkpoint that can be resumed from, or it does not fit this run."""

    exit_code = 2


class LostStateError(WorkerError):
    """A learner or the teacher died or hung: weights that only it held are gone since the last checkpoint."""


class LostWorkerError(WorkerError):
    """A rollout worker died, hung or gave what cannot be right: it is replaced, and its work done by another."""
