"""Audit of a run from its ledger and checkpoints: every sample was trained exactly once, or dropped for a reason.

A life that begins after step k undoes the steps beyond k of earlier lives. The steps that are not undone are the steps
of the student as it is now. Each of them must be in the ledger once, and every sample issued for it must have exactly
one outcome. Samples of undone steps, and samples in flight when the run ended, did not change the student and are
counted apart.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field

from demopsd_dist.run_record.checkpoints import Checkpoint, Checkpoints
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.run_record.ledger import DropReason, LedgerEvent
from demopsd_dist.util.errors import CheckpointError, DataError

SHOWN_NAMES = 5  # names in the message of a fault

# `standing`: steps that no later life has undone. `ends`: the outcome of each sample of these steps.
STANDING = """
CREATE TEMP VIEW bounds AS SELECT life, from_step, why, (
    SELECT coalesce(min(later.from_step), 1 << 60) FROM lives AS later WHERE later.life > lives.life) AS until_step
    FROM lives;
CREATE TEMP VIEW standing AS SELECT steps.* FROM steps JOIN bounds USING (life)
    WHERE step > from_step AND step <= until_step;
CREATE TEMP TABLE ends AS SELECT step, prompt, sample,
    sum(event = 'issued') AS issued, sum(event = 'generated') AS generated, sum(event = 'rewarded') AS rewarded,
    sum(event = 'trained') AS trained, sum(event = 'dropped') AS dropped,
    max(CASE WHEN event = 'dropped' THEN reason END) AS reason
    FROM events WHERE (life, step) IN (SELECT life, step FROM standing) GROUP BY step, prompt, sample;
"""


@dataclass(frozen=True)
class AuditFault:
    """A kind of fault, with the names of the samples, steps or checkpoints that have it."""

    description: str
    names: list[str]

    def __str__(self) -> str:
        more = f" and {len(self.names) - SHOWN_NAMES} more" if len(self.names) > SHOWN_NAMES else ""
        return f"{len(self.names)} {self.description}: {', '.join(self.names[:SHOWN_NAMES])}{more}"


@dataclass
class AuditReport:
    """Counts of steps and samples of a run, and the faults in them."""

    lives: list[tuple[int, int, str]]  # number, the step before its first one, the reason that it began
    steps: int  # steps that no later life has undone
    issued: int  # samples of these steps; also of the next two counts
    trained: int
    dropped: dict[str, int]  # reason -> samples
    resampled: int  # generated samples whose prompt had to be requested more than once
    undone: int  # samples issued for steps that a later life undid
    in_flight: int  # samples issued for steps that were never finished
    checkpoints: list[str] = field(default_factory=list)
    faults: list[AuditFault] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        return not self.faults


def audit(folder: RunFolder) -> AuditReport:
    """Audit the run in this folder.

    Raises:
        DataError: there is no ledger, or it cannot be read.
    """
    if not folder.ledger.is_file():
        raise DataError(
            f"{folder.path} has no ledger.sqlite: it is no run folder, or its run ended before the first step."
        )
    try:
        with sqlite3.connect(f"file:{folder.ledger}?mode=ro", uri=True) as ledger:
            ledger.executescript(STANDING)
            report = _count(ledger)
            report.faults += [*_step_faults(ledger), *_sample_faults(ledger)]
            for checkpoint in Checkpoints(folder.checkpoints, keep=0).all():
                report.checkpoints.append(checkpoint.path.name)
                report.faults += _checkpoint_faults(checkpoint, ledger)
    except sqlite3.Error as error:
        raise DataError(f"{folder.ledger} cannot be read: {error}.") from None
    return report


def _count(ledger: sqlite3.Connection) -> AuditReport:
    steps, *_ = ledger.execute("SELECT count(*) FROM standing").fetchone()
    issued, trained = ledger.execute("SELECT count(*), coalesce(sum(trained > 0), 0) FROM ends").fetchone()
    dropped = ledger.execute("SELECT reason, count(*) FROM ends WHERE dropped GROUP BY reason ORDER BY reason")
    (resampled,) = ledger.execute("SELECT count(*) FROM events WHERE event = 'generated' AND attempt > 1").fetchone()
    unfinished = """SELECT count(*) FROM events WHERE event = 'issued'
        AND (life, step) NOT IN (SELECT life, step FROM standing) AND (life, step) {} (SELECT life, step FROM steps)"""
    (undone,) = ledger.execute(unfinished.format("IN")).fetchone()
    (in_flight,) = ledger.execute(unfinished.format("NOT IN")).fetchone()
    lives = ledger.execute("SELECT life, from_step, why FROM lives ORDER BY life").fetchall()
    return AuditReport(lives, steps, issued, trained, dict(dropped.fetchall()), resampled, undone, in_flight)


def _step_faults(ledger: sqlite3.Connection) -> list[AuditFault]:
    counts = ledger.execute("SELECT step, count(*) FROM standing GROUP BY step ORDER BY step").fetchall()
    done = dict(counts)
    missing = [str(step) for step in range(1, max(done, default=0) + 1) if step not in done]
    twice = [str(step) for step, count in counts if count > 1]
    return _faults(("steps are missing", missing), ("steps were done more than once", twice))


def _sample_faults(ledger: sqlite3.Connection) -> list[AuditFault]:
    def names(where: str) -> list[str]:
        rows = ledger.execute(f"SELECT step, prompt, sample FROM ends WHERE {where} ORDER BY step, prompt, sample")
        return [f"{prompt}#{sample} of step {step}" for step, prompt, sample in rows]

    known = [*(reason.value for reason in DropReason), "no mark"]  # the last one as older ledgers say `no reward`
    reasons = ", ".join(f"'{reason}'" for reason in known)
    unexplained = f"dropped > 0 AND coalesce(reason, '') NOT IN ({reasons})"
    late = f"reason IS '{DropReason.late.value}'"
    return _faults(
        ("samples were trained more than once", names("trained > 1")),
        ("samples were issued more than once", names("issued > 1")),
        ("samples were never issued", names("issued = 0")),
        ("samples are lost: neither trained nor dropped", names("trained = 0 AND dropped = 0")),
        ("samples were both trained and dropped", names("trained > 0 AND dropped > 0")),
        ("samples were dropped more than once", names("dropped > 1")),
        ("samples were dropped without a known reason", names(unexplained)),
        ("samples were trained without a reward", names("trained > 0 AND (generated != 1 OR rewarded != 1)")),
        ("samples were generated more than once", names("generated > 1")),
        ("samples were dropped before they were generated", names(f"dropped > 0 AND generated = 0 AND NOT {late}")),
    )


def _checkpoint_faults(checkpoint: Checkpoint, ledger: sqlite3.Connection) -> list[AuditFault]:
    """Faults of a checkpoint: damaged files, or counts that differ from those of the ledger up to its step."""
    name = checkpoint.path.name
    if (damage := checkpoint.damage()) is not None:
        return [AuditFault(f"checkpoint is damaged ({damage})", [name])]
    try:
        state = checkpoint.state()
        step, samples, position = state["step"], state["samples"], state["ledger_position"]
    except (CheckpointError, KeyError, ValueError) as error:
        return [AuditFault(f"checkpoint has no state ({error!r})", [name])]
    steps, sampled, last = ledger.execute(
        "SELECT count(*), coalesce(sum(samples), 0), coalesce(max(step), 0) FROM standing WHERE step <= ?", (step,)
    ).fetchone()
    (lines,) = ledger.execute("SELECT coalesce(max(id), 0) FROM events").fetchone()
    (late,) = ledger.execute(
        f"""SELECT count(*) FROM events WHERE event = '{LedgerEvent.trained.value}' AND step <= ? AND id > ?
        AND (life, step) IN (SELECT life, step FROM standing)""",
        (step, position),
    ).fetchone()
    differences = []
    if (steps, last, sampled) != (step, step, samples):
        differences.append(
            f"it has {step} steps and {samples} samples; the ledger has {steps} and {sampled} until then"
        )
    if lines < position:
        differences.append(f"it was written after {position} lines of the ledger, which has {lines}")
    if late:
        differences.append(f"{late} samples of its steps were entered after it was written")
    return [AuditFault(f"checkpoint and ledger disagree ({difference})", [name]) for difference in differences]


def _faults(*candidates: tuple[str, list[str]]) -> list[AuditFault]:
    return [AuditFault(description, names) for description, names in candidates if names]
