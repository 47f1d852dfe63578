"""Changes between two sweeps that are beyond the noise."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

from benchmarks.common.intervals import RatioInterval, independent_ratio
from benchmarks.throughput.sweep import STAGES
from benchmarks.throughput.throughput_page import Row, format_ratio, format_value, markdown_table, values
from demopsd_dist.util.errors import InputError

SMALLEST_CHANGE = 0.01  # smaller changes are not reported, however certain


@dataclass(frozen=True)
class SweepChange:
    """A figure of a point, new over old. `less_is_better` for seconds and GiB."""

    point: str
    figure: str
    old: float
    new: float
    ratio: RatioInterval
    less_is_better: bool

    @property
    def beyond_noise(self) -> bool:
        """True if the interval of the ratio leaves out 1, and the change is not too small to report."""
        return self.ratio.leaves_out_one and abs(self.ratio.value - 1) >= SMALLEST_CHANGE


def read_sweep(path: Path) -> Row:
    """Read the result of a sweep.

    Raises:
        InputError: it is not a result of this benchmark.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        assert all(row["rounds"] is not None and row["settings"] for row in result["points"])
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise InputError(
            f"{path} is no throughput-*.json as benchmarks.throughput writes it ({type(error).__name__}: {error})."
        ) from None
    return result


def _figures(row: Row) -> Iterator[tuple[str, tuple[str, ...], bool]]:
    """Title, keys and whether less is better, of each figure that is compared."""
    yield "samples/s", ("samples_per_s",), False
    yield "s a step", ("step_s",), True
    yield from ((f"{stage}, s a step", ("stage_s", stage), True) for stage in STAGES)
    for kind, unit in (("memory_gib", "GiB"), ("gpu_memory_gib", "GPU GiB")):
        yield from ((f"{role}, {unit}", (kind, role), True) for role in row["rounds"][0][kind])


def changes(old: Row, new: Row) -> list[SweepChange]:
    """Change of each figure of the points that both sweeps have, in the order of the new sweep."""
    before = {tuple(row["settings"].items()): row for row in old["points"] if row["rounds"]}
    compared = []
    for row in new["points"]:
        old_row = before.get(tuple(row["settings"].items()))
        if old_row is None or not row["rounds"]:
            continue
        for title, keys, less_is_better in _figures(row):
            now, was = ([value for value in values(side, *keys) if value > 0] for side in (row, old_row))
            if now and was:
                ratio = independent_ratio(now, was)
                compared.append(SweepChange(row["label"], title, fmean(was), fmean(now), ratio, less_is_better))
    return compared


def comparison(old: Row, new: Row) -> list[str]:
    """Lines of the comparison: figures that changed beyond the noise, other differences between the runs, and the
    smallest change that would have been detected."""
    every_change = changes(old, new)
    lines = [f"{old['commit']} -> {new['commit']}", ""]
    lines += [f"differs: {name}: {was} -> {now}" for name, was, now in _differences(old, new)]
    lines += _unmatched(old, new)
    if not every_change:
        return [*lines, "The two sweeps have no point in common: nothing to compare."]
    beyond_noise = [change for change in every_change if change.beyond_noise]
    if beyond_noise:
        lines += [
            "",
            *markdown_table(
                ["point", "figure", "old", "new", "new / old", ""], [_change_cells(c) for c in beyond_noise]
            ),
        ]
    lines += [
        f"{len(beyond_noise)} of {len(every_change)} figures changed beyond the noise (95 % interval of the ratio "
        f"leaves out 1, and {SMALLEST_CHANGE:.0%} or more). Of figures that did not change "
        "one in twenty would, by chance."
    ]
    noise = [
        (c.ratio.high / c.ratio.low) ** 0.5 - 1 for c in every_change if c.figure == "samples/s" and c.ratio.low > 0
    ]
    if noise:
        lines.append(f"A change of samples/s by about {median(noise):.0%} would have been seen.")
    else:
        lines.append("A side with a single round has no known noise: no change can be found.")
    lines.append("The intervals cover the noise of each sweep, not changes of the machine between the two.")
    return lines


def _change_cells(change: SweepChange) -> list[str]:
    better = (change.ratio.value < 1) == change.less_is_better
    cells = [
        change.point,
        change.figure,
        format_value(change.old),
        format_value(change.new),
        format_ratio(change.ratio),
    ]
    return [*cells, "better" if better else "worse"]


def _differences(old: Row, new: Row) -> Iterator[tuple[str, Any, Any]]:
    def flat(sweep: Row) -> Mapping[str, Any]:
        names = ("config", "overrides", "device", "warm_up", "steps", "seed")
        return {name: sweep[name] for name in names} | sweep["machine"] | sweep["versions"]

    was, now = flat(old), flat(new)
    for name in dict.fromkeys([*was, *now]):
        if was.get(name) != now.get(name):
            yield name, was.get(name), now.get(name)
    highest = [
        max((load for row in side["points"] for load in values(row, "load")), default=0.0) for side in (old, new)
    ]
    if max(highest) > 2 * min(highest) + 1:
        yield "load average, highest", f"{highest[0]:.1f}", f"{highest[1]:.1f}"


def _unmatched(old: Row, new: Row) -> list[str]:
    def labels(sweep: Row) -> dict[tuple[Any, ...], str]:
        return {tuple(row["settings"].items()): row["label"] for row in sweep["points"]}

    was, now = labels(old), labels(new)
    gone = [f"only in the old: {label}" for key, label in was.items() if key not in now]
    return gone + [f"only in the new: {label}" for key, label in now.items() if key not in was]
