"""Each finding says what, where and the fix; what is right is no finding."""

from __future__ import annotations

import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from demopsd_dist.config import load
from demopsd_dist.util.code_digest import ROOT, code_digest, differing_files, file_digests
from launch import _doctor_findings
from launch._cluster_findings import cluster
from launch._doctor_findings import Finding, FindingLevel
from launch.doctor import main, paths
from workers.cluster.node_info import NodeInfo, NodeSurvey

DEMO = ROOT / "configs" / "demo.yaml"


def problems(found: object) -> list[Finding]:
    return [one for one in found if one.level is not FindingLevel.ok]  # type: ignore[attr-defined]


def test_a_digest_tells_any_change_of_code_and_nothing_else(tmp_path: Path) -> None:
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


def test_this_environment_is_the_locks() -> None:
    found = _doctor_findings.installed()
    assert problems(_doctor_findings.versions(found, _doctor_findings.lock_of(found), "here")) == []


def test_other_versions_are_named() -> None:
    found = _doctor_findings.installed()
    build = _doctor_findings.lock_of(found)
    other = {**found, "ray": "2.0.0", "python": "3.12.1"}
    del other["omegaconf"]
    python, packages = problems(_doctor_findings.versions(other, build, "node-7"))
    assert (python.where, python.text) == ("node-7", "Python 3.12.1")
    assert re.search(r"^2 of \d+ packages .*omegaconf missing, not 2\..*ray 2\.0\.0, not 2\.", packages.text)
    assert packages.fix.startswith("run make setup")


def test_a_local_build_of_torch_is_the_locks() -> None:
    found = _doctor_findings.installed()
    assert (
        problems(_doctor_findings.versions({**found, "torch": f"{found['torch'].partition('+')[0]}+cpu"}, "cpu", "x"))
        == []
    )


def test_small_shared_memory_and_few_open_files() -> None:
    small = _doctor_findings.shared_memory("a", 0.06, 0.05, 64.0)
    assert (small.level, small.fix.startswith("give it 19 GiB")) == (FindingLevel.warning, True)
    assert _doctor_findings.shared_memory("a", 32.0, 31.0, 64.0).level is FindingLevel.ok
    assert "ulimit -n 65536" in _doctor_findings.open_files(1024).fix
    assert _doctor_findings.open_files(65536).level is FindingLevel.ok


def test_a_clock_behind_the_code_is_wrong() -> None:
    assert _doctor_findings.clock(time.time()).level is FindingLevel.ok
    assert _doctor_findings.clock(0.0).level is FindingLevel.problem


def test_roles_that_find_no_room() -> None:
    (found,) = problems(_doctor_findings.processors(load(DEMO, ["learner.num_workers=400"])))
    assert "need 161.2 CPUs" in found.text
    assert found.fix.startswith("Lower a role's num_workers")


def test_inputs_that_are_not_there(tmp_path: Path) -> None:
    config = load(DEMO, [f"model.path={tmp_path}/none", f"data.train={tmp_path}/none.jsonl", "reward=no.such.reward"])
    found = {one.what: one for one in problems(_doctor_findings.inputs(config))}
    assert set(found) == {"model", "data", "reward"}
    assert found["model"].fix.startswith("Give a Hugging Face model folder")
    assert "there is no such file" in found["data"].text
    assert problems(_doctor_findings.inputs(load(DEMO))) == []


def test_an_output_that_cannot_be_written() -> None:
    (found,) = problems(_doctor_findings.disk(load(DEMO, ["output_dir=/proc/runs"])))
    assert (found.what, found.where) == ("output", "/proc/runs")
    assert "set output_dir" in found.fix


def test_a_disk_too_small_for_the_student(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"num_hidden_layers": 4000, "hidden_size": 100000, "num_attention_heads": 100, "vocab_size": 1000,'
        ' "intermediate_size": 300000}'
    )
    (found,) = problems(_doctor_findings.disk(load(DEMO, [f"output_dir={tmp_path}", f"model.path={tmp_path}"])))
    assert found.what == "disk"
    assert "the student takes" in found.text


def test_a_disk_too_small_for_the_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 0.013 GiB each in the demo: float32 weights, two moments, and the teacher's average."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0.05 * 2**30))
    words = [f"output_dir={tmp_path}", "checkpoint.every_steps=10"]
    (found,) = problems(_doctor_findings.disk(load(DEMO, [*words, "checkpoint.keep=5"])))
    assert "6 checkpoints 0.1" in found.text
    assert "lower checkpoint.keep" in found.fix
    assert problems(_doctor_findings.disk(load(DEMO, [*words, "checkpoint.keep=1"]))) == []


def test_a_head_that_does_not_answer() -> None:
    (found,) = problems(_doctor_findings.address(load(DEMO, ["ray_address=127.0.0.1:1"])))
    assert found.where == "127.0.0.1:1"
    assert list(_doctor_findings.address(load(DEMO, ["ray_address=auto"]))) == []


def node(name: str = "first (10.0.0.1)") -> NodeInfo:
    return NodeInfo(name, file_digests(), _doctor_findings.installed(), 8, 0, 32.0, (20.0, 20.0), [], 0.01, 0.002)


def test_nodes_that_are_right() -> None:
    two = NodeSurvey([node(), node("second (10.0.0.2)")], [], {("first", "second"): 3.0}, {"CPU": 16.0})
    found = list(cluster(load(DEMO), two))
    assert problems(found) == []
    assert any(one.text == f"digest {code_digest()}, as here" for one in found)


@pytest.mark.parametrize(
    ("changes", "what", "text"),
    [
        (
            {"files": {**file_digests(), "workers/rollout/worker.py": "0"}},
            "code",
            "1 files differ, workers/rollout/worker.py first",
        ),
        ({"files": {}}, "code", "there is no checkout that it would import"),
        ({"versions": {**_doctor_findings.installed(), "ray": "2.1"}}, "versions", "ray 2.1, not "),
        ({"missing": ["/data/model"]}, "paths", "/data/model is not there"),
        ({"clock_s": -7.0}, "clock", "-7.000 s from here"),
        ({"shared_memory_gib": (1.0, 0.5)}, "shared memory", "/dev/shm has 0.5 of 1.0 GiB free"),
    ],
)
def test_a_node_that_is_not_as_the_others_is_named(changes: dict, what: str, text: str) -> None:
    two = NodeSurvey([node(), replace(node("second (10.0.0.2)"), **changes)], [], {}, {"CPU": 16.0})
    (found,) = problems(cluster(load(DEMO), two))
    assert (found.what, found.where) == (what, "second (10.0.0.2)")
    assert text in found.text
    assert found.fix


def test_silence_a_slow_wire_and_too_little_room_are_told() -> None:
    bad = NodeSurvey([node()], ["third (10.0.0.3): no answer within 60 s"], {("first", "third"): 0.05}, {"CPU": 1.0})
    found = {one.what: one for one in problems(cluster(load(DEMO), bad))}
    assert set(found) == {"nodes", "bandwidth", "processors"}
    assert (found["nodes"].where, found["nodes"].text) == ("third (10.0.0.3)", "no answer within 60 s")
    assert found["bandwidth"].text == "0.05 GB/s through the object store"


def test_a_clock_is_not_blamed_for_what_is_not_known() -> None:
    slow = replace(node(), clock_s=3.0, clock_within_s=2.5)
    assert problems(cluster(load(DEMO), NodeSurvey([slow], [], {}, {"CPU": 16.0}))) == []


def test_every_node_is_asked_for_model_and_data() -> None:
    config = load(DEMO, ["model.path=models/m", "data.train=d/train.jsonl", "data.test=split", "data.ood=hf:a/b"])
    assert paths(config) == [str(Path("models/m").resolve()), str(Path("d/train.jsonl").resolve())]
    assert paths(load(DEMO)) == []


def test_exit_codes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([str(DEMO), f"output_dir={tmp_path}"]) == 0
    assert capsys.readouterr().out.endswith("0 problems\n")
    assert main([str(DEMO), "model.path=/none", f"output_dir={tmp_path}"]) == 1
    said = capsys.readouterr().out
    assert "PROBLEM  model          /none" in said
    assert said.endswith("1 problem\n")
    assert main([str(DEMO), "no.such=1"]) == 2
