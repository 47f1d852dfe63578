"""Coefficients fitted to what was measured. The file to calibrate from holds the fleet and a list of `MeasuredRun`."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from demopsd_dist.planning.default_efficiencies import ASSUMED, ASSUMED_MEMORY, STAGES, UNCALIBRATED, Calibration
from demopsd_dist.planning.hardware import Device, DeviceCluster
from demopsd_dist.planning.memory_by_role import footprints
from demopsd_dist.planning.roofline import Coefficients, Floats, Load
from demopsd_dist.planning.step_time import loads_of
from demopsd_dist.planning.workload import Split, Workload, job_from
from demopsd_dist.util.errors import ConfigError

FEWEST_CASES = 3  # below that nothing tells the parts of a stage apart


@dataclass(frozen=True)
class MeasuredRun:
    """One case that was run: the work, who did it, seconds by stage, each measured by itself, and GiB by role."""

    name: str
    job: Workload
    split: Split
    seconds: Mapping[str, float]
    memory_gib: Mapping[str, float] = field(default_factory=dict)


def read(path: Path) -> tuple[DeviceCluster, Calibration]:
    """`{"fleet": {...}, "measured": [...]}`; other keys are no concern of this.

    Raises:
        ConfigError: no such file, or not of that form.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        fleet = DeviceCluster(**{**content["fleet"], "device": Device(**content["fleet"]["device"])})
        measured = [measured_from(row) for row in content["measured"]]
    except OSError as error:
        raise ConfigError(f"--calibrate {path}: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--calibrate {path}: these are no measurements as benchmarks.plan writes them "
            f"({type(error).__name__}: {error})."
        ) from None
    return fleet, fitted(fleet, measured, source=path.name)


def measured_from(row: Mapping[str, Any]) -> MeasuredRun:
    """From what `asdict` made of it."""
    known = {key: row[key] for key in ("name", "seconds", "memory_gib")}
    return MeasuredRun(job=job_from(row["job"]), split=Split(**row["split"]), **known)


def fitted(fleet: DeviceCluster, cases: Sequence[MeasuredRun], source: str) -> Calibration:
    """Coefficients of each stage and memory of each role; what no case tells stays assumed."""
    stages, memory = dict(ASSUMED), dict(ASSUMED_MEMORY)
    loads = [loads_of(case.job, case.split, fleet, UNCALIBRATED)[0] for case in cases]
    for stage in STAGES:
        told = [
            (load[stage], case.seconds[stage]) for load, case in zip(loads, cases, strict=True) if stage in case.seconds
        ]
        if told:
            stages[stage] = fit_stage([load for load, _ in told], [s for _, s in told], ASSUMED[stage])
    for role in ASSUMED_MEMORY:
        counted = [(*_counted(case, fleet, role), case.memory_gib[role]) for case in cases if role in case.memory_gib]
        if len(counted) > 1:
            memory[role] = fit_memory(counted)
    return Calibration(stages, memory, source)


def _counted(case: MeasuredRun, fleet: DeviceCluster, role: str) -> tuple[float, float]:
    one = next(one for one in footprints(case.job, case.split, fleet, {}) if one.role == role)
    return sum(one.held.values()), sum(one.passing.values())


def fit_stage(loads: Sequence[Load], seconds: Sequence[float], assumed: Coefficients) -> Coefficients:
    """Coefficients that are not negative and leave the smallest relative errors; of very few cases, those assumed,
    all scaled alike."""
    wanted = np.asarray(seconds, float)
    if len(loads) < FEWEST_CASES:
        before = np.asarray([assumed.seconds(load) for load in loads])
        scale = float(np.exp(np.mean(np.log(wanted / before))))
        return Coefficients(
            assumed.efficiency / scale,
            assumed.attention / scale,
            assumed.weights / scale,
            assumed.link / scale,
            assumed.call_s * scale,
            assumed.layer_s * scale,
            assumed.item_s * scale,
        )
    table = np.asarray([load.features for load in loads], float)
    found = nonnegative(table / wanted[:, None], np.ones_like(wanted))
    efficiency, attention, weights, link = (1 / max(float(slope), 1e-9) for slope in found[:4])
    return Coefficients(efficiency, attention, weights, link, *map(float, found[4:]))


def fit_memory(counted: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """base_gib and the factor of what passes, from (held, passing, measured) GiB."""
    held, passing, wanted = np.asarray(counted, float).T
    table = np.stack([np.ones_like(passing), passing], axis=1)
    base, factor = nonnegative(table / wanted[:, None], (wanted - held) / wanted)
    return float(base), float(factor)


def nonnegative(table: Floats, wanted: Floats) -> Floats:
    """Least squares with no coefficient below zero: the best over all subsets of the columns, few as they are."""
    columns = table.shape[1]
    best, least = np.zeros(columns), float(wanted @ wanted)
    for count in range(1, min(columns, len(wanted)) + 1):
        for chosen in itertools.combinations(range(columns), count):
            some, *_ = np.linalg.lstsq(table[:, chosen], wanted, rcond=None)
            left = wanted - table[:, chosen] @ some
            if (some >= 0).all() and float(left @ left) < least - 1e-12:
                best, least = np.zeros(columns), float(left @ left)
                best[list(chosen)] = some
    return best
