"""Campaign of faults: what is drawn, which ends and messages are expected, and how files are torn."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks.common.host_cluster import HEARTBEAT_S
from benchmarks.faults.fault_campaign import tear
from benchmarks.faults.fault_page import HOSTS, report
from benchmarks.faults.fault_plan import (
    CUT,
    ENDINGS,
    LONG_CUT_S,
    ROLES,
    SHORT_CUT_S,
    STAGES,
    TORN,
    LifePlan,
    draw_host_run,
    draw_run,
)
from benchmarks.faults.known_messages import causes_in
from benchmarks.faults.life_checks import ENDLESS, expected_codes, steps_of, what_is_wrong
from demopsd_dist.run_record.folder import RunFolder


def test_a_seed_draws_the_same_faults_and_many_seeds_draw_every_kind() -> None:
    assert draw_run(3, 6, 4, True) == draw_run(3, 6, 4, True) != draw_run(4, 6, 4, True)
    runs = [draw_run(seed, 6, 4, True) for seed in range(20)]
    assert all(len(run) == 6 and not run[-1].faults for run in runs)
    faults = [fault for run in runs for life in run for fault in life.faults]
    struck = Counter((fault.target, fault.action) for fault in faults)
    assert set(struck) >= {*ENDINGS, *((role, "SIGKILL") for role in ROLES), ("rollout", "SIGSTOP")}
    assert {fault.stage for fault in faults} == {*STAGES, "start_roles", "recover"}
    assert {life.torn for run in runs for life in run} == {*TORN, None}
    for run in runs:
        assert all(life.faults[-1].ends_run for life in run[:-1]), "every life but the last ends by a fault"
    without = [fault for seed in range(9) for life in draw_run(seed, 6, 4, False) for fault in life.faults]
    assert all(fault.target != "disk" for fault in without)


def test_runs_over_hosts_draw_cuts_of_both_lengths_and_kills() -> None:
    assert draw_host_run(100, 2, 6) == draw_host_run(100, 2, 6) != draw_host_run(101, 2, 6)
    runs = [draw_host_run(seed, 3, 6) for seed in range(100, 140)]
    for run in runs:
        assert len(run) == 3
        assert not any(fault.ends_run for fault in run[-1].faults)
        for life in run[:-1]:
            last = life.faults[-1]
            assert (last.target, last.action) in {("driver", "SIGKILL"), ("driver", "SIGINT")}
            assert not any(fault.ends_run for fault in life.faults[:-1])
        for life in run:
            planned = [fault for fault in life.faults if fault.stage != "recover" and not fault.ends_run]
            short = [fault for fault in planned if SHORT_CUT_S[0] <= fault.cut_s <= SHORT_CUT_S[1]]
            long = [fault for fault in planned if LONG_CUT_S[0] <= fault.cut_s <= LONG_CUT_S[1]]
            killed = [fault for fault in planned if fault.action == "SIGKILL"]
            assert [len(short), len(long), len(killed)] == [2, 2, 2]
            assert all(fault.action == CUT for fault in short + long)
            assert all(fault.cut_s == 0 for fault in killed)
    faults = [fault for run in runs for life in run for fault in life.faults]
    cuts = {(fault.target, fault.stage) for fault in faults if fault.action == CUT}
    assert cuts == {(role, stage) for role in ROLES for stage in (*STAGES, "recover")}
    assert SHORT_CUT_S[1] < HEARTBEAT_S - 3 < HEARTBEAT_S < LONG_CUT_S[0]


def test_a_life_goes_on_until_a_fault_ends_it_or_all_are_planted(tmp_path: Path) -> None:
    first, last = draw_host_run(100, 2, 3)
    run = RunFolder(tmp_path)
    assert steps_of(run, first) == ENDLESS
    assert steps_of(run, LifePlan([], None)) == 4
    assert steps_of(run, last) == 4 + 4 * len(last.faults) < ENDLESS


def row(target: str, action: str, stage: str = "learn") -> dict[str, Any]:
    return {"stage": stage, "target": target, "action": action, "delay_s": 0.0, "pick": 0.0, "planted": True}


@pytest.mark.parametrize(
    ("fault", "codes"),
    [
        (None, {0}),
        (row("driver", "SIGKILL"), {-9}),
        (row("driver", "SIGINT"), {130}),
        (row("group", "SIGTERM"), {130}),
        (row("raylet", "SIGKILL"), {1}),
        (row("disk", "full"), {1, 2}),
        (row("teacher", "SIGKILL", "start_roles"), {1}),
        (row("teacher", "SIGKILL", "recover"), {0}),
    ],
)
def test_exit_codes_that_a_fault_may_lead_to(fault: dict[str, Any] | None, codes: set[int]) -> None:
    assert expected_codes([fault] if fault else []) == codes
    life = {"hung": False, "left": [], "unknown": [], "faults": [fault] if fault else [], "code": 77, "last": "x"}
    assert what_is_wrong(life) == "exit code 77; last line: x"
    assert what_is_wrong(life | {"code": min(codes)}) is None
    assert what_is_wrong(life | {"left": ["raylet"]}) == "left processes: raylet"


def test_messages_without_a_known_cause_are_found() -> None:
    lines = [
        "step 3/9  reward 0.5",
        "warning: lost: teacher 0 has died during scoring. Learners and teacher are restarted.",
        "error: metrics.jsonl cannot be written: [Errno 28] No space left on device. Free disk space, then resume.",
        "interrupted",
        "Traceback (most recent call last):",
        "warning: something else",
    ]
    known, unknown = causes_in(lines)
    assert known == {"learners and teacher are restarted": 1, "the disk is full": 1, "interrupted": 1}
    assert unknown == ["Traceback (most recent call last):", "warning: something else"]


def test_torn_files(tmp_path: Path) -> None:
    run, rng = RunFolder(tmp_path), random.Random(0)
    for name in ("checkpoints/step-3/a", "metrics.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x" * 1000)
    assert tear(run, "checkpoint", rng) is None, "the only checkpoint stays whole"
    assert tear(run, "metrics", rng) == "metrics.jsonl"
    assert 700 <= run.metrics.stat().st_size < 1000
    (tmp_path / "checkpoints" / "step-6").mkdir()
    (tmp_path / "checkpoints" / "step-6" / "b").write_text("x" * 1000)
    assert tear(run, "checkpoint", rng) == "checkpoints/step-6/b"
    assert (tmp_path / "checkpoints" / "step-6" / "b").stat().st_size < 1000
    assert tear(run, "samples", rng) is None


def a_life(faults: list[dict[str, Any]], **values: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {"torn": None, "causes": {}, "hung": False, "left": [], "unknown": [], "wrong": None}
    return usual | {"faults": faults} | values


def a_run(seed: int, lives: list[dict[str, Any]], **values: Any) -> dict[str, Any]:
    usual: dict[str, Any] = {"audit": [], "left": [], "steps": 4, "samples": 8, "again": 1, "undone": 2}
    return usual | {"seed": seed, "lives": lives} | values


def test_the_page_counts_and_names_what_is_wrong() -> None:
    life = a_life([row("driver", "SIGKILL")], torn="samples/step-3.jsonl", causes={"interrupted": 2})
    run = a_run(5, [life, life | {"wrong": "exit code 1", "hung": True}], audit=["2 lost"], seconds=1800)
    text = "\n".join(report([run]))
    assert "2 faults and 2 torn files in 2 processes of 1 runs" in text
    assert "in 0.5 hours" in text
    assert "run 5: 2 lost" in text
    assert "**Wrong** in run 5, life 2: exit code 1" in text
    assert "| SIGKILL of driver | 2 |" in text
    assert "| torn file: samples | 2 |" in text
    assert "| interrupted | 4 |" in text


def test_the_page_says_what_became_of_hosts_whose_link_was_cut() -> None:
    cut = row("learner", CUT) | {"host": "one", "cut_s": 20.0, "ray_ended_after_s": 21.4}
    faults = [cut, row("teacher", CUT) | {"cut_s": 3.0}, row("rollout", CUT) | {"cut_s": 3.0, "planted": False}]
    run = a_run(100, [a_life(faults)], kind=HOSTS, lost_without_a_cut=[], seconds=360)
    text = "\n".join(report([run]))
    assert "2 times the link of a worker's host was cut" in text
    assert "| learner | longer, 14 to 22 s | 1 | 1 | 21 to 21 s |" in text
    assert "| teacher | shorter, 1 to 8 s | 1 | 0 | – |" in text
    assert "| 100 | five hosts | 1 | 2 | 0 | 4 | 8 | 2 | 360 |" in text
    del run["kind"]
    assert "Cut links" not in "\n".join(report([run]))
