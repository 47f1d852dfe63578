"""Questions of reasoning-gym's procedural tasks: `gym:chain_sum?size=200&seed=3&level=2,leg_counting`.

The generators are a package of their own (`make gym`), imported when such a source is read. A question holds the task
with all its settings, so that the task's own `score_answer` finds the question again (`data/rewards/gym_scoring.py`).
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import random
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

from demopsd_dist.data.records import Question
from demopsd_dist.data.sources.items import ParsedQuestion, RefusedRecord
from demopsd_dist.util.errors import ConfigError, DataError, one_line

GYM = "gym"
SIZE = {"train": 1_000, "test": 100, "ood": 100}
"""Number of questions of each task where its settings name none."""
LARGEST_SIZE = 1_000_000
_BETWEEN_TASKS = re.compile(r",(?=[a-z][a-z0-9_]*(?:[?,]|$))")
_TASK = re.compile(r"([a-z][a-z0-9_]*)(?:\?([ -~]+))?")


@dataclass(frozen=True)
class GymTask:
    """A task with its settings.

    Attributes:
        written: the task as the settings of the run name it.
        seed: seed of the generator, which gives question i of seed s as the first of seed s + i.
        level: step of the task's curriculum, from 0; None for the defaults of its generator.
        settings: settings of the generator.
    """

    written: str
    name: str
    seed: int
    size: int
    level: int | None
    settings: dict[str, Any]

    def key(self) -> str:
        """The task as JSON, by which `dataset` makes it again."""
        return json.dumps([self.name, self.seed, self.size, self.level, self.settings])


def gym_questions(source: str, split: str) -> Iterator[ParsedQuestion | RefusedRecord]:
    """Questions of all tasks of a source; one that repeats an earlier one of its task is refused.

    Raises:
        ConfigError: reasoning-gym is not installed.
        DataError: there is no such task or setting, or the generator fails.
    """
    where = f"data.{split}={source}"
    for task in gym_tasks(source, split):
        try:
            generated = dataset(task.key())
        except Exception as error:
            raise DataError(_failure(where, task, "with these settings", error)) from None
        seen: set[str] = set()
        for index in range(task.size):
            try:
                entry = generated[index]
            except Exception as error:
                raise DataError(_failure(where, task, f"at question {index + 1}", error)) from None
            yield _parsed(task, index, entry, type(generated).__module__.split(".")[1], where, seen)


def gym_tasks(source: str, split: str) -> list[GymTask]:
    """Tasks that a source names.

    Raises:
        ConfigError: reasoning-gym is not installed.
        DataError: a task or a setting is unknown or has no valid value.
    """
    where = f"data.{split}={source}"
    known = _generators()
    tasks = [_task(text, split, where, known) for text in _BETWEEN_TASKS.split(source.partition(":")[2])]
    written = [task.written for task in tasks]
    for text in written:
        if written.count(text) > 1:
            raise DataError(f"{where}: {text} is there twice. Name it once, with a larger size.")
    return tasks


@lru_cache(maxsize=64)
def dataset(key: str) -> Any:
    """The generator of a task, from `GymTask.key`; its questions by their index, and `score_answer`."""
    name, seed, size, level, settings = json.loads(key)
    dataset_class, config_class = _generators()[name]
    if level is None:
        config = config_class(seed=seed, size=size, **settings)
    else:
        curriculum = _curriculum(name)
        curriculum.set_global_level(level)
        config = replace(curriculum.generate_configuration({"seed": seed, "size": size}), **settings)
    if hasattr(config, "validate"):
        config.validate()
    return dataset_class(config=config)


def _generators() -> dict[str, tuple[Any, Any]]:
    """Class and settings of each generator by its name."""
    if importlib.util.find_spec("reasoning_gym") is None:
        raise ConfigError(
            "data sets of gym: need reasoning-gym, which is not installed. Install it: make gym, or pip install "
            "reasoning-gym==0.1.25"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its dependencies
        from reasoning_gym import factory
    return factory.DATASETS


def _curriculum(name: str) -> Any:
    from reasoning_gym import factory

    return factory.create_curriculum(name) if factory.has_curriculum(name) else None


def _task(text: str, split: str, where: str, known: dict[str, tuple[Any, Any]]) -> GymTask:
    match = _TASK.fullmatch(text)
    if match is None:
        raise DataError(f"{where}: {text!r} is no task. Write name or name?setting=value&setting=value.")
    name, query = match.groups()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else f" It has {', '.join(sorted(known))}."
        raise DataError(f"{where}: reasoning-gym has no task {name}.{hint}")
    settings: dict[str, Any] = {}
    for part in query.split("&") if query else []:
        key, equals, value = part.partition("=")
        if not equals or key in settings:
            raise DataError(f"{where}: {part!r} of {name} must be one setting=value, and each once.")
        settings[key] = _value(value)
    seed = _whole(settings.pop("seed", 0), "seed", 0, 2**63 - 1, where, name)
    size = _whole(settings.pop("size", SIZE[split]), "size", 1, LARGEST_SIZE, where, name)
    level = settings.pop("level", None)
    if level is not None:
        curriculum = _curriculum(name)
        if curriculum is None:
            raise DataError(f"{where}: {name} has no levels. Drop level, and name the settings of its generator.")
        highest = max((len(attribute.levels) for attribute in curriculum.attributes.values()), default=1) - 1
        level = _whole(level, "level", 0, highest, where, name)
    names = [item.name for item in fields(known[name][1]) if item.name not in ("seed", "size")]
    for key in settings:
        if key not in names:
            near = difflib.get_close_matches(key, [*names, "level", "seed", "size"], n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise DataError(f"{where}: {name} has no setting {key}; it has {', '.join(names)}.{hint}")
    # The seed of a split is its own: the same words in data.train and data.test give different questions.
    return GymTask(text, name, random.Random(f"gym/{split}/{seed}").getrandbits(31), size, level, settings)


def _value(text: str) -> Any:
    """A number, a truth value or a list where the text is one in JSON, else the text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _whole(value: Any, setting: str, lowest: int, highest: int, where: str, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        raise DataError(f"{where}: {setting}={value} of {name} must be a whole number between {lowest} and {highest}.")
    return value


def _parsed(
    task: GymTask, index: int, entry: dict[str, Any], category: str, where: str, seen: set[str]
) -> ParsedQuestion | RefusedRecord:
    if not isinstance(entry["answer"], str) or not entry["answer"].strip():
        return RefusedRecord(f"{task.name}: its generator gives no expected answer")
    text = " ".join(entry["question"].split())
    if text in seen:
        return RefusedRecord(f"{task.name}: repeats an earlier question")
    seen.add(text)
    question = Question(
        id=f"{GYM}/{task.written}/{index + 1}",
        text=entry["question"],
        answer=entry["answer"],
        field=task.name,
        task=json.dumps([task.key(), index]),
    )
    level = None if task.level is None else str(task.level)
    return ParsedQuestion(question, level=level, type=category, where=f"{where}, question {index + 1} of {task.name}")


def _failure(where: str, task: GymTask, when: str, error: BaseException) -> str:
    reason = one_line(f"{type(error).__name__}: {error}".rstrip(": "))
    return (
        f"{where}: reasoning-gym's {task.name} fails {when}, {reason}. Change the settings of {task.written}, or take "
        "another task."
    )
