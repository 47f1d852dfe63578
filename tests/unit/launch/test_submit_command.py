"""Commands that `launch.submit` sends, and settings that it refuses before sending."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from demopsd_dist.util.code_digest import ROOT
from demopsd_dist.util.errors import ConfigError
from launch import submit
from launch.submit import entrypoint, load_settings, parse_arguments
from workers.cluster.jobs import JobClient, last_error

DEMO = str(ROOT / "configs" / "demo.yaml")
ADDRESS = "--address=http://head:8265"


def sent(*words: str) -> str:
    """Command that the head would run."""
    arguments = parse_arguments([*words, ADDRESS])
    return entrypoint(arguments, load_settings(arguments))


def test_the_head_runs_training_with_the_same_words() -> None:
    words = "output_dir=/data/runs 'rollout.nodes=role=in(a,b)' ray_address=auto --resume"
    command = sent(DEMO, "output_dir=/data/runs", "rollout.nodes=role=in(a,b)", "--resume")
    assert command == f"exec {sys.executable} -m launch.train configs/demo.yaml {words}"
    sources = ["data.train=[{path: /a.jsonl}, {path: minisci}]", "data.test=minisci:validation", "data.ood=hf:a/b@c"]
    assert "minisci:validation" in sent(DEMO, "output_dir=/r", *sources)
    assert "gym:chain_sum" in sent(DEMO, "output_dir=/r", "data.train=gym:chain_sum", "data.test=split")
    assert sent(DEMO, "output_dir=/r", "--python=/opt/python").startswith("exec /opt/python -m launch.train ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            [],
            "output_dir=runs is relative, and a job runs in a folder that the cluster removes. Give the absolute path",
        ),
        (["output_dir=/r", "data.train=train.jsonl"], "data.train=train.jsonl is relative"),
        (["output_dir=/r", "data.train=[{path: /a.jsonl}, {path: b.jsonl}]"], r"data.train\[1\].path=b.jsonl is relat"),
        (["output_dir=/r", "data.test=hf:configs@test"], "data.test=hf:configs@test is relative"),
        (["output_dir=/r", "model.path=models/m"], "model.path=models/m is relative"),
        (["output_dir=/r", "ray_address=head:6379"], "ray_address=head:6379: a job joins the cluster"),
        (["output_dir=/r", "step=3"], "steps"),
    ],
)
def test_settings_that_fail_on_the_head_are_refused_here(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sent(DEMO, *words)


def test_a_config_from_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("output_dir: /r\n")
    with pytest.raises(ConfigError, match=r"mine.yaml is not sent with the checkout"):
        sent(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("words", [[], [DEMO, "--status=a"], ["--stop=a", "--logs=a"]])
def test_exactly_one_action_is_needed(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments([*words, ADDRESS])
    assert "give a config to submit, or one of --status, --logs and --stop" in capsys.readouterr().err


def test_an_invalid_address_and_one_without_a_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    assert submit.main(["--status=a", "--address=head:8265"]) == 2
    assert "--address must be http://host:port" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"--address http://127.0.0.1:1: no jobs can be handled there \(.*refused\)"):
        JobClient("http://127.0.0.1:1")


def test_the_last_error_of_a_log() -> None:
    assert last_error("a\nerror: one\nerror: two\nthen this\n") == "error: two"
    assert last_error("a\nValueError: b\n\n") == "ValueError: b"
    assert last_error("") == "it wrote nothing"
