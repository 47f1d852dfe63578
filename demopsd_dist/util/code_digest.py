"""A digest of the project's own code, to tell one checkout from another. Standard library alone, so that a node without
the environment can still be asked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("demopsd_dist", "workers", "launch")  # what a run executes


def file_digests(root: Path = ROOT) -> dict[str, str]:
    """A short digest of every `.py` file of these rooms, by its path from `root`; empty where there are none."""
    paths = sorted(path for room in ROOMS for path in (root / room).rglob("*.py"))
    return {
        path.relative_to(root).as_posix(): hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
        for path in paths
    }


def code_digest(files: Mapping[str, str] | None = None) -> str:
    """Of paths and contents together, 16 hexadecimal digits: equal where every file is."""
    files = file_digests() if files is None else files
    lines = "\n".join(f"{path} {digest}" for path, digest in sorted(files.items()))
    return hashlib.blake2b(lines.encode(), digest_size=8).hexdigest()


def differing(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """Paths of the files that are not the same in both, or in one alone."""
    return sorted(path for path in {*here, *there} if here.get(path) != there.get(path))
