"""One row of the matrix: two steps of the real trainer on a tiny model, and its export read back by transformers."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.common.timed_runs import DEMO
from benchmarks.models.architecture import CONTEXT, Architecture
from benchmarks.models.kept_processes import KeptActors, KeptProcesses
from benchmarks.models.models_page import largest
from benchmarks.models.zoo import PROBE_TOKENS, build, probe_tokens
from demopsd_dist.config import Config, load
from demopsd_dist.data.records import Tokens
from demopsd_dist.data.sources import load_data
from demopsd_dist.models.model_folder import model_folder
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.run_record.log import RunLog
from demopsd_dist.training.recovery import train_with_recovery
from demopsd_dist.training.run import RunState, Task
from demopsd_dist.util.errors import DemoPSDError, InputError, one_line
from launch._task import COMMIT, build_task, commit, compose_run
from workers.learner.worker import LearnerWorker

TREE_REFUSAL = "Set model.tree_tokens=0"
NO_TREES = "model.tree_tokens=0"
EXPORT_NATS = 1e-4
MOVED_NATS = 1e-3
WORDS = (
    "steps=2",
    "reward=benchmarks.models.half_reward.half_reward",
    "data.ood=null",
    "data.minisci_train_size=32",
    "data.minisci_test_size=4",
    "rollout.num_workers=1",
    "rollout.prompts_per_step=4",
    "rollout.group_size=4",
    "rollout.max_prompt_tokens=256",
    "rollout.max_response_tokens=16",
    "rollout.max_batch_tokens=2048",
    "rollout.max_batch_sequences=16",
    f"privileged.max_tokens={CONTEXT - 64}",
    "teacher.threads=1",
    "learner.num_workers=1",
    "learner.learning_rate=1e-3",
    "learner.warmup_steps=0",
    "checkpoint.every_steps=0",
    "checkpoint.replayable=false",
    "leakage.every_steps=0",
    "samples.every_steps=0",
    "sinks.report=false",
    "limits.start_s=300",
    "limits.call_s=300",
    "limits.silence_s=120",
)


@dataclass(frozen=True)
class Outcome:
    """Result of a row.

    Attributes:
        result: `trains`, `refused` (by one line before any engine started) or `crashed`.
        where: `building the model`, `dry run`, `learner's start`, `engine`, `training`, `export`; `end` if it trains.
        reason: message of a refusal or a crash.
        words: settings beyond the matrix's own.
        seconds: time of the row.
        commit: commit of the code that was measured.
        logp_diff: largest difference of engine and learner in a sampled token's log-probability, nats.
        canary_diff: that of the canary prompt after the second step, nats.
        export_diff: largest difference of the learner's log-probabilities and those of its export, loaded by
            transformers and by vLLM, nats.
        moved: largest change of the learner's log-probabilities by the two steps, nats.
    """

    name: str
    result: str
    where: str
    reason: str | None
    words: tuple[str, ...]
    seconds: float
    commit: str | None
    logp_diff: float | None = None
    canary_diff: float | None = None
    export_diff: float | None = None
    moved: float | None = None


class Refused(Exception):
    """Refusal of a model before any engine started."""


def row_config(folder: Path, output: Path, words: tuple[str, ...]) -> Config:
    """Settings of a row's run."""
    return load(DEMO, [*WORDS, f"model.path={folder}", "model.precision=float32", f"output_dir={output}", *words])


def measure_row(architecture: Architecture, processes: KeptProcesses) -> Outcome:
    """Train the model in these processes.

    A model whose layers cannot merge responses is trained with `model.tree_tokens=0`, as the refusal asks.
    """
    words, started = architecture.words, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="demopsd-zoo-") as scratch:
        folder = Path(scratch) / architecture.name
        outcome = None
        try:
            build(architecture, folder)
        except Exception as error:
            outcome = _failed("building the model", error, {})
        if outcome is None:
            outcome = _train(folder, Path(scratch) / "runs", words, processes)
            if outcome["result"] == "refused" and TREE_REFUSAL in outcome["reason"]:
                words = (*words, NO_TREES)
                outcome = _train(folder, Path(scratch) / "runs", words, processes)
        if outcome.get("reason"):
            outcome["reason"] = outcome["reason"].replace(f"{scratch}/", "")
    seconds = round(time.monotonic() - started, 1)
    return Outcome(
        name=architecture.name, words=words, seconds=seconds, commit=os.environ.get(COMMIT) or commit(), **outcome
    )


def _train(folder: Path, output: Path, words: tuple[str, ...], processes: KeptProcesses) -> dict[str, Any]:
    """Outcome of the checks of the dry run and of a run."""
    try:
        config = row_config(folder, output, words)
        task, _ = build_task(config, model_folder(config), load_data(config.data).questions)
    except InputError as error:
        return {"result": "refused", "where": "dry run", "reason": one_line(str(error))}
    except Exception as error:
        return _failed("dry run", error, {})
    actors = KeptActors(config, folder, processes, say=lambda line: None)
    figures: dict[str, Any] = {}
    try:
        return asyncio.run(_train_and_export(config, task, actors, figures))
    except InputError as error:
        if actors.pool.started:
            return _failed("engine", error, figures)
        return {"result": "refused", "where": "learner's start", "reason": one_line(str(error))}
    except Exception as error:
        return _failed(figures.pop("stage", "engine" if actors.pool.started else "learner's start"), error, figures)
    finally:
        actors.stop()


def _failed(where: str, error: Exception, figures: dict[str, Any]) -> dict[str, Any]:
    kind = "" if isinstance(error, DemoPSDError) else f"{type(error).__name__}: "
    for key in ("stage", "problems"):
        figures.pop(key, None)
    return {"result": "crashed", "where": where, "reason": kind + one_line(first_and_last_line(str(error))), **figures}


def first_and_last_line(text: str) -> str:
    """First and last non-empty line of a text, as of a traceback; a text of one line as it is."""
    lines = [line for line in text.splitlines() if line.strip()]
    return f"{lines[0]} {lines[-1]}" if len(lines) > 1 else text


async def _train_and_export(config: Config, task: Task, actors: KeptActors, figures: dict[str, Any]) -> dict[str, Any]:
    """Start the roles, train two steps, export; and fill in the figures measured so far, for a run that fails."""
    roles = await actors.start()
    figures["stage"] = "training"
    tokens = probe_tokens()[0].int().numpy()
    before = await _learner_logp(actors, tokens)
    with RunLog(RunFolder.create(config), config.steps, Console(file=StringIO())) as log:
        run = compose_run(config, roles, replace(task, test=[], ood=[]), log)
        try:
            await train_with_recovery(run, RunState(), "started")
            if not any(one.get("learner/grad_norm") for one in steps_of(log.folder)):
                raise AssertionError("neither step had anything to learn from")
        finally:
            figures["logp_diff"] = largest(one.get("mismatch/logp_diff_max") for one in steps_of(log.folder))
            run.ledger.close()
        figures["canary_diff"] = canary_difference(actors)
        after = await _learner_logp(actors, tokens)
        figures["moved"] = float(abs(after - before).max())
        figures["stage"] = "export"
        await roles.learners.export(log.folder.student)
        check = await actors.check_export(log.folder.student)
        own = float(abs(exported_logp(log.folder.student) - after).max())
        figures["export_diff"] = largest([own, *check.logp_diff_nats.values()])
        figures["problems"] = list(check.problems)
    figures.pop("stage")
    return judged(figures)


def judged(figures: dict[str, Any]) -> dict[str, Any]:
    """Outcome of a run that came to its end; `problems` are those of its own check of the export."""
    problems = [*figures.pop("problems")]
    if not figures["export_diff"] <= EXPORT_NATS:
        problems.append(f"the export differs by {figures['export_diff']:.2g} nats")
    if not figures["moved"] > MOVED_NATS:
        problems.append(f"two steps moved the model by {figures['moved']:.2g} nats alone")
    return {
        "result": "crashed" if problems else "trains",
        "where": "export" if problems else "end",
        "reason": "; ".join(problems) or None,
        **figures,
    }


async def _learner_logp(actors: KeptActors, tokens: Tokens) -> Any:
    """The learner's log-probability of each token after the first."""
    (logp_T,) = await actors.groups["learner"].each(
        lambda worker, _: worker(LearnerWorker.canary_logp, tokens), within_s=240, what="log-probabilities of a probe"
    )
    return logp_T


def exported_logp(folder: Path) -> Any:
    """Log-probability of each probe token after the first, by transformers' own class of the exported folder.

    Eager attention: transformers' fused attention leaves out soft caps of attention scores.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from benchmarks.models.zoo import probe_logits

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    logp_TV = probe_logits(model)[0].log_softmax(-1)
    return logp_TV[range(PROBE_TOKENS - 1), probe_tokens()[0, 1:]].numpy()


def canary_difference(actors: KeptActors) -> float | None:
    """Largest difference of engine and learner on the canary at the last publish."""
    return largest(float(abs(mine - engines).max()) for mine, engines in actors._publisher._canaries.last.values())


def steps_of(folder: RunFolder) -> list[dict[str, Any]]:
    """Metrics of the run's steps; empty where it did not come so far."""
    if not folder.metrics.is_file():
        return []
    return [json.loads(line) for line in folder.metrics.read_text().splitlines()]
