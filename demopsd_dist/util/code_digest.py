"""Digest of the project's own code, to tell one checkout from another.

Imports only the standard library, so that it also runs on a node without the environment.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("demopsd_dist", "workers", "launch")  # the code that a run executes


def file_digests(root: Path = ROOT) -> dict[str, str]:
    """A short digest of every `.py` file of `PACKAGES`, by its path from `root`; empty if there are no such files."""
    paths = sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))
    return {
        path.relative_to(root).as_posix(): hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
        for path in paths
    }


def code_digest(files: Mapping[str, str] | None = None) -> str:
    """One digest of all paths and contents, 16 hexadecimal digits: equal if and only if every file is equal.

    Args:
        files: digests by path as `file_digests` gives them; by default those of this checkout.
    """
    files = file_digests() if files is None else files
    lines = "\n".join(f"{path} {digest}" for path, digest in sorted(files.items()))
    return hashlib.blake2b(lines.encode(), digest_size=8).hexdigest()


def differing_files(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """Paths of the files that differ or that only one side has."""
    return sorted(path for path in {*here, *there} if here.get(path) != there.get(path))
