"""DeepSpeed's CPU collectives, a small C++ extension: compiled once, whole or not at all, and loaded from a copy."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from demopsd_dist.util.environment_variable import environment_variable

EXTENSIONS = "TORCH_EXTENSIONS_DIR"
COMPILE = (
    "import sys; from demopsd_dist.util.die_with_parent import die_with_parent; die_with_parent()\n"
    "from deepspeed.comm.torch import build_shm_op; sys.exit(build_shm_op() is None)"
)
COMPILE_S = 900.0  # time limit for the compiler
Compile = Callable[[Path], bool]


def extensions_folder() -> Path:
    """Folder of the compiled extension: in the virtual environment that it was built for."""
    return Path(sys.prefix) / "torch_extensions"


def is_built(folder: Path) -> bool:
    """Whether the folder has a compiled extension; a build that was cut off leaves none."""
    return any(folder.glob("*/*.so"))


def is_current(folder: Path) -> bool:
    """True if the folder has a compiled extension that ninja would not build again. After a change of the version of
    torch or ninja it would, and every learner would compile at each start."""
    for build in folder.glob("*/build.ninja"):
        command = ["ninja", "-n", "-C", str(build.parent)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=with_own_tools(), check=False)
        except OSError:  # without ninja nothing can be built again
            break
        if "no work to do" not in done.stdout:
            return False
    return is_built(folder)


def with_own_tools() -> dict[str, str]:
    """Environment in which the ninja of this virtual environment is found before any other: builds by one version are
    not valid for another."""
    own = str(Path(sys.prefix) / "bin")
    return os.environ | {"PATH": f"{own}{os.pathsep}{os.environ.get('PATH', '')}"}


def compile_into(folder: Path) -> bool:
    """Compile the extension into a folder, in a process of its own; False if it cannot be compiled."""
    environment = with_own_tools() | {EXTENSIONS: str(folder), "DS_ACCELERATOR": "cpu"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", COMPILE], env=environment, capture_output=True, timeout=COMPILE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0 and is_built(folder)


def ensure_extensions(folder: Path, say: Callable[[str], None], compile_extension: Compile = compile_into) -> bool:
    """Compile the extension unless a current one is there. Several processes may call this at once: one compiles, under
    a lock, and the others wait. The folder is replaced as a whole, so that a build which is cut off leaves nothing
    behind.

    Returns:
        False if it cannot be compiled or stored; DeepSpeed then runs without it, or compiles it for itself.
    """
    if is_current(folder):
        return True
    try:
        with folder.with_name(f"{folder.name}.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if is_current(folder):
                return True
            say(f"compiles DeepSpeed's CPU extension into {folder}, once for this environment: about a minute")
            with TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.") as unfinished:
                building = Path(unfinished) / "building"
                building.mkdir()
                if not compile_extension(building):
                    return False
                shutil.rmtree(folder, ignore_errors=True)
                building.rename(folder)
    except OSError as error:
        say(f"warning: DeepSpeed's CPU extension cannot be stored in {folder} ({error.strerror})")
        return False
    return True


@contextmanager
def own_extensions(built: Path) -> Iterator[None]:
    """Let this process load extensions from a copy of its own, and put this environment's programs first in PATH, also
    after the block.

    Loading takes a lock file in the folder, even if there is nothing to compile; a process that is killed meanwhile
    leaves it there, and every later one would wait for it until its start times out.
    """
    with TemporaryDirectory(prefix="demopsd-extensions-") as folder:
        if built.is_dir():
            shutil.copytree(built, folder, ignore=shutil.ignore_patterns("lock"), dirs_exist_ok=True)
        os.environ.update(with_own_tools())
        with environment_variable(EXTENSIONS, folder):
            yield
