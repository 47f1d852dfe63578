"""Export of the student at the end of a run, and its check. A failure leaves checkpoints and records whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from demopsd_dist.training.checkpointing import save
from demopsd_dist.training.run import Run, RunState
from demopsd_dist.util.errors import ExportError, one_line
from workers.actors import RayActors


async def export_student(run: Run, actors: RayActors, state: RunState) -> dict[str, Any]:
    """Export the student and check it; the entry of the summary: differences in nats, and problems, if any.

    Where something is wrong, the last state is saved as a checkpoint if it has none.
    """
    folder = run.log.folder.student
    with run.log.timed("export"):
        try:
            await run.roles.learners.export(folder)
            check = await actors.check_export(folder)
            entry: dict[str, Any] = {"logp_diff_max": dict(check.logp_diff_nats), "problems": list(check.problems)}
        except Exception as error:
            entry = {"problems": [one_line(f"{type(error).__name__}: {str(error).strip()}")]}
    if entry["problems"] and not run.is_saved(state):
        await save(run, state)
    return entry


def refuse_bad_export(entry: dict[str, Any], student: Path, checkpoint: Path | None) -> None:
    """End the command with an error where the export has a problem.

    Raises:
        ExportError: names the problems, and the checkpoint that holds the weights.
    """
    if problems := entry["problems"]:
        kept = f"The trained weights are in {checkpoint}" if checkpoint else "Nothing was trained"
        raise ExportError(
            one_line(
                f"the student in {student} is not to be used: {'; '.join(problems)}. {kept}, and the run's records are "
                "complete; once the cause is mended, the same command with --resume exports again"
            )
            + "."
        )
