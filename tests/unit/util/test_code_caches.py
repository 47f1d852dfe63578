"""Caches of compiled code: in a folder that only this user can enter, whatever other users have prepared."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from demopsd_dist.util.code_caches import CODE_CACHES, keep_code_caches_private, private_folder
from demopsd_dist.util.errors import ConfigError

NOBODY = 65534
ROOT = Path(__file__).parents[3]
AS_ROOT = pytest.mark.skipif(os.getuid() != 0, reason="a second user is made with root's rights")


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary folder like /tmp, in which every user may create files; no variable names a cache."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o1777)
    for variable in CODE_CACHES:
        monkeypatch.setenv(variable, "")
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder)


def other_user(*command: str) -> None:
    subprocess.run(command, user=NOBODY, group=NOBODY, extra_groups=[], check=True)


def test_every_cache_lies_in_the_private_folder(shared: Path) -> None:
    keep_code_caches_private()
    folder = private_folder()
    status = folder.stat()
    assert (folder.parent, status.st_mode & 0o777, status.st_uid) == (shared, 0o700, os.getuid())
    for variable in CODE_CACHES:
        assert Path(os.environ[variable]).is_relative_to(folder), variable
    keep_code_caches_private()  # again, as a Ray worker does that inherits the variables


@AS_ROOT
def test_a_folder_that_another_user_made_first_is_refused(shared: Path) -> None:
    other_user("mkdir", "-m", "700", str(shared / f"demopsd-{os.getuid()}"))
    with pytest.raises(ConfigError, match="must be a folder of yours that nobody else can enter"):
        keep_code_caches_private()


@AS_ROOT
def test_a_link_that_another_user_made_first_is_refused(shared: Path, tmp_path: Path) -> None:
    other_user("ln", "-s", str(tmp_path), str(shared / f"demopsd-{os.getuid()}"))
    with pytest.raises(ConfigError, match="must be a folder of yours that nobody else can enter"):
        keep_code_caches_private()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_others_can_enter_is_refused(shared: Path) -> None:
    private_folder().chmod(0o755)
    with pytest.raises(ConfigError, match="must be a folder of yours that nobody else can enter"):
        keep_code_caches_private()


def test_a_folder_that_any_user_can_replace_is_refused(shared: Path) -> None:
    shared.chmod(0o777)
    with pytest.raises(ConfigError, match=r"any user can replace it.*chmod \+t"):
        keep_code_caches_private()


@pytest.mark.parametrize("missing", [True, False], ids=["missing", "a file"])
def test_a_temporary_folder_that_cannot_be_used_is_named(
    shared: Path, monkeypatch: pytest.MonkeyPatch, missing: bool
) -> None:
    if not missing:
        (shared / "here").write_text("")
    monkeypatch.setenv("RAY_TMPDIR", str(shared / "here"))
    fault = "does not exist. Create it" if missing else r"cannot be created there \(Not a directory\)"
    with pytest.raises(ConfigError, match=f"RAY_TMPDIR={shared}/here.* {fault}"):
        keep_code_caches_private()


def test_a_cache_that_the_user_has_set_stays_if_nobody_else_can_write_to_it(
    shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = shared / "mine"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(mine))
    keep_code_caches_private()
    assert os.environ["TRITON_CACHE_DIR"] == str(mine)
    mine.chmod(0o775)
    with pytest.raises(ConfigError, match=f"TRITON_CACHE_DIR={mine} holds code that the run loads"):
        keep_code_caches_private()
    if os.getuid() == 0:
        mine.chmod(0o700)
        os.chown(mine, NOBODY, NOBODY)
        with pytest.raises(ConfigError, match=f"TRITON_CACHE_DIR={mine} holds code that the run loads"):
            keep_code_caches_private()


HOOK = """
import sys
from ray._private.runtime_env.setup_hook import load_and_execute_setup_hook_module
from workers.cluster.session import WORKERS
print(load_and_execute_setup_hook_module(WORKERS["worker_process_setup_hook"]), "torch" in sys.modules)
"""


@pytest.mark.parametrize("missing", [False, True], ids=["private", "no folder"])
def test_a_ray_worker_is_set_up_before_it_imports_torch_or_not_at_all(shared: Path, missing: bool) -> None:
    """Ray's own call of the hook; a worker ends when it returns an error."""
    place = shared / "missing" if missing else shared
    variables = os.environ | {"RAY_TMPDIR": str(place)}
    hook = [sys.executable, "-c", HOOK]
    answer = subprocess.run(hook, cwd=ROOT, env=variables, capture_output=True, text=True, check=True).stdout
    if missing:
        assert f"RAY_TMPDIR={place} does not exist. Create it" in answer
    else:
        assert answer == "None False\n"
        assert list(shared.glob("demopsd-*/code"))


COMPILED = """
import torch
@torch.compile
def doubled(x):
    return x * 2 + x.sin()
doubled(torch.ones(8))
"""
ONE_PROCESS = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}
PRIVATE = "from demopsd_dist.util.code_caches import keep_code_caches_private; keep_code_caches_private()\n"


@pytest.mark.long
@AS_ROOT
@pytest.mark.real
def test_code_that_another_user_planted_in_the_default_place_does_not_run(shared: Path) -> None:
    """The cache of torch's compiler, prepared by another user under the name that torch gives to this user's."""

    def compiling(code: str) -> None:
        clean = {name: value for name, value in os.environ.items() if name not in CODE_CACHES}
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=clean | {"TMPDIR": str(shared), **ONE_PROCESS}, check=True
        )

    compiling(COMPILED)
    (planted,) = shared.glob("torchinductor_*")
    marker = shared / "it ran"
    sources = list(planted.rglob("*.py"))
    assert sources
    for source in sources:
        source.write_text(f"open({str(marker)!r}, 'w').close()\n{source.read_text()}")
    subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(planted)], check=True)
    compiling(PRIVATE + COMPILED)
    assert not marker.exists(), "planted code ran"
    assert list((shared / f"demopsd-{os.getuid()}" / "code" / "inductor").iterdir())
    compiling(COMPILED)
    assert marker.exists(), "the attack must work where the cache is not private"


HEADERS = """
from demopsd_dist.util.temporary_files import remove_own_temporary_folder, use_own_temporary_folder
folder = use_own_temporary_folder()
from pathlib import Path
from torch._inductor.codecache import _HEADER_DIR
Path(_HEADER_DIR).mkdir(parents=True, exist_ok=True)
(Path(_HEADER_DIR) / "found").touch()
print(Path(_HEADER_DIR).resolve())
remove_own_temporary_folder(folder)
print(folder.exists())
"""


def test_precompiled_headers_outlive_the_process(tmp_path: Path) -> None:
    """Every process of the user finds the same folder, though its temporary folder ends with it."""
    private = tmp_path / f"demopsd-{os.getuid()}"
    environment = {name: value for name, value in os.environ.items() if name not in (*CODE_CACHES, "RAY_TMPDIR")}
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", PRIVATE + HEADERS],
            cwd=ROOT,
            env=environment | {"TMPDIR": str(tmp_path)},
            check=True,
            capture_output=True,
            text=True,
        )
        headers, left = done.stdout.split()
        assert left == "False"
        assert Path(headers) == private / "code" / "inductor_headers" / "precompiled_headers"
        assert (Path(headers) / "found").exists()
    assert private.stat().st_mode & 0o077 == 0
