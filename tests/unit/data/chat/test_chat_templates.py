"""Chat templates that people bring: each renders all of the prompt, or is refused in one line with the remedy."""

from __future__ import annotations

import datetime
import re

import pytest

from demopsd_dist.config import load
from demopsd_dist.data.chat_template import ChatSettings, ChatTemplate
from demopsd_dist.data.prompts import PromptBuilder
from demopsd_dist.data.records import Question
from demopsd_dist.data.template_checks import frame, variables
from demopsd_dist.minisci.tokenizer import byte_tokenizer
from demopsd_dist.util.errors import ConfigError

LOOP = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}CONTENT<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PLAIN = LOOP.replace("CONTENT", "{{ m['content'] }}")
PARTS = LOOP.replace(
    "CONTENT", "{% for p in m['content'] %}{% if p['type']=='text' %}{{ p['text'] }}{% endif %}{% endfor %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role']=='system' %}{{ raise_exception('System role not supported') }}{% endif %}" + PLAIN
)
DATED = LOOP.replace(
    "CONTENT", "{% if m['role']=='system' %}{{ strftime_now('%d %b %Y %H:%M ') }}{% endif %}{{ m['content'] }}"
)
LLAMA_DATE = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "Today: {{ date_string }}" + PLAIN
)
THINKING = PLAIN.replace(
    "<|assistant|>{%", "<|assistant|>{% if enable_thinking is false %}<think></think>{% endif %}{%"
)
INST = (
    "{% for m in messages %}{% if m['role']=='user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role']=='system' %}[SYS]{{ m['content'] }}[/SYS]{% else %} {{ m['content'] }}</s>{% endif %}"
    "{% endfor %}"
)
QUESTION = Question("q", "How fast?", "5", "physics", system="Answer in <answer> tags.")


def builder(template: str, **settings: object) -> PromptBuilder:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return PromptBuilder(tokenizer, chat=ChatSettings(**settings))  # type: ignore[arg-type]


def prompt(built: PromptBuilder) -> str:
    """Text of the question's prompt, after all checks."""
    built.check([QUESTION])
    return built.tokenizer.decode(built.student(QUESTION).tokens)


def refusal(built: PromptBuilder, question: Question = QUESTION) -> str:
    with pytest.raises(ConfigError) as caught:
        built.check([question])
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("model.path=")
    return str(caught.value)


def test_content_as_a_list_of_parts_is_served() -> None:
    assert prompt(builder(PARTS)) == prompt(builder(PLAIN))
    only_user = PLAIN.replace(
        "{{ m['content'] }}", "{{ m['content'][0]['text'] if m['role']=='user' else m['content'] }}"
    )
    assert prompt(builder(only_user)) == prompt(builder(PLAIN))


def test_a_template_without_system_role_gets_the_text_in_the_users_turn_if_so_set() -> None:
    message = refusal(builder(NO_SYSTEM))
    assert "refuses the system message: System role not supported. Set model.system_role=fold" in message
    assert prompt(builder(NO_SYSTEM, fold_system=True)) == (
        "<|user|>Answer in <answer> tags.\n\nHow fast?<|end|><|assistant|>"
    )
    built = builder(NO_SYSTEM)
    built.check([Question("q", "How fast?", "5", "physics")])  # no system text, nothing to fold
    teacher = builder(NO_SYSTEM, fold_system=True).privileged(QUESTION, "Because.")
    assert "<|user|>Answer in <answer> tags.\n\nHow fast?" in built.tokenizer.decode(teacher)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (PLAIN.replace("in messages", "in messages if m['role'] != 'system'"), "leaves out or changes the system text"),
        (PLAIN.replace("{{ m['content'] }}", ""), "leaves out or changes the question"),
        (PLAIN.replace("{{ m['content'] }}", "{{ m['content'] | upper }}"), "leaves out or changes the question"),
        (PLAIN.replace("{{ m['content'] }}", "{{ m['content'] | e }}"), "leaves out or changes the question"),
        (PLAIN.replace("{{ m['content'] }}", "{{ m['content'].split() | join(' ') }}"), "leaves out or changes"),
        (PLAIN.replace("{% if add_generation_prompt %}<|assistant|>{% endif %}", ""), "ignores add_generation_prompt"),
        (PLAIN + "{% for t in tools %}{{ t.name }}{% endfor %}", "cannot render a question: 'NoneType' object"),
        (PLAIN + "{% if %}", "cannot be read: Expected an expression"),
        (PLAIN + "{{ [1, 2, 3, 4, 5, 6, 7, 8, 9] | random }}{{ range(999) | random }}", "draws random text"),
    ],
)
def test_a_template_that_loses_something_is_refused(template: str, message: str) -> None:
    assert message in refusal(builder(template))


def test_a_template_that_trims_or_needs_no_generation_prompt_is_served() -> None:
    assert prompt(builder(PLAIN.replace("{{ m['content'] }}", "{{ m['content'] | trim }}"))) == prompt(builder(PLAIN))
    assert prompt(builder(INST)) == "[SYS]Answer in <answer> tags.[/SYS][INST] How fast? [/INST]"


def test_a_system_text_that_stands_at_the_last_question_alone_is_served() -> None:
    """As Mistral 7B v0.3 and Nemo have it: a chat with an answer has lost the text."""
    first = "{% if loop.last and messages[0]['role']=='system' %}{{ messages[0]['content'] }}\n\n{% endif %}"
    late = INST.replace("[INST] ", f"[INST] {first}")
    late = late.replace("[SYS]{{ m['content'] }}[/SYS]", "")
    assert prompt(builder(late)) == "[INST] Answer in <answer> tags.\n\nHow fast? [/INST]"


def test_earlier_turns_as_lists_of_parts_are_served() -> None:
    history = (("user", "1+1?"), ("assistant", "It is two."))
    question = Question("q", "How fast?", "5", "physics", history=history)
    texts = []
    mixed = PLAIN.replace(
        "{{ m['content'] }}", "{{ m['content'][0]['text'] if m['role']!='assistant' else m['content'] | trim }}"
    )
    for template in (PARTS, PLAIN, mixed):
        built = builder(template)
        built.check([question])
        texts.append(built.tokenizer.decode(built.student(question).tokens))
    assert texts[0] == texts[1] == texts[2]
    assert "It is two." in texts[0]
    assert "type" not in texts[0]


def test_a_text_that_the_template_changes_is_refused_at_its_prompt() -> None:
    built = builder(PLAIN.replace("{{ m['content'] }}", "{{ m['content'].replace('/no_think', '') }}"))
    built.check([QUESTION])
    with pytest.raises(ConfigError, match=r"leaves out or changes a text that begins with 'Go /no_think'"):
        built.student(Question("q", "Go /no_think", "5", "physics"))


def test_a_template_that_shows_the_date_needs_a_fixed_one() -> None:
    today = datetime.date.today()
    assert f"Set model.template_date={today}, or another date" in refusal(builder(DATED))
    fixed = builder(DATED, date=datetime.date(2024, 7, 26))
    assert prompt(fixed).startswith("<|system|>26 Jul 2024 00:00 Answer in")
    teacher = fixed.tokenizer.decode(fixed.privileged(QUESTION, "Because."))
    assert teacher.startswith("<|system|>26 Jul 2024 00:00 Answer in")
    assert prompt(builder(LLAMA_DATE, date=datetime.date(2024, 7, 26))).startswith("Today: 26 Jul 2024")
    named = {view: {"date_string": "some day"} for view in ("student", "teacher", "evaluation")}
    assert prompt(builder(LLAMA_DATE, **named)).startswith("Today: some day")
    message = refusal(builder(PLAIN, date=datetime.date(2024, 7, 26)))
    assert "shows no date, so model.template_date=2024-07-26 does nothing" in message


def test_each_view_has_its_own_values() -> None:
    off = {"enable_thinking": False}
    built = builder(THINKING, student=off)
    assert prompt(built).endswith("<|assistant|><think></think>")
    assert built.tokenizer.decode(built.privileged(QUESTION, "Because.")).endswith("<|assistant|>")
    assert built.tokenizer.decode(built.evaluation(QUESTION).tokens).endswith("<|assistant|>")
    evaluated = builder(THINKING, evaluation=off)
    assert evaluated.tokenizer.decode(evaluated.evaluation(QUESTION).tokens).endswith("<think></think>")
    assert evaluated.tokenizer.decode(evaluated.student(QUESTION).tokens).endswith("<|assistant|>")


def test_a_value_that_the_template_never_reads_is_refused() -> None:
    message = refusal(builder(THINKING, teacher={"enable_thinkin": False}))
    assert "has enable_thinkin, which its chat template never reads. It reads enable_thinking" in message
    for name in ("messages", "tools", "add_generation_prompt", "tokenize"):
        assert f"has {name}, which" in refusal(builder(THINKING, student={name: True}))
    assert variables(ChatTemplate(builder(LLAMA_DATE).tokenizer)) == {"date_string"}


def test_the_values_of_the_views_come_from_the_settings() -> None:
    words = [
        "model.chat_template_kwargs={enable_thinking: true, style: short}",
        "privileged.chat_template_kwargs.enable_thinking=false",
        "evaluation.chat_template_kwargs={style: long}",
        "model.system_role=fold",
        "model.template_date=2024-07-26",
    ]
    chat = ChatSettings.from_config(load("configs/demo.yaml", words))
    assert chat.student == {"enable_thinking": True, "style": "short"}
    assert chat.teacher == {"enable_thinking": False, "style": "short"}
    assert chat.evaluation == {"enable_thinking": True, "style": "long"}
    assert (chat.fold_system, chat.date) == (True, datetime.date(2024, 7, 26))


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.template_date=26.7.2024", "model.template_date='26.7.2024' must be a date as YYYY-MM-DD"),
        ("model.chat_template_kwargs={a: [1]}", "model.chat_template_kwargs.a holds [1]; it takes plain values"),
        ("model.chat_template_kwargs={a: {b: 1}}", "there is no setting model.chat_template_kwargs.a.b"),
        ("model.chat_template_kwargs=true", "model.chat_template_kwargs"),
        ("model.chat_template_kwarg={a: 1}", "Did you mean model.chat_template_kwargs?"),
    ],
)
def test_settings_of_the_template_are_checked(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load("configs/demo.yaml", [word])


def test_the_frame_has_all_markers_of_turns() -> None:
    for template in (PLAIN, PARTS, NO_SYSTEM):
        text = frame(ChatTemplate(builder(template).tokenizer))
        assert [marker for marker in ("<|user|>", "<|end|>", "<|assistant|>") if marker not in text] == []
