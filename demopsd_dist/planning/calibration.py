"""Calibration: coefficients fitted to measured runs, from the file that `python -m benchmarks.plan` writes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from demopsd_dist.planning.hardware import Device, DeviceCluster
from demopsd_dist.planning.memory_by_role import memory_footprints
from demopsd_dist.planning.roofline import (
    ASSUMED,
    ASSUMED_MEMORY,
    STAGES,
    UNCALIBRATED,
    Calibration,
    Coefficients,
    Floats,
    Load,
)
from demopsd_dist.planning.step_time import stage_loads
from demopsd_dist.planning.workload import Split, Workload, workload_from_dict
from demopsd_dist.util.errors import ConfigError

MIN_RUNS_TO_FIT = 3  # fewer cannot separate the terms of a stage


@dataclass(frozen=True)
class MeasuredRun:
    """One benchmark run: the workload, the split, seconds of each stage when it runs alone, and GiB by role."""

    name: str
    workload: Workload
    split: Split
    seconds: Mapping[str, float]
    memory_gib: Mapping[str, float] = field(default_factory=dict)


def read_calibration(path: Path) -> tuple[DeviceCluster, Calibration]:
    """Read `{"cluster": {...}, "measured": [...]}` and fit coefficients; other keys are ignored.

    Raises:
        ConfigError: the file is missing or has another form.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        cluster = cluster_from_dict(content["cluster"])
        runs = [measured_run_from_dict(row) for row in content["measured"]]
    except OSError as error:
        raise ConfigError(f"--calibrate {path}: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"--calibrate {path}: not a file of measurements as benchmarks.plan writes it "
            f"({type(error).__name__}: {error}). Write one with python -m benchmarks.plan."
        ) from None
    return cluster, fit_calibration(cluster, runs, source=path.name)


def cluster_from_dict(values: Mapping[str, Any]) -> DeviceCluster:
    """Rebuild the cluster from the dictionary that `dataclasses.asdict` made of it."""
    return DeviceCluster(**{**values, "device": Device(**values["device"])})


def measured_run_from_dict(row: Mapping[str, Any]) -> MeasuredRun:
    """Rebuild the run from the dictionary that `dataclasses.asdict` made of it; other keys are ignored."""
    return MeasuredRun(
        name=row["name"],
        workload=workload_from_dict(row["workload"]),
        split=Split(**row["split"]),
        seconds=row["seconds"],
        memory_gib=row["memory_gib"],
    )


def fit_calibration(cluster: DeviceCluster, runs: Sequence[MeasuredRun], source: str) -> Calibration:
    """Fit the coefficients of each stage and the memory of each role.

    A stage that was never measured, or a role measured fewer than twice, keeps its assumed values.
    """
    stages, memory = dict(ASSUMED), dict(ASSUMED_MEMORY)
    loads = [stage_loads(run.workload, run.split, cluster, UNCALIBRATED)[0] for run in runs]
    for stage in STAGES:
        measured = [
            (load[stage], run.seconds[stage]) for load, run in zip(loads, runs, strict=True) if stage in run.seconds
        ]
        if measured:
            stages[stage] = fit_stage([load for load, _ in measured], [s for _, s in measured], ASSUMED[stage])
    for role in ASSUMED_MEMORY:
        rows = [(*_computed_gib(run, cluster, role), run.memory_gib[role]) for run in runs if role in run.memory_gib]
        if len(rows) > 1:
            memory[role] = fit_memory(rows)
    return Calibration(stages, memory, source)


def _computed_gib(run: MeasuredRun, cluster: DeviceCluster, role: str) -> tuple[float, float]:
    """Persistent and transient GiB of a worker as computed from model and batch sizes, before calibration."""
    footprints = memory_footprints(run.workload, run.split, cluster, {})
    footprint = next(footprint for footprint in footprints if footprint.role == role)
    return sum(footprint.persistent.values()), sum(footprint.transient.values())


def fit_stage(loads: Sequence[Load], seconds: Sequence[float], assumed: Coefficients) -> Coefficients:
    """Fit non-negative coefficients with the least relative errors; with fewer than `MIN_RUNS_TO_FIT` runs, scale
    all assumed coefficients by one factor."""
    measured = np.asarray(seconds, float)
    if len(loads) < MIN_RUNS_TO_FIT:
        before = np.asarray([assumed.seconds(load) for load in loads])
        scale = float(np.exp(np.mean(np.log(measured / before))))
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
    slopes = nonnegative_least_squares(table / measured[:, None], np.ones_like(measured))
    efficiency, attention, weights, link = (1 / max(float(slope), 1e-9) for slope in slopes[:4])
    return Coefficients(efficiency, attention, weights, link, *map(float, slopes[4:]))


def fit_memory(rows: Sequence[tuple[float, float, float]]) -> tuple[float, float]:
    """Fit measured = base_gib + persistent + factor * transient to rows of (persistent, transient, measured) GiB."""
    persistent, transient, measured = np.asarray(rows, float).T
    table = np.stack([np.ones_like(transient), transient], axis=1)
    base, factor = nonnegative_least_squares(table / measured[:, None], (measured - persistent) / measured)
    return float(base), float(factor)


def nonnegative_least_squares(table: Floats, target: Floats) -> Floats:
    """Least squares with no coefficient below zero: the best over all subsets of the (few) columns."""
    columns = table.shape[1]
    best, least = np.zeros(columns), float(target @ target)
    for count in range(1, min(columns, len(target)) + 1):
        for subset in itertools.combinations(range(columns), count):
            solution, *_ = np.linalg.lstsq(table[:, subset], target, rcond=None)
            residual = target - table[:, subset] @ solution
            if (solution >= 0).all() and float(residual @ residual) < least - 1e-12:
                best, least = np.zeros(columns), float(residual @ residual)
                best[list(subset)] = solution
    return best
