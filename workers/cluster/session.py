"""Ray cluster of a run: its own on this machine, or one that it joins. Both require a token (docs/security.md)."""

from __future__ import annotations

import os
import secrets
import signal
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from demopsd_dist.config import Config
from demopsd_dist.util.code_caches import keep_code_caches_private
from demopsd_dist.util.environment_variable import environment_variable
from demopsd_dist.util.errors import ConfigError, WorkerError
from workers.cluster.leftovers import ray_folder
from workers.cluster.placement import Bundle, check_nodes
from workers.cluster.ray_watch import own_processes

MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
DISABLED = "disabled"
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
CONNECT_S = 10.0
START_TRIES = 3
LATE_START = "timed out during startup"
WORKERS = {
    "worker_process_setup_hook": "demopsd_dist.util.worker_setup.set_up_worker"
}  # runtime environment of every Ray worker of a run
CALL_RECORDS = {"task_events_max_num_task_in_gcs": 10_000}
"""Settings of Ray: its server keeps a record of each of the last so many calls, 3.3 KiB each, and of 100,000 without
this."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
_OTHER_NODES = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"  # without it Ray listens only on loopback


def join(config: Config, wanted: list[Bundle] | None = None) -> None:
    """Start Ray on this machine, or join the cluster that `ray_address` names. `wanted` as for `check_nodes`.

    Raises:
        ConfigError: the cluster to join does not answer, refuses the token, or has fewer CPUs or GPUs, or other labels,
            than the roles need; or there is no token for it; or the private folder cannot be used (`private_folder`).
        WorkerError: Ray did not start on this machine.
        KeyboardInterrupt: SIGTERM arrived in the meantime.
    """
    keep_code_caches_private()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15 otherwise: on a busy machine a start took minutes
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # a prestarted worker would lack WORKERS
    import ray

    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if config.ray_address is None:
            _start()
        else:
            _connect(config.ray_address)
    except SystemExit as error:
        if error.code != signal.SIGTERM:
            raise
        raise KeyboardInterrupt from None  # of the handler that Ray sets while it starts
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own handler exits without cleaning up
    if config.ray_address is not None:
        check_nodes(config, ray.nodes(), wanted)


def leave() -> None:
    """End the run's own Ray, or leave the cluster that it joined."""
    import ray

    started = [child for _, process in own_processes() for child in _descendants(process.pid)]
    ray.shutdown()
    _kill(started)  # agents of the raylet, which was killed without time to end them


def _kill(processes: Iterable[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _descendants(pid: int) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).children(recursive=True)
    return []


def _start() -> None:
    """Start Ray. Its own limit of 30 s for that is fixed, and short on a busy machine: it is tried again.

    Raises:
        WorkerError: it did not start in any of `START_TRIES`.
    """
    import ray

    for _ in range(START_TRIES):
        before = _descendants(os.getpid())
        try:
            _start_once()
            break
        except Exception as error:
            if LATE_START not in str(error):
                raise
            ray.shutdown()
            _kill(set(_descendants(os.getpid())) - set(before))
    else:
        load = os.getloadavg()[0]
        raise WorkerError(
            f"Ray did not start within its 30 s, {START_TRIES} times; {load:.0f} processes want this machine's "
            f"{len(os.sched_getaffinity(0))} CPUs. Start the run again when the machine is less busy."
        )
    for _, process in own_processes():
        vars(process)["terminate"] = process.kill  # Ray's shutdown sends SIGTERM, which they block


def _start_once() -> None:
    """Start Ray with a new token that no file holds: only the processes that Ray starts now have it."""
    import ray

    with environment_variable(TOKEN, secrets.token_hex(32)), _listening_to_other_nodes(False), _signals_blocked():
        _authenticate()
        ray.init(
            address="local",
            num_cpus=len(os.sched_getaffinity(0)),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            runtime_env=WORKERS,
            # Ray lets every user write into its folder, so that is placed in a private one.
            _temp_dir=str(ray_folder()),
            _system_config=CALL_RECORDS,
        )


def _connect(address: str) -> None:
    import ray
    from ray._private.services import canonicalize_bootstrap_address_or_die
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.exceptions import AuthenticationError, RayError

    what = f"ray_address={address}"
    if os.environ.get(MODE) != DISABLED:
        _refuse_without_token(what)
    try:
        resolved = canonicalize_bootstrap_address_or_die(address) if address == "auto" else address
        host, _, port = resolved.rpartition("/")[2].rpartition(":")
        # Ray itself would try for minutes where nothing answers, and for many seconds with a wrong token.
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
        with _listening_to_other_nodes(host not in LOOPBACK):
            _authenticate()
            if not resolved.startswith("ray://"):
                GcsClient(address=resolved)
            ray.init(address=resolved, log_to_driver=False, logging_level="ERROR", runtime_env=WORKERS)
    except AuthenticationError:
        raise ConfigError(
            f"{what}: the cluster refuses the token. {TOKEN}, or the file that {TOKEN_PATH} names, or "
            "~/.ray/auth_token must hold the one that its nodes were started with."
        ) from None
    except (RayError, OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{what}: no cluster can be joined there ({error}).") from None


def authenticate(what: str) -> None:
    """Set up authentication for requests to a cluster that is not joined: by token, unless the environment says
    otherwise.

    Args:
        what: the setting or option that names the cluster, with its value, for the message.

    Raises:
        ConfigError: there is no token.
    """
    if os.environ.get(MODE) != DISABLED:
        _refuse_without_token(what)
    _authenticate()


def _refuse_without_token(what: str) -> None:
    if os.environ.get(TOKEN):
        return
    path = Path(os.environ.get(TOKEN_PATH) or Path.home() / ".ray" / "auth_token")
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        token = ""
    if not token:
        raise ConfigError(
            f"{what}: there is no token for it in {TOKEN} or {path}. Copy the one that its nodes were started "
            f"with to that file; for a cluster without tokens set {MODE}={DISABLED}."
        )


def _authenticate() -> None:
    """Set Ray to token authentication, unless the environment says otherwise. Ray reads mode and token once, so it is
    made to read them again; not in a process that has joined a cluster, whose token it needs."""
    import ray

    if ray.is_initialized():
        return
    from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]
    from ray._raylet import Config as RayConfig  # type: ignore[attr-defined]

    os.environ.setdefault(MODE, "token")
    RayConfig.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Context in which processes are started that block the signals by which a run is asked to stop.

    These often reach every process of the run: `timeout` and a closed terminal signal the process group, SLURM every
    process of the job. Ray's processes and actors must outlive the signal until the driver has saved the run and ends
    them. Ray blocks SIGINT in them itself.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _listening_to_other_nodes(wanted: bool) -> Iterator[None]:
    """Context in which Ray's services start on all interfaces, or on loopback alone. This process has read the variable
    already, when it imported Ray."""
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = wanted
    with environment_variable(_OTHER_NODES, str(int(wanted))):
        yield
