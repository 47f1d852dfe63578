"""Precision of each role, the bounds of rounding that belong to it, and checks of what a precision, an optimizer or a
process group that publishes weights needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from demopsd_dist.config.method_settings import MethodName
from demopsd_dist.config.role_settings import LearnerConfig, Offload, Optimizer, Precision
from demopsd_dist.config.schema import Config, Transport
from demopsd_dist.util.errors import ConfigError


def is_installed(package: str) -> bool:
    """Whether a package can be imported."""
    return find_spec(package) is not None


@dataclass(frozen=True)
class LogpBounds:
    """Bounds of the differences between engine and learner in a token's log-probability, nats.

    Attributes:
        largest: bound of the difference at any token.
        typical: bound of the median over the tokens of the canary prompt, or of a step.
    """

    largest: float
    typical: float


BOUNDS = {Precision.float32: LogpBounds(1e-3, 1e-3), Precision.bfloat16: LogpBounds(3.0, 0.2)}
"""Bounds by precision. For bfloat16 they are twice the values that `benchmarks.precision` measures on a model of 135
million parameters: a largest difference of 1.5 nats, and a largest median over a prompt of 0.1."""


def teacher_precision(config: Config) -> Precision:
    """Precision in which the teacher computes: its own setting, or the student's."""
    own = config.teacher.precision
    return config.model.precision if own is Precision.auto else own


def logp_bounds(config: Config) -> LogpBounds:
    """Bounds of the run: those that are set, and those of its precision for the others. Where the largest difference is
    set and the median is not, the median has no bound of its own. While `model.precision=auto` is still to be resolved
    (`demopsd_dist/models/precision.py`), they are the narrow ones of float32.
    """
    weights, measured = config.weights, BOUNDS.get(config.model.precision, BOUNDS[Precision.float32])
    largest, typical = weights.max_logp_diff, weights.typical_logp_diff
    if typical is None:
        typical = measured.typical if largest is None else largest
    return LogpBounds(measured.largest if largest is None else largest, typical)


def check_precision(config: Config) -> None:
    """Check the settings that bfloat16 needs.

    Raises:
        ConfigError: a bound of the mismatch is below rounding, or gradients could not be added up in float32.
    """
    if config.model.precision is not Precision.bfloat16:
        return
    largest = config.weights.max_logp_diff
    if largest is not None and largest < 0.05:
        raise ConfigError(
            f"weights.max_logp_diff={largest:g} is below 0.05 nats, which bfloat16 rounding alone exceeds. Leave it "
            "out (null), which takes the bound of bfloat16, or set model.precision=float32."
        )
    if config.learner.zero_stage == 0:
        raise ConfigError(
            "model.precision=bfloat16 with learner.zero_stage=0: gradients would not be added up in float32. Set "
            "learner.zero_stage to 1, 2 or 3, or model.precision=float32."
        )


def check_optimizer(learner: LearnerConfig) -> None:
    """Check an optimizer that is offloaded.

    Raises:
        ConfigError: its state is in main memory already, is not sharded, or is in 8 bits.
    """
    if learner.offload is Offload.none:
        return
    wanted = f"learner.offload={learner.offload.value}"
    if learner.optimizer is Optimizer.adamw_8bit:
        raise ConfigError(
            f"{wanted} with learner.optimizer=adamw_8bit: bitsandbytes' update is slow on CPU, where an offloaded "
            "optimizer runs. Set learner.offload=none, or learner.optimizer=adamw."
        )
    if not learner.gpus_per_worker:
        raise ConfigError(
            f"{wanted} with learner.gpus_per_worker=0: on CPU the optimizer's state is in main memory already. Set "
            "learner.offload=none."
        )
    if learner.zero_stage == 0:
        raise ConfigError(
            f"{wanted} with learner.zero_stage=0: DeepSpeed offloads the shards of ZeRO. Set learner.zero_stage to 1, "
            "2 or 3."
        )


def check_optimizer_package(config: Config, is_installed: Callable[[str], bool] = is_installed) -> None:
    """Check that the package of the optimizer is installed.

    Raises:
        ConfigError: it is not; names the command that installs it.
    """
    if config.learner.optimizer is Optimizer.adamw_8bit and not is_installed("bitsandbytes"):
        raise ConfigError(
            "learner.optimizer=adamw_8bit needs bitsandbytes, which is not installed. Install it: make bitsandbytes, "
            "or pip install bitsandbytes==0.50.2. Or set learner.optimizer=adamw."
        )


def check_transport(config: Config) -> None:
    """Check that learners and rollout workers can form one process group that publishes weights, or that all roles
    share a GPU.

    Raises:
        ConfigError: `weights.transport=collective`, and they are neither all on CPU nor all with one GPU a process; or
            it is `ipc`, and one of the roles is on CPU or has a GPU of its own.
    """
    shares = {"learner": config.learner.gpus_per_worker, "rollout": config.rollout.gpus_per_worker}
    if config.weights.transport is Transport.collective:
        publishes_on_gpus(shares)
    if config.method is not MethodName.grpo:
        shares["teacher"] = config.teacher.gpus_per_worker
    if config.weights.transport is Transport.ipc and not all(0 < share < 1 for share in shares.values()):
        raise ConfigError(
            f"weights.transport=ipc with {_shares(shares)}: it is for roles that share one GPU. Give each a fraction "
            "of it, or set weights.transport=auto."
        )


def publishes_on_gpus(gpus: Mapping[str, float]) -> bool:
    """True if the process group that publishes weights is on GPUs, False if on CPU.

    Args:
        gpus: `gpus_per_worker` of each role in it.

    Raises:
        ConfigError: some of these roles are on CPU and others not, or a process shares a GPU.
    """
    if set(gpus.values()) not in ({0}, {1}):
        raise ConfigError(
            f"weights.transport=collective with {_shares(gpus)}: these roles form one process group, which needs all "
            "of them on CPU (0), or a GPU for each process (1), as nccl refuses two on one. Set weights.transport=auto."
        )
    return set(gpus.values()) == {1}


def _shares(gpus: Mapping[str, float]) -> str:
    return ", ".join(f"{role}.gpus_per_worker={share:g}" for role, share in gpus.items())
