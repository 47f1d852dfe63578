"""Checkpoints of a run: written atomically, and verified before use.

A checkpoint is written into a temporary folder, synced, and renamed: a folder `step-000012` is complete. Its
`manifest.json` has size and digest of every file in it, so that later damage, and any file that was added later, is
detected before anything is loaded. Nothing in it can run code: tensors are safetensors, all else is JSON.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from demopsd_dist.util.errors import CheckpointError, RunFolderError

FORMAT = 1
MANIFEST, STATE = "manifest.json", "state.json"
CHUNK_BYTES = 8 << 20
_NAME = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder: `state.json`, `manifest.json`, and the files of learners and teacher."""

    path: Path

    @property
    def step(self) -> int:
        match = _NAME.fullmatch(self.path.name)
        assert match is not None
        return int(match[1])

    def state(self) -> dict[str, Any]:
        """The driver's state: step, samples, ledger position and settings."""
        return json.loads((self.path / STATE).read_text(encoding="utf-8"))

    def digest(self) -> str:
        """Digest of all files, from the manifest."""
        return json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))["digest"]

    def damage(self) -> str | None:
        """Description of the first damage; None if every file is as it was written."""
        try:
            manifest = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
            files: dict[str, dict[str, Any]] = manifest["files"]
            if manifest["format"] != FORMAT:
                return f"its format is {manifest['format']}, this version reads {FORMAT}"
            if manifest["digest"] != _digest_of_text(json.dumps(files, sort_keys=True)):
                return f"{MANIFEST} differs from what was written"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{MANIFEST} cannot be read ({type(error).__name__}: {error})"
        present = {str(path.relative_to(self.path)) for path in _files(self.path)} - {MANIFEST}
        if missing := sorted(files.keys() - present):
            return f"{len(missing)} of {len(files)} files are missing, first {missing[0]}"
        if foreign := sorted(present - files.keys()):
            return (
                f"{len(foreign)} files in it are not in its {MANIFEST}, first {foreign[0]}; remove them to use the rest"
            )
        for name, written in files.items():
            path = self.path / name
            try:
                if path.stat().st_size != written["size"]:
                    return f"{name} has {path.stat().st_size:,} bytes, {written['size']:,} were written"
                if _digest(path) != written["digest"]:
                    return f"{name} differs from what was written (digest)"
            except OSError as error:
                return f"{name} cannot be read ({error})"
        return None


class Checkpoints:
    """The checkpoints in a run folder. The newest `keep` stay; older ones are removed after a new one is complete."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep

    def all(self) -> list[Checkpoint]:
        """All checkpoints, newest first."""
        if not self._folder.is_dir():
            return []
        checkpoints = [Checkpoint(path) for path in self._folder.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(checkpoints, key=lambda checkpoint: -checkpoint.step)

    def at(self, step: int) -> Checkpoint | None:
        """The checkpoint after this step, None if there is none."""
        return next((checkpoint for checkpoint in self.all() if checkpoint.step == step), None)

    def newest_good(self, warn: Callable[[str], None], before: int | None = None) -> Checkpoint | None:
        """The newest undamaged checkpoint, of a step less than `before` if given. `warn` gets each damage."""
        for checkpoint in self.all():
            if before is not None and checkpoint.step >= before:
                continue
            damage = checkpoint.damage()
            if damage is None:
                return checkpoint
            warn(f"warning: {checkpoint.path} is damaged and skipped: {damage}")
        return None

    @asynccontextmanager
    async def writing(self, step: int, state: dict[str, Any]) -> AsyncIterator[Path]:
        """Folder to write a checkpoint into. It becomes a checkpoint when the block ends, and is removed on an error.

        Raises:
            RunFolderError: it cannot be written. Earlier checkpoints are intact.
        """
        path = self._folder / f"step-{step:06d}"
        temporary = self._folder / f".{path.name}"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            yield temporary
            (temporary / STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
            _seal(temporary)
            if path.exists():  # a damaged checkpoint, or one of an undone step
                path.rename(temporary.with_suffix(".old"))
            temporary.rename(path)
            _sync(self._folder)
        except OSError as error:
            raise RunFolderError(
                f"checkpoint {path} could not be written: {error}. Earlier checkpoints are intact; free disk space or "
                "repair the disk, then resume."
            ) from None
        finally:
            for leftover in (temporary, temporary.with_suffix(".old")):
                shutil.rmtree(leftover, ignore_errors=True)
        for old in self.all()[self._keep :]:
            shutil.rmtree(old.path, ignore_errors=True)

    def undo_after(self, step: int) -> None:
        """Rename the checkpoints of later steps to `undone-step-*`: the run repeats these steps."""
        for checkpoint in self.all():
            if checkpoint.step > step:
                undone = checkpoint.path.with_name(f"undone-{checkpoint.path.name}")
                shutil.rmtree(undone, ignore_errors=True)
                checkpoint.path.rename(undone)


def checkpoint_at(path: Path) -> Checkpoint:
    """The checkpoint in this folder.

    Raises:
        CheckpointError: there is none in this folder, or it is damaged.
    """
    if not _NAME.fullmatch(path.name) or not path.is_dir():
        raise CheckpointError(f"{path} is no checkpoint: give a run folder, or a folder checkpoints/step-... in one.")
    checkpoint = Checkpoint(path)
    if (damage := checkpoint.damage()) is not None:
        raise CheckpointError(f"{path} is damaged: {damage}. Resume from another checkpoint in the same folder.")
    return checkpoint


def _seal(folder: Path) -> None:
    """Write the manifest, and sync every file to disk."""
    paths = list(_files(folder))
    with ThreadPoolExecutor(4) as pool:
        digests = list(pool.map(_digest, paths))
        list(pool.map(_sync, paths))
    files = {
        str(path.relative_to(folder)): {"size": path.stat().st_size, "digest": digest}
        for path, digest in zip(paths, digests, strict=True)
    }
    digest = _digest_of_text(json.dumps(files, sort_keys=True))
    manifest = {"format": FORMAT, "digest": digest, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    _sync(folder / MANIFEST)
    for inner in {path.parent for path in paths} | {folder}:
        _sync(inner)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _digest(path: Path) -> str:
    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()


def _digest_of_text(text: str) -> str:
    return xxhash.xxh3_128(text.encode()).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
