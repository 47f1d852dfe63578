"""Chats as prompts: lists of messages with `role` and `content`, as verl and TRL have them, or with `from` and `value`,
as ShareGPT has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from demopsd_dist.data.sources.items import SourceRecord
from demopsd_dist.util.errors import DataError

_SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}


@dataclass(frozen=True)
class Conversation:
    """A chat in parts.

    Attributes:
        history: (role, text) of the turns between the system message and the last message of the user.
        text: the last message of the user.
        reply: the assistant's message after it, if any.
    """

    system: str | None
    history: tuple[tuple[str, str], ...]
    text: str
    reply: str | None


def conversation(record: SourceRecord, name: str, messages: list[Any]) -> Conversation:
    """Parts of the chat in the field `name`.

    Raises:
        DataError: a message is not text by `system`, `user` or `assistant`, or the turns are not in order.
    """
    turns = [_turn(record, f"{name}[{index}]", message) for index, message in enumerate(messages)]
    all_roles = ", ".join(role for role, _ in turns) or "none"
    system = turns.pop(0)[1] if turns and turns[0][0] == "system" else None
    reply = turns.pop()[1] if turns and turns[-1][0] == "assistant" else None
    expected = ["user" if index % 2 == 0 else "assistant" for index in range(len(turns))]
    roles = [role for role, _ in turns]
    if not turns or roles != expected or roles[-1] != "user":
        raise DataError(
            f"{record.where}: {name!r} has messages by {all_roles}; after a system message user and assistant must "
            "alternate, and the user must begin. Mend or remove the record."
        )
    return Conversation(system, tuple(turns[:-1]), turns[-1][1], reply)


def _turn(record: SourceRecord, name: str, message: Any) -> tuple[str, str]:
    """Role and text of a message."""
    if isinstance(message, dict) and "role" not in message and isinstance(message.get("from"), str):
        message = {"role": _SHAREGPT_ROLES.get(message["from"], message["from"]), "content": message.get("value")}
    role = message.get("role") if isinstance(message, dict) else None
    if role not in ("system", "user", "assistant"):
        raise DataError(
            f"{record.where}: {name!r} must be a message with a role (system, user or assistant) and a content, not "
            f"{str(message)[:100]!r}. Mend or remove the record."
        )
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    entry = SourceRecord({f"{name}.content": content}, record.where, record.source, record.number)
    return role, entry.required_text(f"{name}.content")
