"""The point that a run is resumed from: the same settings and inputs, or a refusal that names the difference."""

from __future__ import annotations

from pathlib import Path

import pytest

from demopsd_dist.config import load
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.run_record.run_inputs import write_inputs
from demopsd_dist.util.errors import ConfigError
from launch._training_run import find_resume_point

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"
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


def test_changed_settings_are_refused_before_changed_inputs(tmp_path: Path) -> None:
    config = load(DEMO, [f"output_dir={tmp_path}"])
    write_inputs(RunFolder.create(config), INPUTS)
    other = load(DEMO, [f"output_dir={tmp_path}", "learner.learning_rate=1e-5"])
    with pytest.raises(ConfigError, match=r"with other settings.*learner\.learning_rate"):
        find_resume_point(other, {}, None, allow_config_change=False)
