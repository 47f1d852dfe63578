"""Wheel and source archive of the project, built in a copy of the checkout, and environments to try them in."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[3]
UV = Path(sys.executable).with_name("uv")


def build(folder: Path) -> tuple[Path, Path]:
    """Build the source archive from a copy of the files of the checkout, and the wheel from that archive.

    Returns:
        Wheel and source archive.
    """
    source, out = folder / "source", folder / "out"
    source.mkdir()
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    existing = "\0".join(name for name in names if name and (ROOT / name).is_file())
    packed = subprocess.run(
        ["tar", "--create", "--null", "--files-from=-"],
        cwd=ROOT,
        input=existing.encode(),
        capture_output=True,
        check=True,
    )
    subprocess.run(["tar", "--extract"], cwd=source, input=packed.stdout, check=True)
    command = [
        UV,
        "build",
        "--quiet",
        "--offline",
        "--no-build-isolation",
        "--python",
        sys.executable,
        "-o",
        out,
        source,
    ]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def environment_with(wheel: Path, folder: Path, extras: tuple[str, ...] = ()) -> Path:
    """Virtual environment with the wheel and the packages that it requires, and no others; its folder of commands.

    The required packages, and those that they require, are links to the ones installed here. Nothing is downloaded.

    Args:
        extras: extras of the wheel whose requirements are linked too.
    """
    subprocess.run([UV, "venv", "--quiet", "--offline", "--python", sys.executable, folder], check=True)
    command = [UV, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", folder / "bin" / "python", wheel]
    subprocess.run([str(word) for word in command], check=True)
    target = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    installed = Distribution.at(next(target.glob("demopsd_dist-*.dist-info")))
    for found in closure(installed, extras):
        for name in {Path(file).parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            link, origin = target / name, Path(str(found.locate_file(name)))
            if not link.exists() and origin.exists():
                link.symlink_to(origin)
    return folder / "bin"


def closure(start: Distribution, extras: tuple[str, ...]) -> list[Distribution]:
    """Packages installed here that a distribution requires, directly or by another, without itself."""
    found: dict[str, Distribution] = {}
    waiting = [(requirement, extras or ("",)) for requirement in start.requires or ()]
    while waiting:
        text, of_extras = waiting.pop()
        requirement = Requirement(text)
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in of_extras):
            continue
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # kept out of the environment: requirements/cpu.overrides
            continue
        waiting += [(line, tuple(requirement.extras) or ("",)) for line in found[name].requires or ()]
    return list(found.values())
