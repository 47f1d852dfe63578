"""Checks of machine and nodes: each problem names what, where and the fix; a sound environment has none."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from demopsd_dist.config import load
from demopsd_dist.util.code_digest import ROOT, code_digest, differing_files, file_digests
from launch import _doctor_findings as checks
from launch._doctor_findings import Finding, FindingLevel
from launch.doctor import cluster_findings, main, paths_of
from workers.cluster.node_info import ClusterInfo, NodeInfo

DEMO = ROOT / "configs" / "demo.yaml"


def problems(findings: Iterable[Finding]) -> list[Finding]:
    """Problems and warnings among the findings."""
    return [finding for finding in findings if finding.level is not FindingLevel.ok]


def test_a_digest_changes_with_the_code_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "workers").mkdir()
    (tmp_path / "docs").mkdir()
    (tmp_path / "workers" / "a.py").write_text("x = 1\n")
    before = file_digests(tmp_path)
    (tmp_path / "docs" / "b.py").write_text("y = 1\n")
    (tmp_path / "workers" / "notes.md").write_text("words")
    assert file_digests(tmp_path) == before
    (tmp_path / "workers" / "a.py").write_text("x = 2\n")
    (tmp_path / "workers" / "c.py").write_text("")
    after = file_digests(tmp_path)
    assert code_digest(after) != code_digest(before)
    assert differing_files(before, after) == ["workers/a.py", "workers/c.py"]
    assert "demopsd_dist/training/loop.py" in file_digests()


def test_this_environment_has_the_locked_versions() -> None:
    installed = checks.installed_versions()
    assert problems(checks.check_versions(installed, checks.lock_name(installed), "here")) == []


def test_other_versions_are_named() -> None:
    installed = checks.installed_versions()
    build = checks.lock_name(installed)
    other = {**installed, "ray": "2.0.0", "python": "3.12.1"}
    del other["omegaconf"]
    python, packages = problems(checks.check_versions(other, build, "node-7"))
    assert (python.where, python.text) == ("node-7", "Python 3.12.1")
    assert re.search(r"^2 of \d+ packages .*omegaconf missing, not 2\..*ray 2\.0\.0, not 2\.", packages.text)
    assert packages.fix.startswith("run make setup")


def test_a_local_build_of_torch_counts_as_the_locked_version() -> None:
    installed = checks.installed_versions()
    assert (
        problems(
            checks.check_versions({**installed, "torch": f"{installed['torch'].partition('+')[0]}+cpu"}, "cpu", "x")
        )
        == []
    )


def test_small_shared_memory_and_few_open_files() -> None:
    small = checks.check_shared_memory("a", 0.06, 0.05, 64.0)
    assert (small.level, small.fix.startswith("give it 19 GiB")) == (FindingLevel.warning, True)
    assert checks.check_shared_memory("a", 32.0, 31.0, 64.0).level is FindingLevel.ok
    assert "ulimit -n 65536" in checks.check_open_files(1024).fix
    assert checks.check_open_files(65536).level is FindingLevel.ok


def test_a_clock_behind_the_code_is_wrong() -> None:
    assert checks.check_clock(time.time()).level is FindingLevel.ok
    assert checks.check_clock(0.0).level is FindingLevel.problem


def test_claims_beyond_the_processors_are_a_problem() -> None:
    (finding,) = problems(checks.check_processors(load(DEMO, ["learner.num_workers=400"])))
    assert "need 161.2 CPUs" in finding.text
    assert finding.fix.startswith("Lower a role's num_workers")


def test_missing_inputs(tmp_path: Path) -> None:
    config = load(DEMO, [f"model.path={tmp_path}/none", f"data.train={tmp_path}/none.jsonl", "reward=no.such.reward"])
    findings = {one.what: one for one in problems(checks.check_inputs(config))}
    assert set(findings) == {"model", "data", "reward"}
    assert findings["model"].fix.startswith("Give a Hugging Face model folder")
    assert "there is no such file" in findings["data"].text
    assert problems(checks.check_inputs(load(DEMO))) == []


def test_an_output_that_cannot_be_written() -> None:
    (finding,) = problems(checks.check_disk(load(DEMO, ["output_dir=/proc/runs"])))
    assert (finding.what, finding.where) == ("output", "/proc/runs")
    assert "set output_dir" in finding.fix


def test_a_disk_too_small_for_the_student(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"num_hidden_layers": 4000, "hidden_size": 100000, "num_attention_heads": 100, "vocab_size": 1000,'
        ' "intermediate_size": 300000}'
    )
    (finding,) = problems(checks.check_disk(load(DEMO, [f"output_dir={tmp_path}", f"model.path={tmp_path}"])))
    assert finding.what == "disk"
    assert "the student takes" in finding.text


def test_a_disk_too_small_for_the_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints of 0.013 GiB each in the demo: float32 weights, two moments, and the teacher's average."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0.05 * 2**30))
    words = [f"output_dir={tmp_path}", "checkpoint.every_steps=10"]
    (finding,) = problems(checks.check_disk(load(DEMO, [*words, "checkpoint.keep=5"])))
    assert "6 checkpoints 0.1" in finding.text
    assert "lower checkpoint.keep" in finding.fix
    assert problems(checks.check_disk(load(DEMO, [*words, "checkpoint.keep=1"]))) == []


def test_a_head_that_does_not_answer_is_a_problem() -> None:
    (finding,) = problems(checks.check_address(load(DEMO, ["ray_address=127.0.0.1:1"])))
    assert finding.where == "127.0.0.1:1"
    assert list(checks.check_address(load(DEMO, ["ray_address=auto"]))) == []


def node(name: str = "first (10.0.0.1)") -> NodeInfo:
    return NodeInfo(name, file_digests(), checks.installed_versions(), 8, 0, 32.0, (20.0, 20.0), [], 0.01, 0.002)


def test_sound_nodes_have_no_problem() -> None:
    two = ClusterInfo([node(), node("second (10.0.0.2)")], [], {("first", "second"): 3.0}, {"CPU": 16.0})
    findings = list(cluster_findings(load(DEMO), two))
    assert problems(findings) == []
    assert any(one.text == f"digest {code_digest()}, as here" for one in findings)


@pytest.mark.parametrize(
    ("changes", "what", "text"),
    [
        (
            {"files": {**file_digests(), "workers/rollout/worker.py": "0"}},
            "code",
            "1 files differ, workers/rollout/worker.py first",
        ),
        ({"files": {}}, "code", "it has no checkout of the project"),
        ({"versions": {**checks.installed_versions(), "ray": "2.1"}}, "versions", "ray 2.1, not "),
        ({"missing": ["/data/model"]}, "paths", "/data/model is not there"),
        ({"clock_s": -7.0}, "clock", "-7.000 s from here"),
        ({"shared_memory_gib": (1.0, 0.5)}, "shared memory", "/dev/shm has 0.5 of 1.0 GiB free"),
    ],
)
def test_a_node_that_differs_is_named(changes: dict, what: str, text: str) -> None:
    two = ClusterInfo([node(), replace(node("second (10.0.0.2)"), **changes)], [], {}, {"CPU": 16.0})
    (finding,) = problems(cluster_findings(load(DEMO), two))
    assert (finding.what, finding.where) == (what, "second (10.0.0.2)")
    assert text in finding.text
    assert finding.fix


def test_a_silent_node_a_slow_network_and_too_few_processors_are_reported() -> None:
    bad = ClusterInfo([node()], ["third (10.0.0.3): no answer within 60 s"], {("first", "third"): 0.05}, {"CPU": 1.0})
    findings = {one.what: one for one in problems(cluster_findings(load(DEMO), bad))}
    assert set(findings) == {"nodes", "bandwidth", "processors"}
    assert (findings["nodes"].where, findings["nodes"].text) == ("third (10.0.0.3)", "no answer within 60 s")
    assert findings["bandwidth"].text == "0.05 GB/s through the object store"


def test_a_clock_is_not_refused_within_the_error_of_its_measurement() -> None:
    slow = replace(node(), clock_s=3.0, clock_within_s=2.5)
    assert problems(cluster_findings(load(DEMO), ClusterInfo([slow], [], {}, {"CPU": 16.0}))) == []


def test_every_node_is_checked_for_model_and_data() -> None:
    config = load(DEMO, ["model.path=models/m", "data.train=d/train.jsonl", "data.test=split", "data.ood=hf:a/b"])
    assert paths_of(config) == [str(Path("models/m").resolve()), str(Path("d/train.jsonl").resolve())]
    assert paths_of(load(DEMO)) == []


def test_exit_codes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([str(DEMO), f"output_dir={tmp_path}"]) == 0
    assert capsys.readouterr().out.endswith("0 problems\n")
    assert main([str(DEMO), "model.path=/none", f"output_dir={tmp_path}"]) == 1
    output = capsys.readouterr().out
    assert "PROBLEM  model          /none" in output
    assert output.endswith("1 problem\n")
    assert main([str(DEMO), "no.such=1"]) == 2


def test_a_cluster_is_not_checked_before_the_machine_is_sound(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([str(DEMO), "model.path=/none", f"output_dir={tmp_path}", "ray_address=127.0.0.1:1"]) == 1
    assert "127.0.0.1:1: not checked: solve the problems above first" in capsys.readouterr().out
