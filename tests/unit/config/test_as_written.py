"""Settings as they are written: text stays text, numbers in another base are refused, other names are known."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from demopsd_dist.config import Config, WandbMode, load, to_yaml
from demopsd_dist.config.as_written import quoted, setting_kinds
from demopsd_dist.config.other_trainers import ALIASES, SECTION_VALUES
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.util.errors import ConfigError

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"


@pytest.mark.parametrize("text", ["007", "010", "1e5", "yes", "off", "0x1f", "1_000", "1.50", "2026-01-02"])
def test_text_stays_as_it_is_written(tmp_path: Path, text: str) -> None:
    assert load(DEMO, [f"name={text}", f"data.suffix={text}"]).name == text
    (tmp_path / "a.yaml").write_text(f"base: {DEMO}\nname: {text}\ndata:\n  only_levels: [L3, {text}]\n")
    config = load(tmp_path / "a.yaml")
    assert (config.name, config.data.only_levels) == (text, ["L3", text])
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load(tmp_path / "again.yaml") == config


@pytest.mark.parametrize(
    "text",
    [
        " End with #### and the number.",
        "\n\nAnswer in \\boxed{}.",
        "Let's think. ",
        "x\n\ny",
        "Answer: X",
        "'tis",
        "{a",
        "- a",
        "&a *b !c",
        "\u2028 水 \N{GRINNING FACE} \x7f",
    ],
)
def test_the_text_of_an_override_is_taken_whole(text: str) -> None:
    """Without quotes, and within them as from Python."""
    assert load(DEMO, [f"data.suffix={text}"]).data.suffix == text
    assert load(DEMO, [f"data.suffix={quoted(text)}"]).data.suffix == text
    if not text.startswith("{"):  # a list of training sets that does not end
        assert load(DEMO, [f"data.train={text}", "data.test=split"]).data.train == text


@pytest.mark.parametrize("word", ["steps=10 # few", "data.only_levels=[L3] #L4", "rollout.engine={block_size: 64} #"])
def test_a_comment_in_an_override_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=r"YAML takes '#.*' as a comment\. Leave it out, or quote the value"):
        load(DEMO, [word])


def test_words_of_a_choice_and_null_and_numbers_keep_their_meaning() -> None:
    config = load(DEMO, ["sinks.wandb=off", "data.ood=null", "data.suffix=12:30:45", "deterministic=yes", "seed=0x10"])
    assert (config.sinks.wandb, config.data.ood, config.data.suffix) == (WandbMode.off, None, "12:30:45")
    assert (config.deterministic, config.seed) == (True, 16)
    assert load(DEMO, ["data.fields={text: 010}"]).data.fields.text == "010"
    assert load(DEMO, ["learner.learning_rate=1e-5"]).learner.learning_rate == 1e-5


@pytest.mark.parametrize("word", ["steps=010", "steps=1:30", "seed=-012", "profile.steps=[7,010]"])
def test_a_number_in_another_base_is_refused(tmp_path: Path, word: str) -> None:
    with pytest.raises(ConfigError, match=r"is a number to base 8 or 60 in YAML\. Write it in decimal digits"):
        load(DEMO, [word])
    key, _, value = word.partition("=")
    section, _, name = key.rpartition(".")
    text = f"{section}:\n  {name}: {value}" if section else f"{name}: {value}"
    (tmp_path / "a.yaml").write_text(f"base: {DEMO}\n{text}\n")
    with pytest.raises(ConfigError, match="is a number to base 8 or 60 in YAML"):
        load(tmp_path / "a.yaml")


@pytest.mark.parametrize("key", ["output_dir", "model.path", "data.train", "data.test", "data.ood"])
def test_a_tilde_is_refused_with_the_path_that_it_stands_for(key: str) -> None:
    with pytest.raises(ConfigError, match="would be a folder named ~") as caught:
        load(DEMO, [f"{key}=~/runs"])
    assert f"Write {os.path.expanduser('~/runs')}." in str(caught.value)


def test_a_tilde_in_a_base_and_before_a_config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.yaml").write_text("base: ~/b.yaml\n")
    with pytest.raises(ConfigError, match="would be a file in a folder named ~") as caught:
        load(tmp_path / "a.yaml")
    assert f"Write {tmp_path}/b.yaml." in str(caught.value)
    (tmp_path / "b.yaml").write_text("seed: 7\n")
    assert load("~/b.yaml").seed == 7, "as a shell writes it out"


def test_the_page_for_users_of_other_trainers_has_their_names() -> None:
    page = (Path(__file__).parents[3] / "docs" / "coming_from.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    shown = {name: row[0].strip("|` ") for row in rows for cell in row[1:] for name in re.findall(r"`([^`]+)`", cell)}
    assert len(shown) > 50
    assert {name: ALIASES.get(name) for name in shown} == shown


def test_names_of_other_trainers_get_a_suggestion() -> None:
    known = {key for key, _ in setting_kinds(Config)}
    assert {*ALIASES.values(), *SECTION_VALUES.values()} <= known
    assert not known & set(ALIASES)
    assert len(ALIASES) > 70
    for alias, key in list(ALIASES.items())[::6]:  # a load takes a while, and all take the same way
        with pytest.raises(ConfigError, match=rf"there is no setting .*\. Did you mean {key}\?"):
            load(DEMO, [f"{alias}=1"])
    with pytest.raises(ConfigError, match=r"model is a section of settings\. Did you mean model\.path=Qwen/Qwen3-8B\?"):
        load(DEMO, ["model=Qwen/Qwen3-8B"])


def test_resume_takes_the_highest_number_of_the_runs_with_this_name(tmp_path: Path) -> None:
    config = load(DEMO, ["name=sweep", f"output_dir={tmp_path}"])
    for _ in range(11):
        RunFolder.create(config)
    os.utime(tmp_path / "sweep-9" / "config.yaml", (4e9, 4e9))  # as a copy changes it
    other = load(DEMO, ["name=sweep-20", f"output_dir={tmp_path}"])
    RunFolder.create(other)
    assert RunFolder.newest(config) == RunFolder(tmp_path / "sweep-11")
    assert RunFolder.newest(other) == RunFolder(tmp_path / "sweep-20")
    assert RunFolder.newest(load(DEMO, ["name=none", f"output_dir={tmp_path}"])) is None
