"""Tags that are special tokens stay in a response's text; the tokens that frame turns do not."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from demopsd_dist.minisci.tokenizer import byte_tokenizer
from demopsd_dist.models.special_tags import ResponseTexts


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def with_special(*tokens: str) -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=True) for token in tokens], special_tokens=True)
    return tokenizer


def test_the_demo_has_no_such_tags() -> None:
    """Its tags are plain tokens, so all of its texts are the engine's."""
    texts = ResponseTexts(byte_tokenizer())
    assert texts.tags == set()
    assert (
        texts.text(ids(byte_tokenizer(), "<answer>4<|user|></answer><|end|>"), lambda: "the engine's") == "the engine's"
    )


@pytest.mark.parametrize("tag", ["verdict", "s"])
def test_tags_stay_and_markers_of_turns_go(tag: str) -> None:
    tokenizer = with_special(f"<{tag}>", f"</{tag}>", "<|channel|>", "<|begin|>")
    tokenizer.bos_token = "<|begin|>"
    texts = ResponseTexts(tokenizer)
    body = ids(tokenizer, f"<|begin|>So <{tag}>4 µm</{tag}>.<|user|><|pad|><|channel|>")
    assert texts.text(body, lambda: "So 4 µm.") == f"So <{tag}>4 µm</{tag}>.<|channel|>"
    assert texts.text(ids(tokenizer, "So 4."), lambda: "the engine's") == "the engine's"


def test_a_tag_that_the_template_writes_itself_stays() -> None:
    tokenizer = with_special("<think>", "</think>")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "{{ '<|' + message['role'] + '|>'",
        "{{ '<|' + message['role'] + '|>' + ('<think></think>' if loop.last else '')",
    )
    texts = ResponseTexts(tokenizer)
    assert texts.text(ids(tokenizer, "<think>Hm.</think>4"), lambda: "Hm.4") == "<think>Hm.</think>4"


def test_named_tokens_go_even_where_they_look_like_tags() -> None:
    tokenizer = with_special("<s>", "</s>", "<answer>", "</answer>")
    tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
    body = ids(tokenizer, "<s><answer>4</answer></s>")
    assert ResponseTexts(tokenizer).text(body, lambda: "4") == "<answer>4</answer>"
