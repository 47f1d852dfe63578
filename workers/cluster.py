"""The Ray cluster of a run: one of our own on this machine, or one to join."""

from __future__ import annotations

import os
import signal

from demopsd_dist.config import Config
from workers.placement import Bundle, check_fits


def join(config: Config, wanted: list[Bundle] | None = None) -> None:
    """Start Ray on this machine, or join the cluster that `ray_address` names. `wanted` as for `check_fits`.

    Raises:
        ConfigError: the cluster joined has fewer CPUs or GPUs than the roles need.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # 15 otherwise: on a busy machine a start took minutes
    import ray

    on_sigterm = signal.getsignal(signal.SIGTERM)
    if config.ray_address is None:
        ray.init(
            address="local",
            num_cpus=len(os.sched_getaffinity(0)),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    else:
        ray.init(address=config.ray_address, log_to_driver=False, logging_level="ERROR")
    signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own, which exits without cleaning up
    if config.ray_address is not None:
        offered = ray.cluster_resources()
        check_fits(config, cpus=offered.get("CPU", 0.0), gpus=offered.get("GPU", 0.0), wanted=wanted)


def leave() -> None:
    """End our Ray, or leave the cluster joined."""
    import ray

    ray.shutdown()
