"""Checkpoints of a run: whole or not there, and known to be whole.

A checkpoint is written aside, synced, and renamed: a folder `step-000012` is complete. Its `manifest.json` has size and
digest of every file in it, so that damage done later is noticed before anything is loaded. Nothing in it can run code:
tensors are safetensors, all else is JSON.
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
    """A folder that holds `state.json`, `manifest.json`, and what learners and teacher put there."""

    path: Path

    @property
    def step(self) -> int:
        found = _NAME.fullmatch(self.path.name)
        assert found is not None
        return int(found[1])

    def state(self) -> dict[str, Any]:
        return json.loads((self.path / STATE).read_text(encoding="utf-8"))

    def digest(self) -> str:
        """Of everything in it, as its manifest has it."""
        return json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))["digest"]

    def damage(self) -> str | None:
        """What is wrong with it; None where every file is as it was written."""
        try:
            manifest = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
            files: dict[str, dict[str, Any]] = manifest["files"]
            if manifest["format"] != FORMAT:
                return f"its format is {manifest['format']}, this version reads {FORMAT}"
            if manifest["digest"] != _digest_of_text(json.dumps(files, sort_keys=True)):
                return f"{MANIFEST} is not as it was written"
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{MANIFEST} cannot be read ({type(error).__name__}: {error})"
        there = {str(path.relative_to(self.path)) for path in _files(self.path)} - {MANIFEST}
        if missing := sorted(files.keys() - there):
            return f"{len(missing)} of {len(files)} files are missing, first {missing[0]}"
        for name, written in files.items():
            path = self.path / name
            try:
                if path.stat().st_size != written["size"]:
                    return f"{name} has {path.stat().st_size:,} bytes, {written['size']:,} were written"
                if _digest(path) != written["digest"]:
                    return f"{name} is not as it was written (digest)"
            except OSError as error:
                return f"{name} cannot be read ({error})"
        return None


class Checkpoints:
    """The newest `keep` of a run; older ones are removed when a new one is whole."""

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder, self._keep = folder, keep

    def all(self) -> list[Checkpoint]:
        """Newest first."""
        if not self._folder.is_dir():
            return []
        found = [Checkpoint(path) for path in self._folder.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, key=lambda checkpoint: -checkpoint.step)

    def at(self, step: int) -> Checkpoint | None:
        """That of after this step."""
        return next((checkpoint for checkpoint in self.all() if checkpoint.step == step), None)

    def newest_good(self, tell: Callable[[str], None], before: int | None = None) -> Checkpoint | None:
        """The newest that is whole, of a step before that one if given; `tell` hears of each that is not whole."""
        for checkpoint in self.all():
            if before is not None and checkpoint.step >= before:
                continue
            damage = checkpoint.damage()
            if damage is None:
                return checkpoint
            tell(f"warning: {checkpoint.path} is damaged and left aside: {damage}")
        return None

    @asynccontextmanager
    async def writing(self, step: int, state: dict[str, Any]) -> AsyncIterator[Path]:
        """A folder to write into; when the block ends well it is a checkpoint, else it is gone.

        Raises:
            RunFolderError: it cannot be written. Earlier checkpoints are as they were.
        """
        path = self._folder / f"step-{step:06d}"
        aside = self._folder / f".{path.name}"
        try:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            yield aside
            (aside / STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
            _seal(aside)
            if path.exists():  # of a life that is undone, or damaged
                path.rename(aside.with_suffix(".old"))
            aside.rename(path)
            _sync(self._folder)
        except OSError as error:
            raise RunFolderError(
                f"checkpoint {path} could not be written: {error}. Earlier checkpoints are intact; make room or mend "
                "the disk, then resume."
            ) from None
        finally:
            for left in (aside, aside.with_suffix(".old")):
                shutil.rmtree(left, ignore_errors=True)
        for old in self.all()[self._keep :]:
            shutil.rmtree(old.path, ignore_errors=True)

    def undo_after(self, step: int) -> None:
        """Checkpoints of later steps belong to a life that is over: they are put aside under another name."""
        for checkpoint in self.all():
            if checkpoint.step > step:
                aside = checkpoint.path.with_name(f"undone-{checkpoint.path.name}")
                shutil.rmtree(aside, ignore_errors=True)
                checkpoint.path.rename(aside)


def checkpoint_at(path: Path) -> Checkpoint:
    """The checkpoint in this folder.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    if not _NAME.fullmatch(path.name) or not path.is_dir():
        raise CheckpointError(f"{path} is no checkpoint: give a run folder, or a folder checkpoints/step-... in one.")
    checkpoint = Checkpoint(path)
    if (damage := checkpoint.damage()) is not None:
        raise CheckpointError(f"{path} is damaged: {damage}. Resume from another; those of a run are beside it.")
    return checkpoint


def _seal(folder: Path) -> None:
    """Write the manifest, and have everything on disk."""
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
