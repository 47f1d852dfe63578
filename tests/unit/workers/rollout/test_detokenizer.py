"""A response's text is what vLLM makes of its tokens after the prompt's, and keeps tags that are special tokens."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from demopsd_dist.minisci.tokenizer import byte_tokenizer
from workers.rollout.detokenizer import Detokenizer


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_framing_tokens_go_and_a_character_that_was_cut_does_not_appear() -> None:
    tokenizer = byte_tokenizer()
    text = Detokenizer(tokenizer).text
    assert text(ids(tokenizer, "How long?"), ids(tokenizer, "So 4 µm<|user|>")) == "So 4 µm"
    assert text(ids(tokenizer, "How long?"), ids(tokenizer, "So 4 µ")[:-1]) == "So 4 "
    assert text(ids(tokenizer, "How long?"), []) == ""


def test_a_space_after_the_prompt_stays() -> None:
    """A tokenizer of words that drops the space before the first of a text, as that of Llama 2 does."""
    vocabulary = {"▁So": 0, "▁it": 1, "▁is": 2, "<unk>": 3}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>")
    assert tokenizer.decode([1, 2]) == "it is"
    assert Detokenizer(tokenizer).text([0], [1, 2]) == " it is"


def test_tags_that_are_special_tokens_stay() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([AddedToken(tag, special=True) for tag in ("<box>", "</box>")], special_tokens=True)
    body = ids(tokenizer, "So <box>4</box>")
    assert Detokenizer(tokenizer).text(ids(tokenizer, "?"), body) == "So <box>4</box>"
