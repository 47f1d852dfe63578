"""A step done again by real learners and a real teacher is the step on record, bit for bit; and its timeline."""

from __future__ import annotations

import asyncio
import gzip
import json
from dataclasses import replace
from pathlib import Path

from demopsd_dist.config import Config
from demopsd_dist.data.records import DigestRequest, StepReport
from demopsd_dist.run_record import digests
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.run_record.log import RunLog
from demopsd_dist.training.run import Task
from launch import replay
from tests.real.conftest import RealRoles, demo, go_through

STEP = 2


def test_a_step_done_again_is_equal_in_every_tensor(roles: RealRoles, task: Task, tmp_path: Path) -> None:
    words = [
        f"steps={STEP}",
        "checkpoint.every_steps=1",
        f"profile.steps=[{STEP}]",
        "profile.operations=true",
        "evaluation.at_start=false",
    ]
    words += ["learner.zero_stage=3", "deterministic=true", f"output_dir={tmp_path}", "leakage.every_steps=0"]
    config = demo(*words)
    folder = RunFolder.create(config)
    roles.restart(config)
    try:
        with RunLog(folder, STEP) as log:
            go_through(config, roles.roles, replace(task, test=[], ood=[]), log)
        _, batch, checkpoint = replay.read_step(folder.path, STEP)
        assert checkpoint is not None
        gradient = tmp_path / "gradient"
        gradient.mkdir()

        def again(config: Config, trace: DigestRequest) -> tuple[digests.Digests, StepReport]:
            roles.restart(config)
            scored, report = asyncio.run(replay.replay_step(config, roles.roles, batch, checkpoint, trace))
            return digests.step_digests(scored, report), report

        computed, report = again(config, DigestRequest(write_gradient_to=gradient))
        assert set(computed) == set(digests.ORDER) - {"engine_support", "policy_weight", "distillation_weight"}
        assert list(digests.differences(batch.record.digests, computed)) == []
        asked = replay.recorded_config(batch, ["demopsd.alpha_max=0.5"])
        computed, other = again(asked, DigestRequest(compare_gradient_with=gradient))
        assert next(digests.differences(batch.record.digests, computed)).tensor == "alpha"
        lines = replay.metric_table(report.metrics, other.metrics)
        assert any("demopsd/alpha_mean" in line for line in lines)
        assert 0.5 < float(lines[-1].split()[-1]) <= 1.0
    finally:
        roles.restart()
    hold_timeline(folder)
    hold_operations(folder)


def hold_timeline(folder: RunFolder) -> None:
    """Every process has its track, and the learners' step is inside of the driver's `learn`: the clocks are one."""
    trace = json.loads(folder.trace(STEP).read_text())
    events = trace["traceEvents"]
    tracks = {event["args"]["name"]: event["pid"] for event in events if event["name"] == "process_name"}
    assert list(tracks) == ["driver", "rollout 0", "rollout 1", "teacher 0", "learner 0", "learner 1"]
    assert set(trace["otherData"]["clock_error_us"].values()) == {0.0}

    def spans(track: str, name: str) -> list[tuple[float, float]]:
        found = [event for event in events if event["ph"] == "X" and event["pid"] == tracks[track]]
        return [(event["ts"], event["ts"] + event["dur"]) for event in found if event["name"] == name]

    (learn,) = spans("driver", "learn")
    for rank in range(2):
        (step,) = spans(f"learner {rank}", "step")
        assert learn[0] <= step[0] < step[1] <= learn[1]
        for name in ("forward", "backward", "update"):
            assert all(step[0] <= start <= end <= step[1] for start, end in spans(f"learner {rank}", name))
            assert spans(f"learner {rank}", name)
        assert spans(f"rollout {rank}", "sample")
    assert spans("teacher 0", "score")


def hold_operations(folder: RunFolder) -> None:
    """Every process has its operations, the matrix products of models among them."""
    recorded = folder.operations(STEP)
    page = (recorded / "operations.md").read_text()
    for process in ("rollout 0", "rollout 1", "teacher 0", "learner 0", "learner 1"):
        section = page.split(f"## {process},")[1].split("\n## ")[0]
        assert "mm" in section
        assert "outside of operations" in section
        trace = json.loads(gzip.decompress((recorded / f"{process.replace(' ', '-')}.json.gz").read_bytes()))
        assert len(trace["traceEvents"]) > 100
