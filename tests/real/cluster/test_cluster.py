"""Access to the Ray of a run: none without its token, from another machine, or as another user of this one."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import ray

from benchmarks.common.run_processes import command_of
from demopsd_dist.util.code_caches import CODE_CACHES, private_folder
from demopsd_dist.util.errors import ConfigError
from launch._processes import fenced
from workers.cluster.code_check import pickled_by_value
from workers.cluster.jobs import JobClient

ROOT = Path(__file__).parents[3]
JOIN = (
    "import sys; from demopsd_dist.config import load\n"
    "from launch._command_line import exit_code_of; from workers.cluster import session\n"
    "config = load('configs/demo.yaml', ['ray_address=' + sys.argv[1], 'rollout.cpus_per_worker=0.1'])\n"
    "sys.exit(exit_code_of(lambda: session.join(config) or print('joined') or 0))"
)


def address() -> str:
    return ray.get_runtime_context().gcs_address


def of_ray() -> list[psutil.Process]:
    return [
        process for process in psutil.Process().children(recursive=True) if process.status() != psutil.STATUS_ZOMBIE
    ]


def tokens() -> set[str]:
    """Tokens in the environments of the processes that Ray has started."""
    return {token for process in of_ray() if (token := process.environ().get("RAY_AUTH_TOKEN"))}


def joining(home: Path, to: str | None = None, **environment: str) -> subprocess.CompletedProcess:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    return subprocess.run(
        [sys.executable, "-c", JOIN, to or address()],
        cwd=ROOT,
        env=clean | {"HOME": str(home)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_token_of_its_own_is_with_its_processes_alone(ray_here: None, tmp_path: Path) -> None:
    (token,) = tokens()
    assert len(token) == 64
    assert token not in os.environ.values()
    assert not [process for process in of_ray() if token in command_of(process)]
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    files = [path for path in session.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert [path for path in files if token.encode() in path.read_bytes()] == []
    folder = session.parents[1].stat()
    assert (stat.S_IMODE(folder.st_mode), folder.st_uid) == (0o700, os.getuid()), "nobody else can reach its sockets"


def test_its_workers_keep_compiled_code_in_a_private_folder(ray_here: None) -> None:
    """In a worker with variables of its own too, and before the worker imports anything of the run."""

    def caches() -> list[str]:
        assert "torch" not in sys.modules
        return [os.environ[variable] for variable in CODE_CACHES]

    bare = dict.fromkeys(CODE_CACHES, "") | {"OMP_NUM_THREADS": "1"}
    with pickled_by_value(sys.modules[__name__]):
        places = ray.get(ray.remote(caches).options(num_cpus=0, runtime_env={"env_vars": bare}).remote())
    assert {Path(place).parent for place in places} == {private_folder() / "code"}


def test_a_command_that_is_refused_leaves_the_ray_of_its_caller(ray_here: None) -> None:
    before = {process.pid for process in of_ray()}
    with pytest.raises(ConfigError), fenced():
        raise ConfigError("refused")
    assert ray.is_initialized()
    assert before <= {process.pid for process in of_ray()}
    assert ray.get(ray.put(3)) == 3


def test_it_listens_on_this_machine_alone(ray_here: None) -> None:
    listening = [
        connection.laddr.ip
        for process in [psutil.Process(), *of_ray()]
        if "LearnerWorker" not in command_of(process)  # where ranks meet, torch listens everywhere
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) > 5
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}


def test_the_right_token_joins(ray_here: None, tmp_path: Path) -> None:
    (token,) = tokens()
    joined = joining(tmp_path, RAY_AUTH_TOKEN=token)
    assert joined.stdout == "joined\n", joined.stderr
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text(token)
    joined = joining(tmp_path)
    assert joined.stdout == "joined\n", joined.stderr


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "there is no token for it in RAY_AUTH_TOKEN or "),
        ({"RAY_AUTH_TOKEN_PATH": "/nowhere"}, "there is no token for it in RAY_AUTH_TOKEN or /nowhere"),
        ({"RAY_AUTH_TOKEN": "0" * 64}, "the cluster refuses the token. RAY_AUTH_TOKEN, or the file that"),
        ({"RAY_AUTH_MODE": "disabled"}, "the cluster refuses the token. RAY_AUTH_TOKEN, or the file that"),
    ],
    ids=["none", "no file", "another", "without"],
)
def test_without_the_token_nobody_joins(
    ray_here: None, tmp_path: Path, environment: dict[str, str], message: str
) -> None:
    refused = joining(tmp_path, **environment)
    assert refused.returncode == 2, refused.stderr
    *lines_of_ray, last = refused.stderr.splitlines()
    assert message in last
    assert len(lines_of_ray) <= 1
    assert refused.stdout == ""


def test_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    refused = joining(tmp_path, "127.0.0.1:1", RAY_AUTH_TOKEN="0" * 64)
    assert refused.returncode == 2, refused.stderr
    said = "error: ray_address=127.0.0.1:1: no cluster can be joined there ([Errno 111] Connection refused).\n"
    assert refused.stderr == said


def test_a_look_at_the_jobs_of_another_cluster_leaves_the_token_of_this_one(
    ray_here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would end this process at its next request to the cluster if the token were lost."""
    with monkeypatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", "0" * 64)
        with pytest.raises(ConfigError, match="no jobs can be handled there"):
            JobClient("http://127.0.0.1:1")
    assert ray.get(ray.remote(lambda: os.getpid()).options(num_cpus=0).remote()) != os.getpid()


STOPPED_WHILE_RAY_STARTS = """
import os, signal, sys, threading, time
from demopsd_dist.config import load
from launch._command_line import exit_code_of
from launch._processes import fenced
from workers.cluster import session

def send():
    before = signal.getsignal(signal.SIGTERM)
    while signal.getsignal(signal.SIGTERM) is before:  # Ray sets a handler of its own while it starts
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGTERM)

def work():
    with fenced():
        threading.Thread(target=send, daemon=True).start()
        session.join(load('configs/demo.yaml', ['rollout.cpus_per_worker=0.1']))
        time.sleep(5)
    return 0

sys.exit(exit_code_of(work))
"""


def test_a_stop_signal_while_ray_starts_is_an_interrupt() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STOPPED_WHILE_RAY_STARTS],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr.splitlines()[-1:]) == (130, ["interrupted"]), done.stderr[-2000:]
