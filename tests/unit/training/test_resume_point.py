"""The point that a run is resumed from: the same settings and inputs, or a refusal that names the difference."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from demopsd_dist.config import load
from demopsd_dist.run_record.checkpoints import Checkpoints
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.run_record.run_inputs import write_inputs
from demopsd_dist.training.resume_point import find_resume_point
from demopsd_dist.util.errors import ConfigError
from launch import train

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"


def write_checkpoint(folder: RunFolder, step: int) -> None:
    """Write a whole checkpoint without content."""

    async def write() -> None:
        async with Checkpoints(folder.checkpoints, keep=1).writing(step, {}):
            pass

    asyncio.run(write())


INPUTS = {"data.train": "64:aa", "model.path/config.json": "9:bb"}


@pytest.mark.parametrize("changed", sorted(INPUTS))
def test_a_resume_on_other_inputs_is_refused_like_a_changed_setting(tmp_path: Path, changed: str) -> None:
    config = load(DEMO, [f"output_dir={tmp_path}"])
    folder = RunFolder.create(config)
    write_inputs(folder, INPUTS)
    same = find_resume_point(config, INPUTS, None, allow_config_change=False)
    assert (same.folder.path, dict(same.changed)) == (folder.path, {})
    other = INPUTS | {changed: "1:cc"}
    with pytest.raises(ConfigError, match=rf"was run on other inputs.*: {changed} \({INPUTS[changed]} -> 1:cc\)"):
        find_resume_point(config, other, None, allow_config_change=False)
    allowed = find_resume_point(config, other, None, allow_config_change=True)
    assert dict(allowed.changed) == {changed: (INPUTS[changed], "1:cc")}


def test_a_checkpoint_may_be_named_from_inside_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(DEMO, [f"output_dir={tmp_path}"])
    folder = RunFolder.create(config)

    write_checkpoint(folder, 20)
    monkeypatch.chdir(folder.checkpoints)
    start = find_resume_point(config, {}, Path("step-000020"), allow_config_change=False)
    assert start.folder.path == folder.path
    assert start.checkpoint is not None
    assert start.checkpoint.step == 20


def test_changed_settings_are_refused_before_changed_inputs(tmp_path: Path) -> None:
    config = load(DEMO, [f"output_dir={tmp_path}"])
    write_inputs(RunFolder.create(config), INPUTS)
    other = load(DEMO, [f"output_dir={tmp_path}", "learner.learning_rate=1e-5"])
    with pytest.raises(ConfigError, match=r"with other settings.*learner\.learning_rate"):
        find_resume_point(other, {}, None, allow_config_change=False)


def test_a_run_that_is_done_is_refused_and_goes_on_with_more_steps(tmp_path: Path) -> None:
    config = load(DEMO, [f"output_dir={tmp_path}", "steps=3"])
    folder = RunFolder.create(config)
    write_inputs(folder, INPUTS)
    folder.student.mkdir()
    for steps, problems in ((2, []), (3, ["NaN"])):  # of an earlier shorter run; with a student that is not to be used
        folder.write_summary({"steps": steps, "export": {"problems": problems}})
        assert find_resume_point(config, INPUTS, None, allow_config_change=False).resumes
    folder.write_summary({"steps": 3, "export": {"problems": []}})
    with pytest.raises(ConfigError, match=rf"{folder.path} is done: all 3 steps.*steps=N with more steps"):
        find_resume_point(config, INPUTS, None, allow_config_change=False)
    longer = load(DEMO, [f"output_dir={tmp_path}", "steps=4"])
    start = find_resume_point(longer, INPUTS, None, allow_config_change=False)
    assert start.lines(longer) == [
        f"continues {folder.path} from its start, as it has no checkpoint: 0 of 4 steps are done",
        "changed steps: 3 -> 4",
    ]


def test_a_dry_run_names_the_run_and_the_checkpoint_it_would_continue(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(DEMO), f"output_dir={tmp_path}", "--dry-run", "--resume"]
    assert train.main(words) == 2
    assert "there is no run named demo" in capsys.readouterr().err
    folder = RunFolder.create(load(DEMO, words[1:2]))
    write_checkpoint(folder, 7)
    (folder.checkpoints / "step-000009").mkdir()
    assert train.main(words) == 0
    output = capsys.readouterr().out
    assert f"# warning: {folder.checkpoints / 'step-000009'} is damaged and skipped" in output
    assert f"# continues {folder.path} from {folder.checkpoints / 'step-000007'}: 7 of 40" in output
    assert train.main([*words, "learner.learning_rate=1e-9"]) == 2
    assert "other settings" in capsys.readouterr().err
