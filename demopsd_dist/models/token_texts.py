"""What a token looks like. A byte-level tokenizer may cut a character in two: then neither half has a text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from demopsd_dist.data.records import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UNKNOWN = "\ufffd"
_SENTENCEPIECE_SPACE = "\u2581"


class TokenTexts:
    """Texts of tokens, each looked up once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def text(self, ids: Tokens) -> str:
        """Of a whole sequence, special tokens included."""
        return self._tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def texts_of_tokens(self, ids: Iterable[int]) -> list[str]:
        """Of tokens that do not follow each other."""
        return [self._one(int(token)) for token in ids]

    def texts_of_sequence(self, ids: Tokens) -> list[str]:
        """Of tokens that do: a character of several stands at its first, and the others are empty."""
        texts = self.texts_of_tokens(ids)
        start = 0
        while start < len(texts):
            end = start
            while end < len(texts) and _UNKNOWN in texts[end]:
                end += 1
            if end - start > 1:
                whole = self.text(ids[start:end])
                texts[start:end] = [whole, *[""] * (end - start - 1)]
            start = max(end, start + 1)
        return texts

    def _one(self, token: int) -> str:
        if token not in self._known:
            text = self._tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            piece = self._tokenizer.convert_ids_to_tokens(token)
            if piece.startswith(_SENTENCEPIECE_SPACE) and not text.startswith(" "):
                text = f" {text}"  # decoding drops the space of a first word
            self._known[token] = text
        return self._known[token]
