"""Ranges of single settings: every number of the schema has one, and is refused just below and just above it."""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demopsd_dist.config import Config, load
from demopsd_dist.config.ranges import Range, check_values, setting
from demopsd_dist.util.errors import ConfigError

ROOT = Path(__file__).parents[3]


@dataclasses.dataclass(frozen=True)
class Setting:
    """A field of the schema with its type."""

    key: str
    kinds: frozenset[Any]  # the types in its annotation: int, float, list, NoneType, ...
    range: Range | None

    @property
    def is_number(self) -> bool:
        return bool({int, float} & self.kinds)

    def illegal(self) -> Iterator[float]:
        """The numbers nearest to the range outside it."""
        assert self.range is not None
        for bound, is_open, away in (
            (self.range.low, self.range.low_is_open, -math.inf),
            (self.range.high, self.range.high_is_open, math.inf),
        ):
            if math.isfinite(bound):
                yield self._next(bound, away) if not is_open else self._number(bound)

    def legal(self) -> Iterator[float]:
        """The outermost numbers inside the range."""
        assert self.range is not None
        for bound, is_open, inside in (
            (self.range.low, self.range.low_is_open, math.inf),
            (self.range.high, self.range.high_is_open, -math.inf),
        ):
            if math.isfinite(bound):
                yield self._next(bound, inside) if is_open else self._number(bound)

    def _next(self, bound: float, towards: float) -> float:
        if float in self.kinds:
            return math.nextafter(bound, towards)
        return int(bound) + (1 if towards > 0 else -1)

    def _number(self, bound: float) -> float:
        return float(bound) if float in self.kinds else int(bound)

    def put(self, config: Config, value: float) -> None:
        *sections, name = self.key.split(".")
        node: Any = config
        for section in sections:
            node = getattr(node, section)
        setattr(node, name, [value] if list in self.kinds else value)


def types_in(annotation: Any) -> Iterator[Any]:
    yield typing.get_origin(annotation) or annotation
    for inner in typing.get_args(annotation):
        yield from types_in(inner)


def settings(section: type, prefix: str = "") -> Iterator[Setting]:
    """Fields of the schema, from a walk of its dataclasses."""
    hints = typing.get_type_hints(section)
    for item in dataclasses.fields(section):
        if dataclasses.is_dataclass(hints[item.name]):
            yield from settings(hints[item.name], f"{prefix}{item.name}.")
        else:
            yield Setting(prefix + item.name, frozenset(types_in(hints[item.name])), item.metadata.get("range"))


NUMBERS = [one for one in settings(Config) if one.is_number]


def test_every_numeric_setting_has_a_range() -> None:
    assert len(NUMBERS) > 80
    assert {"sinks.prometheus_port", "opsd.top_k", "alarm.reward", "profile.steps"} <= {one.key for one in NUMBERS}
    assert [one.key for one in NUMBERS if one.range is None] == []
    unbounded = [one.key for one in NUMBERS if one.range == Range()]
    assert unbounded == ["alarm.reward"], "rewards alone may be any number"


@pytest.mark.parametrize("one", NUMBERS, ids=lambda one: one.key)
def test_a_number_is_refused_just_outside_its_range_and_taken_just_inside(one: Setting) -> None:
    for value in one.illegal():
        config = Config()
        one.put(config, value)
        with pytest.raises(
            ConfigError, match=rf"^{re.escape(one.key)}(={re.escape(str(value))} must be| is a number of)"
        ):
            check_values(config)
    for value in one.legal():
        config = Config()
        one.put(config, value)
        check_values(config)


def test_the_defaults_are_in_their_ranges() -> None:
    check_values(Config())


@pytest.mark.parametrize("port", [-1, 65536, 99999])
def test_a_port_that_does_not_exist_is_refused(port: int) -> None:
    message = rf"sinks\.prometheus_port={port} must be between 0 and 65535\."
    with pytest.raises(ConfigError, match=message):
        load(ROOT / "configs" / "demo.yaml", [f"sinks.prometheus_port={port}"])


@pytest.mark.parametrize(
    ("field", "words"),
    [
        (setting(1, above=0), "greater than 0"),
        (setting(1, at_least=2, unit="steps"), "at least 2 steps"),
        (setting(1, at_least=0, at_most=65535), "between 0 and 65535"),
        (setting(1, above=0, below=1), "above 0 and below 1"),
        (setting(1, above=0, at_most=1, unit="nats"), "between 0 and 1 nats, but not 0"),
        (setting(1, at_least=0, below=1), "between 0 and 1, but not 1"),
        (setting(1, at_most=2**32 - 1), "at most 4294967295"),
        (setting(1, below=0.01), "below 0.01"),
    ],
)
def test_a_range_in_words(field: Any, words: str) -> None:
    assert str(field.metadata["range"]) == words
