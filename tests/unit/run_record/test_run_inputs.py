"""Identity and inputs of a run: whatever changes what is learned is refused by name at a resume."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from demopsd_dist.config import load
from demopsd_dist.data.records import Question
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.run_record import run_inputs
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.run_record.run_inputs import (
    changed_inputs,
    digest_of_file,
    input_digests,
    refuse_other_inputs,
    write_inputs,
)
from demopsd_dist.util.errors import ConfigError

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"
TRAIN = [Question("a", "one?", "1", "physics"), Question("b", "two?", "2", "physics")]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in MODEL_DIR.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture
def run(tmp_path: Path, model: Path) -> RunFolder:
    folder = RunFolder.create(load(DEMO, [f"output_dir={tmp_path / 'runs'}"]))
    write_inputs(folder, input_digests({"train": TRAIN, "ood": []}, model))
    return folder


def test_the_same_inputs_in_other_files_pass(run: RunFolder, model: Path) -> None:
    moved = model.with_name("moved")
    model.rename(moved)
    (moved / "README.md").write_text("a model card")
    assert changed_inputs(run, input_digests({"train": list(TRAIN), "ood": []}, moved)) == {}


@pytest.mark.parametrize("field", ["id", "text", "answer", "field", "system", "solution", "history"])
def test_any_changed_question_is_refused(run: RunFolder, model: Path, field: str) -> None:
    changes: dict[str, Any] = {field: (("user", "other"),) if field == "history" else "other"}
    other = [TRAIN[0], replace(TRAIN[1], **changes)]
    changed = changed_inputs(run, input_digests({"train": other}, model))
    assert set(changed) == {"data.train"}
    with pytest.raises(
        ConfigError, match=r"was run on other inputs.*: data\.train \(2:.* -> 2:.*--allow-config-change"
    ):
        refuse_other_inputs(run, changed)


def test_another_order_or_number_of_questions_is_refused(run: RunFolder, model: Path) -> None:
    for other in (TRAIN[::-1], TRAIN[:1]):
        assert set(changed_inputs(run, input_digests({"train": other}, model))) == {"data.train"}
    changed = changed_inputs(run, input_digests({"train": TRAIN, "ood": TRAIN[:1]}, model))
    assert changed["data.ood"][0] == "absent"


def test_any_changed_file_of_the_model_is_refused_by_name(run: RunFolder, model: Path) -> None:
    for path in [path for path in model.iterdir() if path.suffix in run_inputs.MODEL_SUFFIXES]:
        content = path.read_bytes()
        path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
        changed = changed_inputs(run, input_digests({"train": TRAIN}, model))
        assert set(changed) == {f"model.path/{path.name}"}
        with pytest.raises(ConfigError, match=f"model.path/{path.name} "):
            refuse_other_inputs(run, changed)
        path.write_bytes(content)
    (model / "added.jinja").write_text("another template")
    changed = changed_inputs(run, input_digests({"train": TRAIN}, model))
    assert changed == {"model.path/added.jinja": ("absent", changed["model.path/added.jinja"][1])}


def test_a_large_file_counts_by_size_and_samples(tmp_path: Path) -> None:
    sampled = {"whole_bytes": 1000, "sample_bytes": 10}
    path = tmp_path / "weights.safetensors"
    content = random.Random(0).randbytes(5000)
    path.write_bytes(content)
    before = digest_of_file(path, **sampled)
    for other in (content + b"x", content[:-1] + b"x", b"x" + content[1:], random.Random(1).randbytes(5000)):
        path.write_bytes(other)
        assert digest_of_file(path, **sampled) != before
    path.write_bytes(content)
    assert digest_of_file(path, **sampled) == before


def test_a_run_without_a_record_is_recorded_and_not_refused(tmp_path: Path, model: Path) -> None:
    folder = RunFolder.create(load(DEMO, [f"output_dir={tmp_path / 'old'}"]))
    digests = input_digests({"train": TRAIN}, model)
    changed = changed_inputs(folder, digests)
    assert changed == {"inputs": ("not recorded", "recorded from now on")}
    refuse_other_inputs(folder, changed)
    assert folder.identity is None
    write_inputs(folder, digests)
    identity = folder.identity
    assert identity
    write_inputs(folder, digests)
    assert (folder.identity, changed_inputs(folder, digests)) == (identity, {})


def test_a_damaged_record_is_refused(run: RunFolder) -> None:
    run.inputs.write_text(run.inputs.read_text()[:20])
    with pytest.raises(ConfigError, match=r"inputs\.json is damaged\. Remove it"):
        changed_inputs(run, {})
