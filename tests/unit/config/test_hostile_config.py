"""Arbitrary config files and words: either a checked config, or one line with the error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demopsd_dist.config import Config, load, to_yaml
from demopsd_dist.config.reading import DEPTH, _keys
from demopsd_dist.util.errors import MAX_MESSAGE_CHARS, ConfigError

KEYS = sorted(set(_keys(Config)))
NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 2**31, 2**32, 2**63, -(2**64), 10**400, "1e400", 1e-320, float("inf"), float("nan")]),
    st.integers(),
    st.floats(),
)
TEXTS = st.one_of(
    st.text(),
    st.sampled_from(
        ["", "null", "???", "${seed}", "${", "\\${x}", "*a", "&a", "!!python/name:os.system", "a\nb", "\0"]
    ),
    st.sampled_from(
        ["\ud800", "é" * 3000, "[", "{", "- 1", "minisci", "split", "demopsd", "a.b", "..", "0x" + "f" * 5000]
    ),
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | TEXTS, inner, max_size=3),
    max_leaves=6,
)


def checked(path: Path, *words: str) -> None:
    """Load the config and read it back to an equal one, or see it refused in one printable line."""
    try:
        config = load(path, words)
    except ConfigError as error:
        message = str(error)
    else:
        path.write_text(to_yaml(config), encoding="utf-8")
        assert load(path) == config
        return
    assert message.isprintable()
    assert 0 < len(message) <= MAX_MESSAGE_CHARS


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile") / "config.yaml"


@given(key=st.sampled_from(KEYS) | st.from_regex(r"[A-Za-z_][\w.]{0,9}", fullmatch=True) | TEXTS, value=VALUES)
def test_any_word(path: Path, key: str, value: Any) -> None:
    path.write_text("")
    checked(path, f"{key}={value if isinstance(value, str) else json.dumps(value)}")


@given(settings=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4))
def test_any_value_at_any_key(path: Path, settings: dict[str, Any]) -> None:
    """Arbitrary values at known keys, nested by their dots."""
    tree: dict[str, Any] = {}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        node = tree.setdefault(section, {}) if name else tree
        if isinstance(node, dict):
            node[name or section] = value
    path.write_text(json.dumps(tree))  # JSON is YAML
    checked(path)


@given(content=st.binary(max_size=200) | st.text(alphabet="ab:- \n\t[]{}&*!?|>'\"#%@,~<", max_size=80).map(str.encode))
def test_any_file(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    checked(path)


@pytest.mark.parametrize("deep", ["[" * 100_000, "[" * 30_000 + "]" * 30_000, "{a: " * 9_000 + "1" + "}" * 9_000])
def test_deep_nesting_does_not_end_the_process(path: Path, deep: str) -> None:
    path.write_text(f"steps: {deep}")
    with pytest.raises(ConfigError, match=f"is nested more than {DEPTH} deep at line 1"):
        load(path)
    path.write_text("")
    with pytest.raises(ConfigError, match=f"is nested more than {DEPTH} deep at line 1"):
        load(path, [f"steps={deep}"])


@pytest.mark.parametrize("name", ["\0", "x" * 300, ".", "\ud800", "config.yaml/more"])
def test_a_path_that_cannot_be_read(path: Path, name: str) -> None:
    path.write_text("")
    with pytest.raises(ConfigError) as caught:
        load(path.parent / name)
    assert str(caught.value).isprintable()
