"""Chat templates: rendering of a chat with the settings of a run.

A template is a program of the model's author: it may want each text as a list of parts, refuse the system role, leave a
text out or change it. No text is lost in silence: one that is not in the rendered chat is refused. `template_checks.py`
checks a template before the start.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from demopsd_dist.config import Config, SystemRole
from demopsd_dist.util.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

QUESTION = "Convert 6 km/h to {m/s},\n  <b>'exactly'</b> & \"briefly\":\n\nis it $\\frac{5}{3}$ or 100% of it?"
SYSTEM = "You are a careful Checker of <units>.\nPut {it} in \"quotes\" & 'these'."
"""Texts for the checks, with all that a template might escape, fold or strip."""
_PART = "'type': 'text'"  # of a list of parts that a template writes as it is
_SHOWN_CHARS = 60

Roles = frozenset[str]
Turns = Mapping[str, str]  # texts by role, in order


@dataclass(frozen=True)
class ChatSettings:
    """Settings of a run for the chat template of its model.

    Attributes:
        student, teacher, evaluation: values for variables of the template, by view.
        fold_system: put the system text at the start of the user's turn.
        date: date that the template shows as today's.
    """

    student: Mapping[str, object] = field(default_factory=dict)
    teacher: Mapping[str, object] = field(default_factory=dict)
    evaluation: Mapping[str, object] = field(default_factory=dict)
    fold_system: bool = False
    date: datetime.date | None = None

    @classmethod
    def from_config(cls, config: Config) -> ChatSettings:
        """Settings of a run; the values of teacher and evaluation go over the model's, and None leaves a value out."""
        model = config.model

        def values(own: Mapping[str, Any]) -> dict[str, object]:
            merged = {**model.chat_template_kwargs, **own}
            return {name: value for name, value in merged.items() if value is not None}

        return cls(
            student=values({}),
            teacher=values(config.privileged.chat_template_kwargs),
            evaluation=values(config.evaluation.chat_template_kwargs),
            fold_system=model.system_role is SystemRole.fold,
            date=None if model.template_date is None else datetime.date.fromisoformat(model.template_date),
        )


@dataclass(frozen=True)
class ChatTemplate:
    """A tokenizer's chat template with the values of its variables, in one view.

    Args:
        tokenizer: has a chat template.
        kwargs: values for variables of the template.
        fold_system: put the system text at the start of the user's turn.
        date: date that the template shows as today's, at midnight; None for a template that shows none.
    """

    tokenizer: PreTrainedTokenizerBase
    kwargs: Mapping[str, object] = field(default_factory=dict)
    fold_system: bool = False
    date: datetime.date | None = None

    def render(self, text: str, system: str | None, history: Sequence[tuple[str, str]] = ()) -> str:
        """Text of a chat up to the place of its answer: the system message, if any, and `text` as the user's.

        Args:
            history: (role, text) of earlier turns of the chat, the user's first.

        Raises:
            ConfigError: the template refuses the chat, leaves a text out or changes it (outer white space apart).
        """
        turns = self.turns(text, system)
        parts = self.parts(turns)
        if history and system is not None and self.fold_system:  # into the first of the user's messages
            turns, history = {"user": text}, [("user", f"{system}\n\n{history[0][1]}"), *history[1:]]
        texts = (text, system or "", *(said for _, said in history))
        problem = ""
        for roles in [parts, parts | {"assistant"}] if history and parts else [parts]:
            try:
                chat = self.rendered(turns, roles, history=history)
            except Exception as error:
                problem = f"its chat template cannot render a question: {reason(error)}"
                continue
            lost = next((one for one in texts if one.strip() not in chat), None)
            if lost is None and _PART not in chat:
                return chat
            lost = texts[0] if lost is None else lost  # a list was written as it is, with the text in it
            problem = (
                f"its chat template leaves out or changes a text that begins with {lost.strip()[:_SHOWN_CHARS]!r}. "
                "Take out what the template reads as a command, or mend the template"
            )
        raise self.refusal(problem)

    def turns(self, text: str, system: str | None) -> Turns:
        """Texts by role."""
        if system is None:
            return {"user": text}
        return {"user": f"{system}\n\n{text}"} if self.fold_system else {"system": system, "user": text}

    def parts(self, turns: Turns) -> Roles:
        """Roles whose content the template wants as a list of parts, in chats with these roles.

        Raises:
            ConfigError: the template renders no chat that holds all texts.
        """
        return self._parts_with_system if "system" in turns else self._parts_alone

    @cached_property
    def _parts_alone(self) -> Roles:
        return self._wanted_parts({"user": QUESTION}, [frozenset(), frozenset({"user"})])

    @cached_property
    def _parts_with_system(self) -> Roles:
        candidates: list[Roles] = [frozenset(), frozenset({"system", "user"}), frozenset({"user"})]
        return self._wanted_parts({"system": SYSTEM, "user": QUESTION}, candidates)

    def _wanted_parts(self, turns: Turns, candidates: list[Roles]) -> Roles:
        """The first of the candidates with which the template renders all texts."""
        problems: list[tuple[str, list[str]]] = []
        for roles in candidates:
            try:
                chat = self.rendered(turns, roles)
            except Exception as error:
                problems.append((reason(error), []))
                continue
            names = {"user": "the question", "system": "the system text"}
            missing = [name for role, name in names.items() if turns.get(role, "").strip() not in chat]
            if not missing:
                return roles
            problems.append(("", missing))
        raise self._loss(turns, *problems[0])

    def _loss(self, turns: Turns, error: str, missing: list[str]) -> ConfigError:
        """The refusal of a template that renders no chat with all texts: it raises `error`, or these are missing."""
        doing = f"leaves out or changes {' and '.join(missing)}" if missing else f"cannot render a question: {error}"
        if "system" in turns and "the question" not in missing and self._renders_alone():
            doing = doing if missing else f"refuses the system message: {error}"
            return self.refusal(
                f"its chat template {doing}. Set model.system_role=fold, which puts the system text at the start of "
                "the user's turn"
            )
        return self.refusal(
            f"its chat template {doing}. It is given a user's message, a system message before it where the question "
            "has one, and no tools. Use a model whose template serves that, or mend this one"
        )

    def _renders_alone(self) -> bool:
        """True where the template renders a question without a system message."""
        try:
            return self._parts_alone is not None
        except ConfigError:
            return False

    def rendered(
        self,
        turns: Turns,
        parts: Roles,
        *,
        now: datetime.datetime | None = None,
        generation_prompt: bool = True,
        history: Sequence[tuple[str, str]] = (),
    ) -> str:
        """Render a chat; unlike `render`, without looking whether all texts are in it.

        Args:
            parts: roles whose content is given as a list of parts.
            now: date and time that the template shows; None for `date`.
            generation_prompt: end with the start of the assistant's turn.
            history: earlier turns, as `render` has them.
        """
        if now is None and self.date is not None:
            now = datetime.datetime.combine(self.date, datetime.time())
        clock: dict[str, Any] = {} if now is None else {"strftime_now": now.strftime}
        *first, last = turns.items()
        messages = [
            {"role": role, "content": [{"type": "text", "text": text}] if role in parts else text}
            for role, text in (*first, *history, last)
        ]
        chat = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=generation_prompt, **{**self.kwargs, **clock}
        )
        assert isinstance(chat, str)
        return chat

    def refusal(self, problem: str) -> ConfigError:
        """An error that names the model's folder."""
        return ConfigError(f"model.path={self.tokenizer.name_or_path}: {problem}.")


def reason(error: Exception) -> str:
    """An exception's message on one line; its kind where it has none."""
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
