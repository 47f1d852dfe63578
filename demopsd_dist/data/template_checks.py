"""Checks of a chat template before the start, on texts of their own: what it renders holds both texts, ends where the
answer begins, and is the same at any time."""

from __future__ import annotations

import datetime
import inspect
from collections.abc import Iterator

from demopsd_dist.data.chat_template import QUESTION, SYSTEM, ChatTemplate, reason
from demopsd_dist.util.errors import ConfigError

ANSWER = "It is Five thirds."
_MOMENTS = (datetime.datetime(2001, 2, 3, 4, 5, 6), datetime.datetime(2031, 11, 28, 17, 48, 59))
_DRAWS = 4


def check_template(template: ChatTemplate, *, has_system: bool) -> None:
    """Check a template with a question and, if `has_system`, a system text.

    Raises:
        ConfigError: it cannot be parsed or rendered; it does not read one of its `kwargs`; it leaves out or changes a
            text; a prompt would not be the same at another time, or does not end where the answer begins.
    """
    _check_kwargs(template)
    turns = template.turns(QUESTION, SYSTEM if has_system else None)
    parts = template.parts(turns)
    if len({template.rendered(turns, parts, now=_MOMENTS[0]) for _ in range(_DRAWS)}) > 1:
        raise template.refusal(
            "its chat template draws random text, so that teacher, student and a resumed run would have other prompts. "
            "Take that out of the template"
        )
    if template.date is None and shows_date(template, has_system=has_system):
        raise template.refusal(
            "its chat template shows the date or the time of day: a run that is resumed or repeated later would "
            f"have other prompts. Set model.template_date={datetime.date.today()}, or another date, for all prompts"
        )
    if not _ends_at_the_answer(template, has_system):
        raise template.refusal(
            "its chat template ignores add_generation_prompt: a prompt ends before the place where the assistant's "
            "answer begins. Let the template end with the start of the assistant's turn "
            "`{% if add_generation_prompt %}`"
        )


def shows_date(template: ChatTemplate, *, has_system: bool) -> bool:
    """True where the rendered text depends on the date or the time of day."""
    turns = template.turns(QUESTION, SYSTEM if has_system else None)
    first, second = (template.rendered(turns, template.parts(turns), now=moment) for moment in _MOMENTS)
    return first != second


def frame(template: ChatTemplate) -> str:
    """Texts of chats of every kind that the template allows, without and with a system text, without and with an
    answer: all its markers of turns are in it."""
    chats: list[str] = []
    for system in (None, SYSTEM):
        try:
            chats.append(template.render(QUESTION, system))
        except ConfigError:
            continue
        chats += _answered_chats(template, has_system=system is not None)
    return "\n".join(chats)


def _answered_chats(template: ChatTemplate, *, has_system: bool) -> Iterator[str]:
    """Chats with an answer, in each form of the answer that the template accepts."""
    turns = template.turns(QUESTION, SYSTEM if has_system else None)
    parts = template.parts(turns)
    for roles in (parts | {"assistant"}, parts) if parts else (parts, parts | {"assistant"}):
        try:
            chat = template.rendered({**turns, "assistant": ANSWER}, roles, generation_prompt=False)
        except Exception:
            continue
        if ANSWER in chat:
            yield chat


def _ends_at_the_answer(template: ChatTemplate, has_system: bool) -> bool:
    """True where the generation prompt changes the text; or where nothing but white space stands between a prompt and
    the answer in a chat that has one, as in templates whose user's turn ends with `[/INST]`. Some of these write the
    system text only where the last message is the user's: they are checked without it, if both prompts end alike."""
    turns = template.turns(QUESTION, SYSTEM if has_system else None)
    prompt = template.rendered(turns, template.parts(turns))
    if prompt != template.rendered(turns, template.parts(turns), generation_prompt=False):
        return True
    chats = _answered_chats(template, has_system=has_system)
    if any(chat.partition(ANSWER)[0].rstrip() == prompt.rstrip() for chat in chats):
        return True
    if "system" not in turns:
        return False
    alone = template.turns(QUESTION, None)
    end = template.rendered(alone, template.parts(alone)).rpartition(QUESTION)[2]
    return end == prompt.rpartition(QUESTION)[2] and _ends_at_the_answer(template, has_system=False)


def _check_kwargs(template: ChatTemplate) -> None:
    """Refuse values that the template never reads."""
    offered = variables(template)
    unused = [name for name in template.kwargs if name not in offered]
    if unused:
        listed = f"It reads {', '.join(sorted(offered))}" if offered else "It reads no such values"
        raise template.refusal(
            f"chat_template_kwargs has {', '.join(unused)}, which its chat template never reads. {listed}; leave out "
            f"{', '.join(unused)}, or set it to null where a config file has it"
        )


def variables(template: ChatTemplate) -> set[str]:
    """Names of the template's variables that `kwargs` may set.

    Raises:
        ConfigError: the template cannot be parsed.
    """
    from jinja2 import meta
    from transformers.utils.chat_template_utils import _compile_jinja_template  # its environment knows all tags

    tokenizer = template.tokenizer
    try:
        source = tokenizer.get_chat_template()
        environment = _compile_jinja_template(source).environment
        names = meta.find_undeclared_variables(environment.parse(source))
    except Exception as error:
        raise template.refusal(
            f"its chat template cannot be read: {reason(error)}. Mend it, or download the model's own again"
        ) from None
    parameters = inspect.signature(tokenizer.apply_chat_template).parameters
    return names - {*parameters, *environment.globals, "messages", *tokenizer.special_tokens_map}
