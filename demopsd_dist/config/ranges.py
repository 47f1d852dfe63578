"""Checks of single settings: each number against the range that the schema declares for it.

`setting` declares a number with its default, unit and legal range. `check_values` is the one loop that holds every
value of a config against its range.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from demopsd_dist.util.errors import ConfigError

LARGEST = 2**32 - 1  # largest seed that NumPy takes
ENTRIES = "entries"  # key in the metadata of a dataclass field that may be a list of mappings, checked elsewhere
_RANGE = "range"  # key in the metadata of a dataclass field
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True)
class Range:
    """Legal values of a number. An open bound is not a legal value itself."""

    low: float = -math.inf
    high: float = math.inf
    low_is_open: bool = False
    high_is_open: bool = False
    unit: str = ""

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.low_is_open else value >= self.low
        below = value < self.high if self.high_is_open else value <= self.high
        return above and below

    def __str__(self) -> str:
        """The range in words, as error messages give it."""
        low, high, unit = f"{self.low:.12g}", f"{self.high:.12g}", f" {self.unit}" if self.unit else ""
        if self.high == math.inf:
            return f"{'greater than' if self.low_is_open else 'at least'} {low}{unit}"
        if self.low == -math.inf:
            return f"{'below' if self.high_is_open else 'at most'} {high}{unit}"
        if self.low_is_open and self.high_is_open:
            return f"above {low} and below {high}{unit}"
        excluded = f", but not {low}" if self.low_is_open else f", but not {high}" if self.high_is_open else ""
        return f"between {low} and {high}{unit}{excluded}"


def setting(
    default: Any,
    *,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
    unit: str = "",
) -> Any:
    """Dataclass field of a number, or of a list of numbers, with its default, legal range and unit.

    The range holds for every number of a list. Null is legal where the field's type allows it. Without bounds any
    finite number is legal.

    Example: `learning_rate: float = setting(1e-6, above=0)`.
    """
    low, high = (at_least if above is None else above), (at_most if below is None else below)
    legal = Range(
        low=-math.inf if low is None else low,
        high=math.inf if high is None else high,
        low_is_open=above is not None,
        high_is_open=below is not None,
        unit=unit,
    )
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata={_RANGE: legal})
    return field(default=default, metadata={_RANGE: legal})


def check_values(config: Any) -> None:
    """Check every value of a config by itself.

    Raises:
        ConfigError: a number out of its range, not finite or of more than 32 bits; text that no file can hold; a list
            or mapping inside a list.
    """
    for key, value, legal in values(config):
        _check_plain(key, value)
        if legal is not None and value is not None and value not in legal:
            raise ConfigError(f"{key}={value} must be {legal}.")


def values(node: Any, prefix: str = "") -> Iterator[tuple[str, Any, Range | None]]:
    """Values of a config as (key, value, range); a list or mapping yields each of its elements."""
    for item in fields(node):
        key, value = prefix + item.name, getattr(node, item.name)
        if is_dataclass(value):
            yield from values(value, f"{key}.")
        elif not (item.metadata.get(ENTRIES) and isinstance(value, list)):
            named = value.items() if isinstance(value, dict) else ()
            yield from ((f"{key}.{name}", element, None) for name, element in named)
            for element in value if isinstance(value, list) else [] if isinstance(value, dict) else [value]:
                yield key, element, item.metadata.get(_RANGE)


def _check_plain(key: str, value: Any) -> None:
    """Refuse values that no setting may have."""
    if isinstance(value, (list, dict)):
        raise ConfigError(f"{key} holds {value!r}; it takes plain values.")
    if isinstance(value, int) and abs(value) > LARGEST:
        raise ConfigError(f"{key} is a number of {value.bit_length()} bits; it may have 32.")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}={value} must be finite.")
    if isinstance(value, str) and _UNWRITABLE.search(value):
        raise ConfigError(f"{key}={value!r} has a zero byte or an unpaired surrogate, which no file can hold.")
