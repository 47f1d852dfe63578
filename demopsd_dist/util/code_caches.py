"""Private folders of a user, and the caches of compiled code in one.

torch, Triton, vLLM and others load compiled code and pickles from caches. Some of these lie in the temporary folder of
the machine by default, under a name that any user can guess: the user who creates that folder first chooses the code
that others load. Imports the standard library alone, so that it runs before torch is imported.
"""

from __future__ import annotations

import getpass
import os
import re
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from demopsd_dist.util.errors import ConfigError

CODE_CACHES = {
    "TORCHINDUCTOR_CACHE_DIR": "inductor",  # default: /tmp/torchinductor_USER
    "TRITON_CACHE_DIR": "triton",
    "TORCH_EXTENSIONS_DIR": "torch_extensions",
    "PYTORCH_KERNEL_CACHE_PATH": "torch_kernels",
    "VLLM_CACHE_ROOT": "vllm",
    "NUMBA_CACHE_DIR": "numba",
    "HF_MODULES_CACHE": "hf_modules",
    "FLASHINFER_WORKSPACE_BASE": "flashinfer",
    "TVM_FFI_CACHE_DIR": "tvm_ffi",
    "TILELANG_CACHE_DIR": "tilelang",
    "CUTE_DSL_CACHE_DIR": "cute_dsl",  # default: /tmp/USER/cutlass_python_cache
    "DG_JIT_CACHE_DIR": "deep_gemm",
    "OUTLINES_CACHE_DIR": "outlines",
    "CUDA_CACHE_PATH": "cuda",
}
"""Variables that place a cache of code, each with its folder in the private one."""


MACHINE_TMPDIR = "DEMOPSD_MACHINE_TMPDIR"
"""Variable with the machine's temporary folder, where TMPDIR is a process's own folder in the private one."""


def private_folder() -> Path:
    """Folder `demopsd-UID` of the temporary folder, created if it does not exist, which only this user can enter.

    Raises:
        ConfigError: it belongs to another user, others can enter it, it is a link, or others could replace it; or the
            temporary folder does not exist or cannot be written.
    """
    parent = Path(os.environ.get("RAY_TMPDIR") or os.environ.get(MACHINE_TMPDIR) or tempfile.gettempdir())
    folder = parent / f"demopsd-{os.getuid()}"
    create_private(folder, f"RAY_TMPDIR={parent}" if os.environ.get("RAY_TMPDIR") else f"the temporary folder {parent}")
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise ConfigError(
            f"{folder} must be a folder of yours that nobody else can enter. Remove it, or set RAY_TMPDIR."
        )
    _refuse_replaceable(folder, "set RAY_TMPDIR to a folder of yours")
    return folder


def keep_code_caches_private() -> None:
    """Set the variables of `CODE_CACHES` of this process and its children to folders in the private one. A variable
    that the user has set stays, if no other user can write into its folder.

    Raises:
        ConfigError: the private folder cannot be used (`private_folder`), or others can write into a folder that the
            user has set.
    """
    caches = _code_folder()
    for variable, name in CODE_CACHES.items():
        if chosen := os.environ.get(variable):
            _refuse_writable_by_others(variable, Path(chosen).expanduser())
        else:
            os.environ[variable] = str(caches / name)


def keep_compiler_headers(temporary: Path) -> None:
    """Link the place of torch's precompiled headers in a temporary folder to the private one.

    torch's compiler places them in the temporary folder, whatever the variables say. In a folder that ends with the
    process, every engine's start would compile them again, which takes 12 s of a core.

    Raises:
        ConfigError: the private folder cannot be used (`private_folder`).
    """
    headers = _code_folder() / "inductor_headers"
    create_private(headers, str(headers.parent))
    with suppress(FileExistsError):
        (temporary / f"torchinductor_{_torch_user()}").symlink_to(headers, target_is_directory=True)


def _code_folder() -> Path:
    """Folder of the caches in the private one, created if it does not exist."""
    folder = private_folder() / "code"
    create_private(folder, str(folder.parent))
    return folder


def _torch_user() -> str:
    """The user's name as torch's compiler has it in the name of its default folder."""
    try:
        name = getpass.getuser()
    except (KeyError, ModuleNotFoundError, OSError):
        name = f"uid_{os.getuid()}"
    return re.sub(r'[\\/:*?"<>|]', "_", name)


def create_private(folder: Path, what: str) -> None:
    """Create a folder that only this user can enter, unless something of this name is there.

    Args:
        what: the folder above, for the message.

    Raises:
        ConfigError: it cannot be created.
    """
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except FileExistsError:
        pass  # no folder: refused by its mode
    except FileNotFoundError:
        raise ConfigError(f"{what} does not exist. Create it, or set RAY_TMPDIR to a folder of yours.") from None
    except OSError as error:
        raise ConfigError(
            f"{what}: {folder.name} cannot be created there ({error.strerror}). Set RAY_TMPDIR to a folder of yours."
        ) from None


def _refuse_writable_by_others(variable: str, folder: Path) -> None:
    """Refuse a folder that the user has chosen if another user owns it or can write into it.

    Raises:
        ConfigError: as described.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise ConfigError(f"{variable}={folder} cannot be created ({error.strerror}). Unset it.") from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid not in (0, os.getuid()) or status.st_mode & 0o022:
        raise ConfigError(
            f"{variable}={folder} holds code that the run loads, and must be a folder of yours that nobody else can "
            f"write to. Unset it, or: chmod go-w {folder}"
        )
    _refuse_replaceable(folder, f"unset {variable}")


def _refuse_replaceable(folder: Path, other_fix: str) -> None:
    """Refuse a folder if one of its parents is writable for every user and lacks the sticky bit: any user could then
    put another folder in its place.

    Args:
        other_fix: what the user can do instead of setting the bit.

    Raises:
        ConfigError: names the parent and both fixes.
    """
    for parent in folder.resolve().parents:
        mode = parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise ConfigError(
                f"{folder}: any user can replace it, as {parent} is writable for all without the sticky bit. "
                f"Set the bit (chmod +t {parent}), or {other_fix}."
            )
