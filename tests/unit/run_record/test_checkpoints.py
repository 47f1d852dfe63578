"""Checkpoints: complete or absent, and any changed or missing byte is detected."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from pathlib import Path

import pytest

from demopsd_dist.config import changes, changes_of_training, load
from demopsd_dist.run_record.checkpoints import Checkpoint, Checkpoints, checkpoint_at
from demopsd_dist.util.errors import CheckpointError, RunFolderError

DEMO = Path(__file__).parents[3] / "configs" / "demo.yaml"


def written(folder: Path, *steps: int, keep: int = 2) -> Checkpoints:
    checkpoints = Checkpoints(folder, keep)

    async def write(step: int) -> None:
        async with checkpoints.writing(step, {"step": step}) as inside:
            (inside / "learner").mkdir()
            (inside / "learner" / "weights").write_bytes(random.Random(step).randbytes(300))
            (inside / "empty").touch()

    for step in steps:
        asyncio.run(write(step))
    return checkpoints


def test_the_newest_checkpoints_stay_and_nothing_else(tmp_path: Path) -> None:
    checkpoints = written(tmp_path, 5, 10, 15)
    assert [one.step for one in checkpoints.all()] == [15, 10]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000010", "step-000015"]
    assert checkpoints.all()[0].state() == {"step": 15}
    assert checkpoints.all()[0].damage() is None


@pytest.mark.parametrize("how", ["cut", "flipped", "longer", "gone"])
def test_any_damage_to_any_file_is_detected(tmp_path: Path, how: str) -> None:
    (intact,) = written(tmp_path / "run", 5).all()
    rng = random.Random(how)
    files = [path.relative_to(intact.path) for path in intact.path.rglob("*") if path.is_file()]
    assert len(files) == 4
    for name in files:
        size = (intact.path / name).stat().st_size
        indices = range(size) if how in ("cut", "flipped") else range(1)
        for index in indices:
            damaged = tmp_path / "damaged" / intact.path.name
            shutil.copytree(intact.path, damaged)
            content = bytearray((damaged / name).read_bytes())
            if how == "gone":
                (damaged / name).unlink()
            else:
                if how == "cut":
                    del content[index:]
                elif how == "flipped":
                    content[index] ^= 1 << rng.randrange(8)
                else:
                    content += b"\0"
                (damaged / name).write_bytes(content)
            damage = Checkpoint(damaged).damage()
            same = name.name == "manifest.json" and how != "gone" and _is_equivalent(content, intact)
            assert (damage is None) == same, (name, index, damage)
            shutil.rmtree(damaged)


def _is_equivalent(content: bytes | bytearray, intact: Checkpoint) -> bool:
    """True if a changed manifest still has the same content, as without its final line break."""
    try:
        return json.loads(content) == json.loads((intact.path / "manifest.json").read_text())
    except ValueError:
        return False


def test_a_checkpoint_that_cannot_be_written_leaves_the_others(tmp_path: Path) -> None:
    checkpoints = written(tmp_path, 5)

    async def fail() -> None:
        async with checkpoints.writing(10, {"step": 10}) as inside:
            (inside / "half").write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(RunFolderError, match=r"step-000010 could not be written: .*No space left"):
        asyncio.run(fail())
    assert [path.name for path in tmp_path.iterdir()] == ["step-000005"]


def test_a_damaged_checkpoint_is_skipped_with_a_warning_and_refused_by_path(tmp_path: Path) -> None:
    checkpoints = written(tmp_path, 5, 10)
    newest = checkpoints.all()[0]
    (newest.path / "learner" / "weights").write_bytes(b"")
    warnings: list[str] = []
    good = checkpoints.newest_good(warnings.append)
    assert good is not None
    assert good.step == 5
    assert "step-000010 is damaged and skipped: learner/weights has 0 bytes, 300 were written" in warnings[0]
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoint_at(newest.path)
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        checkpoint_at(tmp_path)


@pytest.mark.parametrize("name", ["teacher/ema-00001.safetensors", "learner/weights-00007.safetensors", ".hidden"])
def test_a_file_that_was_put_into_a_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    checkpoints = written(tmp_path, 5, 10)
    newest = checkpoints.all()[0]
    stray = newest.path / name
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"weights of somebody")
    with pytest.raises(CheckpointError, match=f"1 files in it are not in its manifest.json, first {name}; remove them"):
        checkpoint_at(newest.path)
    warnings: list[str] = []
    good = checkpoints.newest_good(warnings.append)
    assert good is not None
    assert good.step == 5
    assert name in warnings[0]
    stray.unlink()
    assert checkpoint_at(newest.path).step == 10


def test_changed_settings_at_a_resume() -> None:
    before = load(DEMO, ["rollout.num_workers=1"])
    after = load(DEMO, ["rollout.num_workers=2", "learner.zero_stage=3", "learner.learning_rate=1e-5", "steps=80"])
    assert set(changes(before, after)) == {
        "rollout.num_workers",
        "learner.zero_stage",
        "learner.learning_rate",
        "steps",
    }
    assert set(changes_of_training(before, after)) == {"learner.learning_rate"}
    falling = load(DEMO, ["steps=80", "learner.schedule=cosine"])
    assert set(changes_of_training(before, falling)) == {"learner.schedule", "steps"}
