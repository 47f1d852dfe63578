"""Output of the commands at 60, 80, 120 and 200 columns: nothing wider, no broken word, nothing lost."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from demopsd_dist.config import load, settings_keys
from demopsd_dist.data.accuracy import AccuracyEstimate
from demopsd_dist.planning.plan_text import KNOWN_ERROR
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.run_record.log import RunLog
from demopsd_dist.training.evaluate import Evaluation
from demopsd_dist.util.errors import ConfigError, DataError
from launch import __main__ as front_door
from launch import doctor, plan, train
from launch._settings_shown import settings_lines
from launch.evaluate import check_writable, format_result

ROOT = Path(__file__).parents[3]
DEMO = str(ROOT / "configs" / "demo.yaml")
NODE = str(ROOT / "configs" / "node_8gpu.yaml")
SMALL = ["data.minisci_train_size=64", "data.minisci_test_size=16"]
WIDTHS = [60, 80, 120, 200]
Captured = pytest.CaptureFixture[str]


def words_at(width: int | None, command: list[str], capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Words of the output at this width, after a check that no line is wider than it, unless it is one word."""
    monkeypatch.delenv("COLUMNS", raising=False)
    if width is not None:
        monkeypatch.setenv("COLUMNS", str(width))
    front_door.main(command)
    lines = capsys.readouterr().out.splitlines()
    assert width is None or [line for line in lines if len(line) > width and " " in line.strip()] == []
    return " ".join(lines).split()


@pytest.mark.parametrize("width", WIDTHS)
def test_a_plan_fits_and_loses_no_word(width: int, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["plan", NODE, "--gpus", "8xh100", "--hours", "12", "--price", "2"]
    whole = words_at(None, command, capsys, monkeypatch)
    assert sorted(words_at(width, command, capsys, monkeypatch)) == sorted(whole)


def test_results_of_an_evaluation_are_checked_before_it(tmp_path: Path) -> None:
    check_writable(tmp_path / "results.json")
    for path, message in ((tmp_path, "is a folder"), (tmp_path / "a" / "b", "there is no folder")):
        with pytest.raises(DataError, match=message):
            check_writable(path)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_list_of_commands_fits(width: int, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    assert words_at(width, [], capsys, monkeypatch) == words_at(None, [], capsys, monkeypatch)


def test_the_doctor_fits_and_names_all_that_is_missing(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs before CPUs, the model, and every file of the data."""
    monkeypatch.chdir(ROOT)
    words = ["learner.cpus_per_worker=500", "data.train=none-a.jsonl", "data.test=none-b.jsonl"]
    monkeypatch.setenv("COLUMNS", "80")
    assert doctor.main([NODE, *words]) == 1
    output = capsys.readouterr().out
    assert [line for line in output.splitlines() if len(line) > 80] == []
    text = " ".join(output.split())
    assert text.index("need 8 GPUs; there are") < text.index("CPUs; there are")
    for missing in ("Qwen3-4B-Instruct-2507: there is no such folder", "none-a.jsonl: there", "none-b.jsonl: there"):
        assert missing in text


def test_a_plan_says_how_wrong_it_was_and_when_it_leaves_on_policy(capsys: Captured) -> None:
    page = (ROOT / "docs" / "planning.md").read_text(encoding="utf-8")
    figures = re.findall(r"\d+(?:\.\d+)?", KNOWN_ERROR)
    assert len(figures) == 4
    assert [figure for figure in figures if figure not in page] == []
    assert plan.main([NODE, "--gpus", "8xh100"]) == 0
    output = capsys.readouterr().out
    assert f"known error: {KNOWN_ERROR}" in output
    assert (
        "It leaves on-policy training: with rollout.ahead=1 responses are sampled with weights up to 1 version"
        in output
    )
    assert re.search(r"; the fastest with rollout\.ahead=0: .*, ahead 0: \d+ s a step", output)
    assert plan.main([NODE, "--gpus", "8xh100", "rollout.ahead=1"]) == 0
    assert "on-policy" not in capsys.readouterr().out


def test_a_dry_run_is_short_and_marks_what_was_changed(capsys: Captured, tmp_path: Path) -> None:
    words = ["learner.zero_stage=3", "data.only_levels=[]", "samples.tokens=7", "model.path=minisci"]
    config = load(DEMO, words)
    short, full = list(settings_lines(config, full=False)), list(settings_lines(config, full=True))
    assert len(short) < 40 < len(full)
    assert "  zero_stage: 3  # default: 2" in short
    assert "  zero_stage: 3  # default: 2" in full
    assert not any("group_size" in line for line in short), "it has its default"
    assert sum("# default: " in line for line in full) == sum("# default: " in line for line in short) > 10
    assert (
        len([key for key in settings_keys() if re.search(rf"^ *{key.rpartition('.')[2]}:", "\n".join(full), re.M)])
        > 150
    )
    for lines in (short, full):
        (tmp_path / "again.yaml").write_text("\n".join(lines))
        assert load(tmp_path / "again.yaml") == config
        assert yaml.safe_load("\n".join(lines))["learner"]["zero_stage"] == 3
    assert train.main([DEMO, "--dry-run", "--full", *SMALL]) == 0
    assert "group_size: 8" in capsys.readouterr().out
    assert train.main([DEMO, "--full"]) == ConfigError.exit_code
    assert "Add --dry-run" in capsys.readouterr().err


def test_values_over_several_lines_keep_their_form(tmp_path: Path) -> None:
    """Lists of training sets, and texts with line ends."""
    (tmp_path / "config.yaml").write_text(
        "data:\n  train:\n  - {path: a.jsonl, weight: 2}\n  - {path: b.jsonl}\n  only_types: [x, y]\n"
        '  suffix: "' + "Answer in one line. " * 12 + '\\n\\nEnd: with a number."\n'
    )
    config = load(tmp_path / "config.yaml")
    for full in (False, True):
        text = "\n".join(settings_lines(config, full))
        assert "# default: ''" in text
        (tmp_path / "again.yaml").write_text(text)
        assert load(tmp_path / "again.yaml") == config


@pytest.mark.parametrize("width", WIDTHS)
def test_the_lines_of_a_run_fit_the_terminal(width: int, tmp_path: Path, capsys: Captured) -> None:
    folder = RunFolder.create(load(DEMO, [f"output_dir={tmp_path}"]))
    line = "step  1/40  reward 0.318  loss 0.2947  entropy 0.144  alpha 0.025  active 86%  groups 88%  74 samples/s"
    with RunLog(folder, 40, Console(width=width, force_terminal=True, soft_wrap=True, highlight=False)) as log:
        log.note(line)
        log.note("    | " + "prompt " * 50)
    shown = [re.sub(r"\x1b\[[^m]*m", "", one) for one in capsys.readouterr().out.splitlines()]
    assert shown[-1].split() == ["|", *["prompt"] * 50], "a prompt is shown as it is"
    assert all(len(one) <= width for one in shown[:-1])
    assert " ".join(shown[:-1]).split() == line.split()


FIELDS = ("biology", "chemistry", "materials", "physics", "mathematics")


def result_of_an_evaluation(mean: float = 0.585) -> Evaluation:
    accuracy = AccuracyEstimate(mean, 0.54, 0.63, {name: 0.5 + i / 100 for i, name in enumerate(FIELDS)})
    return Evaluation(
        mean=accuracy,
        majority=accuracy,
        passes={1: accuracy, 2: accuracy},
        best=accuracy,
        entropy_nats=0.1,
        response_tokens_mean=20.0,
        truncated_fraction=0.0,
        unparsed_fraction=0.0,
        reward_errors=0,
        behaviour={},
        questions=192,
        samples=8,
        example={"question": "Secret?", "response": "yes"},
    )


def test_the_log_of_a_low_accuracy_quotes_no_item_that_must_not_be_republished(tmp_path: Path) -> None:
    text = StringIO()
    with RunLog(RunFolder.create(load(DEMO, [f"output_dir={tmp_path}"])), 9, Console(file=text, width=1000)) as log:
        log.write_evaluation(3, "test", result_of_an_evaluation(0.01))
        assert text.getvalue().count("Secret?") == 1
        log.withheld = {"ood"}
        log.write_evaluation(3, "ood", result_of_an_evaluation(0.01))
    assert text.getvalue().count("Secret?") == 1
    assert "example: not shown, as this data set's items must not be republished" in text.getvalue()


@pytest.mark.parametrize("width", [*WIDTHS, None])
def test_the_table_of_an_evaluation_fits(width: int | None) -> None:
    result = result_of_an_evaluation()
    text = format_result(result, width)
    table = text.partition("response tokens")[0].splitlines()
    assert width is None or all(len(line) <= width for line in table)
    assert all(text.count(f" {name}") == 1 for name in FIELDS)
    assert text.count("54.0%") == 4 + 4, "a row of each accuracy for the last field, and four lower bounds"
    assert sum(line.startswith("mean@8") for line in table) == {60: 3, 80: 2, 120: 1, 200: 1, None: 1}[width]
