"""Choice of the number format for `model.precision=auto`, from the model's size and the hardware of the roles.

bfloat16 pays where the hardware computes products in it: GPUs of compute capability 8.0 or more, CPUs with AMX tiles or
the AVX-512 instructions for it. On other CPUs it is emulated. A small model is limited by overheads, not by products,
and keeps float32.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

from demopsd_dist.config import MINISCI, Config, Precision, logp_bounds, teacher_precision
from demopsd_dist.models.whole_model import parameters_in_files
from demopsd_dist.util.errors import ConfigError

SMALL_MODEL_PARAMETERS = 50_000_000
LEAST_CAPABILITY = (8, 0)  # Ampere: the first with bfloat16 matrix units
CPU_FLAGS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16"}
"""Linux' names of what computes products in bfloat16, the fastest first, and the manufacturers' names."""
QUERY = ("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")


@dataclass(frozen=True)
class MatrixUnits:
    """Facts about this machine.

    Attributes:
        cpu: name of what computes products in bfloat16 on its CPU, `AMX` or `AVX512-BF16`; None where nothing does.
        capability: lowest compute capability of its GPUs; None without a GPU.
    """

    cpu: str | None
    capability: tuple[int, int] | None

    @classmethod
    def of_this_machine(cls) -> MatrixUnits:
        """Read the flags of the CPU, and ask the driver of the GPUs."""
        try:
            flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
        except OSError:  # another system than Linux
            flags = []
        try:
            gpus = subprocess.run(QUERY, capture_output=True, text=True, timeout=20, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            gpus = ""
        return cls(next((name for flag, name in CPU_FLAGS.items() if flag in flags), None), lowest_capability(gpus))


def lowest_capability(text: str) -> tuple[int, int] | None:
    """Lowest compute capability in the answer of `nvidia-smi`; None where it lists no GPU.

    Example: `lowest_capability("9.0\\n8.0\\n")` is `(8, 0)`.
    """
    pairs = [line.strip().partition(".") for line in text.splitlines()]
    return min(
        ((int(major), int(minor)) for major, _, minor in pairs if major.isdigit() and minor.isdigit()), default=None
    )


def resolve_precision(config: Config, folder: Path, units: MatrixUnits | None = None) -> tuple[Config, str]:
    """Replace `model.precision=auto` by the precision to compute in, and bounds that are null by those of the
    precision.

    Args:
        folder: the model's folder, with its weights.
        units: hardware to choose for; None is this machine, which also stands for the nodes of a cluster.

    Returns:
        The config, and a line for the log with the precision of student and teacher, and the reasons.

    Raises:
        ConfigError: the choice depends on GPUs, and this machine has none to look at.
    """
    chosen, reason = config.model.precision, "as set"
    if config.model.path == MINISCI and chosen is Precision.float32:
        reason = "the embedded model has it on any hardware"
    if chosen is Precision.auto:
        parameters = parameters_in_files(folder)
        chosen, why = choose_precision(config, parameters, units)
        reason = f"model.precision=auto: {why}"
        config = replace(config, model=replace(config.model, precision=chosen))
    bounds = logp_bounds(config)
    weights = replace(config.weights, max_logp_diff=bounds.largest, typical_logp_diff=bounds.typical)
    config = replace(config, weights=weights)
    teacher = teacher_precision(config)
    same = "the student's, teacher.precision=auto" if config.teacher.precision is Precision.auto else "as set"
    return config, f"precision  student {chosen.value} ({reason})   teacher {teacher.value} ({same})"


def with_chosen_precision(config: Config, parameters: int, units: MatrixUnits | None = None) -> Config:
    """The config with `model.precision=auto` replaced, for a model that is known by its size alone.

    Raises:
        ConfigError: as in `resolve_precision`.
    """
    if config.model.precision is not Precision.auto:
        return config
    chosen, _ = choose_precision(config, parameters, units)
    return replace(config, model=replace(config.model, precision=chosen))


def choose_precision(config: Config, parameters: int, units: MatrixUnits | None = None) -> tuple[Precision, str]:
    """Precision and reason for a config that leaves the choice open.

    Raises:
        ConfigError: as in `resolve_precision`.
    """
    if parameters < SMALL_MODEL_PARAMETERS:
        size = f"{parameters / 1e6:,.2f} million parameters"
        return Precision.float32, f"{size}; bfloat16 is taken from {SMALL_MODEL_PARAMETERS / 1e6:g} million on"
    if config.learner.zero_stage == 0:
        return Precision.float32, "learner.zero_stage=0 adds up gradients in the model's own precision"
    units = units or MatrixUnits.of_this_machine()
    on_gpu = [role.gpus_per_worker > 0 for role in (config.rollout, config.teacher, config.learner)]
    if any(on_gpu) and units.capability is None:
        raise ConfigError(
            "model.precision=auto depends on the GPUs of the roles, and this machine has none to look at. Set "
            "model.precision=bfloat16 (compute capability 8.0 or more), or float32."
        )
    if any(on_gpu) and units.capability is not None and units.capability < LEAST_CAPABILITY:
        return Precision.float32, f"GPUs of compute capability {units.capability[0]}.{units.capability[1]}, below 8.0"
    if not all(on_gpu) and units.cpu is None:
        return Precision.float32, f"the CPU has neither {' nor '.join(CPU_FLAGS.values())}, so bfloat16 is not faster"
    return Precision.bfloat16, "GPUs with bfloat16 matrix units" if any(on_gpu) else f"the CPU has {units.cpu}"
