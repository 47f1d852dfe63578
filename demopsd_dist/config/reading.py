"""YAML over the defaults, `key=value` words over that; what is not known is refused with the nearest that is."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from demopsd_dist.config.checks import check
from demopsd_dist.config.methods import Method
from demopsd_dist.config.tree import Config
from demopsd_dist.errors import ConfigError


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Defaults, then the YAML file, then `key=value` words; checked.

    A file's `base: other.yaml`, relative to the file, is read before the file itself.

    Raises:
        ConfigError: unknown key (names the nearest), wrong type, value out of its range, impossible combination, a
            word for a method that is not the chosen one.
    """
    tree = _with_file(OmegaConf.structured(Config), Path(path), [])
    for word in overrides:
        if not re.match(r"[A-Za-z_][\w.]*=", word):
            raise ConfigError(f"{word!r} is not of the form key=value, for example learner.zero_stage=3.")
        try:
            tree = _merged(tree, OmegaConf.from_dotlist([word]), word)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{word}: {_first_line(error)}") from None
    config = OmegaConf.to_object(tree)
    assert isinstance(config, Config)
    for word in overrides:
        section = word.partition(".")[0]
        if section in Method.__members__ and section != config.method.value:
            raise ConfigError(
                f"{word} has no effect with method={config.method.value}. Add method={section}, or drop it."
            )
    check(config)
    return config


def _with_file(tree: DictConfig, path: Path, read: list[Path]) -> DictConfig:
    """`tree` with the file's settings over it, and before them those of the file's `base`."""
    if not path.is_file():
        if read:
            raise ConfigError(f"{read[-1]}: base: there is no config file {path}.")
        raise ConfigError(
            f"There is no config file {path}. The shipped ones are in configs/, for example configs/demo.yaml."
        )
    if path.resolve() in read:
        raise ConfigError(f"{path} is its own base, by way of {', '.join(map(str, read))}.")
    try:
        new = OmegaConf.load(path)
        base = new.pop("base", None) if isinstance(new, DictConfig) else None
        if base is not None:
            tree = _with_file(tree, path.parent / str(base), [*read, path.resolve()])
        return _merged(tree, new, str(path))
    except ConfigError:
        raise
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {_first_line(error)}") from None
    except Exception as error:  # YAML errors have no common class that is cheap to import
        raise ConfigError(f"{path} is not readable YAML: {_first_line(error)}") from None


def to_yaml(config: Config) -> str:
    """The whole resolved tree, as a file that `load` reads back to an equal one."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _merged(tree: DictConfig, new: Any, source: str) -> DictConfig:
    if not isinstance(new, DictConfig):
        raise ConfigError(f"{source}: a mapping of settings is needed, not {type(new).__name__}.")
    known = set(_keys(Config))
    for key in _leaves(OmegaConf.to_container(new)):
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.6) or [
                name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]
            ]
            hint = f" Did you mean {near[0]}?" if near else " The keys are in demopsd_dist/config/tree.py."
            raise ConfigError(f"{source}: there is no setting {key}.{hint}")
    merged = OmegaConf.merge(tree, new)
    assert isinstance(merged, DictConfig)
    return merged


def _keys(node: type, prefix: str = "") -> Iterator[str]:
    for item in fields(node):
        kind = item.default_factory if item.default_factory is not None else None
        yield prefix + item.name
        if is_dataclass(kind):
            yield from _keys(kind, f"{prefix}{item.name}.")


def _leaves(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _leaves(value, f"{prefix}{key}.")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
