"""Reader of configs: YAML over the defaults, then `key=value` words. An unknown key is refused with the nearest."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import lru_cache, partial
from io import StringIO
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from demopsd_dist.config.as_written import override_as_yaml, restore_texts
from demopsd_dist.config.cross_checks import check
from demopsd_dist.config.data_settings import MINISCI
from demopsd_dist.config.method_settings import MethodName
from demopsd_dist.config.other_trainers import ALIASES, SECTION_VALUES
from demopsd_dist.config.role_settings import Precision
from demopsd_dist.config.schema import Config
from demopsd_dist.util.errors import ConfigError
from demopsd_dist.util.rooms import ROOMS

SHIPPED = ROOMS / "configs"
_WRONG_CHOICE = re.compile(r"Invalid value '(.*)', expected one of \[(.*)\]")
_WRONG_TYPE = re.compile(r"Value '(.*)' (?:of type '\w+' could not be converted to|is not a valid) (\w+)(?: .*)?")
_NULL = re.compile(r"Incompatible value 'None' for field of type '(\w+)'")
_SECTION = re.compile(r"Merge error: \w+ is not a subclass of .*|Cannot merge incompatible container types")
_KINDS = {
    "Integer": "a whole number",
    "int": "a whole number",
    "Float": "a number",
    "float": "a number",
    "bool": "true or false",
    "Boolean": "true or false",
    "str": "a text",
}
DEPTH = 20  # deepest nesting of brackets and indentation; the schema itself has 3 levels


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read the defaults, then the YAML file, then `key=value` words, and check the result.

    A file's `base: other.yaml`, relative to the file, is read before the file itself. Two shorthands are replaced:
    `method=my_package.MyMethod` by `method=own` with `own.objective`, and `model.precision=auto` of the embedded model
    by `float32`.

    Args:
        path: a YAML file, or the name of a shipped config such as `demo` (`config_path`).

    Raises:
        ConfigError: unknown key (names the nearest), wrong type, value out of its range, impossible combination, a
            word for a method that is not the chosen one.
    """
    tree = _with_file(_defaults(), config_path(path), [])
    given: list[tuple[DictConfig, str]] = []
    for word in overrides:
        if not re.match(r"[A-Za-z_][\w.]*=", word):
            raise ConfigError(f"{word!r} is not of the form key=value, for example learner.zero_stage=3.")
        key, _, value = word.partition("=")
        value = override_as_yaml(key, value, Config, word)
        new = _parsed(value, partial(OmegaConf.from_dotlist, [f"{key}={value}"]), word)
        restore_texts(new, value, Config, word, key)
        given.append((_with_known_keys(new, word), word))
    config = OmegaConf.to_object(_merged(tree, given))
    assert isinstance(config, Config)
    if config.model.path == MINISCI and config.model.precision is Precision.auto:
        config.model.precision = Precision.float32  # the embedded model is small enough for it on any hardware
    for word in overrides:
        section = word.partition(".")[0]
        if section in MethodName.__members__ and section not in method_sections(config):
            raise ConfigError(
                f"{word} has no effect with method={config.method.value}. Add method={section}, or drop it."
            )
    check(config)
    return config


def method_sections(config: Config) -> set[str]:
    """The sections of methods that a run reads: its method's, and those of the terms of a mixed loss."""
    if config.method is not MethodName.mixed:
        return {config.method.value}
    return {config.method.value, MethodName.grpo.value, config.mixed.distillation.value}


@lru_cache(maxsize=1)
def _defaults() -> DictConfig:
    """Tree of the defaults, which is slow to make; merging copies it."""
    tree = OmegaConf.structured(Config)
    assert isinstance(tree, DictConfig)
    return tree


def config_path(name: str | Path) -> Path:
    """File of a config, given as a path or as the name of a shipped one.

    Example: where there is no file `demo`, `config_path("demo")` is `configs/demo.yaml` of this project.
    """
    path = Path(os.path.expanduser(name))
    shipped = SHIPPED / f"{name}.yaml"
    return shipped if str(name) in shipped_configs() and not path.exists() else path


def shipped_configs() -> list[str]:
    """Names of the project's own configs, for example `demo` and `controls/constant_alpha`."""
    files = [*SHIPPED.glob("*.yaml"), *SHIPPED.glob("controls/*.yaml")]
    return sorted(path.relative_to(SHIPPED).with_suffix("").as_posix() for path in files)


def settings_keys() -> list[str]:
    """Keys of all settings, with dots, without the sections that hold them."""
    keys = list(_keys(Config))
    return [key for key in keys if not any(other.startswith(f"{key}.") for other in keys)]


def _with_file(tree: DictConfig, path: Path, read: list[Path]) -> DictConfig:
    """`tree` with the settings of the file's `base` over it, then those of the file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        if read:
            raise ConfigError(f"{read[-1]}: base: there is no config file {path}.") from None
        near = difflib.get_close_matches(path.stem, shipped_configs(), n=1, cutoff=0.7)
        hint = f"Did you mean {near[0]}?" if near else f"The shipped ones are: {', '.join(shipped_configs())}."
        raise ConfigError(f"There is no config file {path}. {hint}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as UTF-8 text: {error}") from None
    if path.resolve() in read:
        raise ConfigError(f"{path} is its own base, by way of {', '.join(map(str, read))}.")
    new = _parsed(text, partial(OmegaConf.load, StringIO(text)), str(path))
    restore_texts(new, text, Config, str(path))
    base = new.pop("base", None) if isinstance(new, DictConfig) else None
    if base is not None and str(base).startswith("~"):
        expanded = os.path.expanduser(str(base))
        raise ConfigError(f"{path}: base: {base} would be a file in a folder named ~. Write {expanded}.")
    if base is not None:
        tree = _with_file(tree, path.parent / str(base), [*read, path.resolve()])
    return _merged(tree, [(_with_known_keys(new, str(path)), str(path))])


def _parsed(text: str, parse: Callable[[], Any], source: str) -> Any:
    """Result of `parse` on `text`, which is YAML. Deep nesting is refused first, since the parser would run out of
    stack and end the process."""
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEPTH:
                raise ConfigError(f"{source} is nested more than {DEPTH} deep at line {event.start_mark.line + 1}.")
        return parse()
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        raise ConfigError(f"{source} is not readable YAML: {_first_line(error)}") from None


def to_yaml(config: Config) -> str:
    """All resolved settings as YAML, which `load` reads back to an equal config."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _merged(tree: DictConfig, given: Sequence[tuple[DictConfig, str]]) -> DictConfig:
    """`tree` with all given settings over it, in order, each with its source for a message."""
    try:
        merged = OmegaConf.merge(tree, *(new for new, _ in given))
    except (OmegaConfBaseException, TypeError, ValueError, OverflowError) as error:
        if len(given) > 1:  # one at a time, to find the wrong one
            for one in given:
                tree = _merged(tree, [one])
        source, key = given[-1][1], getattr(error, "full_key", None)
        place = f"{source}: {key}" if key and not source.startswith(f"{key}=") else source
        raise ConfigError(f"{place}: {_in_plain_words(_first_line(error))}") from None
    assert isinstance(merged, DictConfig)
    return merged


def _nearest_key(key: str, known: Iterable[str]) -> str | None:
    """The known key that the user may have meant: alike as a whole, or in its last part; None if there is none."""

    names = sorted(known)
    if not (near := difflib.get_close_matches(key, names, n=1, cutoff=0.7)):
        alike = [name for name in names if difflib.get_close_matches(_last(key), [_last(name)], cutoff=0.8)]
        near = difflib.get_close_matches(key, alike, n=1, cutoff=0)
    return near[0] if near else None


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _with_known_keys(new: Any, source: str) -> DictConfig:
    """The given settings; unknown keys and references are refused."""
    if not isinstance(new, DictConfig):
        raise ConfigError(f"{source}: a mapping of settings is needed, not {type(new).__name__}.")
    _name_own_method(new)
    known, open_keys = _known_keys(), _known_open_keys()
    given_keys = list(_given_keys(OmegaConf.to_container(new)))
    for key in filter(ALIASES.__contains__, given_keys):
        raise ConfigError(f"{source}: there is no setting {key}. Did you mean {ALIASES[key]}?")
    unknown = [key for key in given_keys if key not in known and key.rpartition(".")[0] not in open_keys]
    if unknown:
        key = next((inner for inner in unknown if inner.startswith(f"{unknown[0]}.")), unknown[0])
        near = _nearest_key(key, known)
        hint = f" Did you mean {near}?" if near else " `demopsd train demo --dry-run --full` shows all."
        raise ConfigError(f"{source}: there is no setting {key}.{hint}")
    values = OmegaConf.to_container(new)
    for section, setting in SECTION_VALUES.items():
        given = values.get(section) if isinstance(values, dict) else None
        if given is not None and not isinstance(given, dict):
            raise ConfigError(f"{source}: {section} is a section of settings. Did you mean {setting}={given}?")
    for value in _texts(OmegaConf.to_container(new)):
        if "${" in value or value == "???":
            raise ConfigError(f"{source}: {value!r} is a reference to something else. Write the value itself.")
    return new


def _name_own_method(new: DictConfig) -> None:
    """Replace `method: my_package.MyMethod` by `method: own` and `own.objective: my_package.MyMethod`."""
    values = OmegaConf.to_container(new)
    method = values.get("method") if isinstance(values, dict) else None
    if isinstance(method, str) and "." in method:
        OmegaConf.update(new, "own.objective", method)
        new["method"] = MethodName.own.value


@lru_cache(maxsize=1)
def _known_keys() -> frozenset[str]:
    return frozenset(_keys(Config))


@lru_cache(maxsize=1)
def _known_open_keys() -> frozenset[str]:
    return frozenset(_open_keys(Config))


def _keys(node: type, prefix: str = "") -> Iterator[str]:
    """Keys of the schema, of sections too, with dots."""
    for item in fields(node):
        yield prefix + item.name
        if is_dataclass(item.default_factory):
            yield from _keys(item.default_factory, f"{prefix}{item.name}.")


def _open_keys(node: type, prefix: str = "") -> Iterator[str]:
    """Keys of the schema that hold a mapping with names of the user's choice."""
    for item in fields(node):
        if is_dataclass(item.default_factory):
            yield from _open_keys(item.default_factory, f"{prefix}{item.name}.")
        elif item.default_factory is dict:
            yield prefix + item.name


def _given_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Keys in a mapping, of nested ones too, with dots."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _given_keys(value, f"{prefix}{key}.")


def _texts(node: Any) -> Iterator[str]:
    """Strings in a nested value."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, (dict, list)):
        for value in node.values() if isinstance(node, dict) else node:
            yield from _texts(value)


def _in_plain_words(message: str) -> str:
    """OmegaConf's message about a value of a wrong type or choice as a sentence with the fix; others stay as is."""
    if found := _WRONG_CHOICE.fullmatch(message):
        value, choices = found[1], found[2].split(", ")
        near = difflib.get_close_matches(value, choices, n=1, cutoff=0.6)
        hint = f" Did you mean {near[0]}?" if near else ""
        return f"{value!r} is none of {', '.join(choices)}.{hint}"
    if found := _WRONG_TYPE.fullmatch(message):
        return f"{found[1]!r} is not {_KINDS.get(found[2], found[2])}."
    if found := _NULL.fullmatch(message):
        return f"null has no meaning here. Give {_KINDS.get(found[1], 'a value')}, or leave it out."
    if _SECTION.fullmatch(message):
        return "this is a section of settings, not one value. Give one of its settings, as section.setting=value."
    return message


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
