"""Texts of single tokens. A byte-level tokenizer may cut a character in two; neither half has a text of its own.

Many models have more embedding rows than their tokenizer has ids. Such an id can be sampled, and gets a stand-in:
`<id 270>`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from demopsd_dist.data.records import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UNKNOWN = "\ufffd"
_SENTENCEPIECE_SPACE = "\u2581"


class TokenTexts:
    """Texts of tokens, with a cache."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._cache: dict[int, str] = {}

    def text(self, ids: Tokens) -> str:
        """Text of a whole sequence, special tokens included."""
        return self._tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def texts_of_tokens(self, ids: Iterable[int]) -> list[str]:
        """Text of each token by itself; the tokens need not be adjacent."""
        return [self._token_text(int(token)) for token in ids]

    def texts_of_sequence(self, ids: Tokens) -> list[str]:
        """Text of each token of a sequence. Adjacent tokens that hold parts of characters are decoded together:
        their text is at the first of them, the others are empty."""
        texts = self.texts_of_tokens(ids)
        start = 0
        while start < len(texts):
            end = start
            while end < len(texts) and _UNKNOWN in texts[end]:
                end += 1
            if end - start > 1:
                decoded = self.text(ids[start:end])
                texts[start:end] = [decoded, *[""] * (end - start - 1)]
            start = max(end, start + 1)
        return texts

    def _token_text(self, token: int) -> str:
        if token not in self._cache:
            piece = self._tokenizer.convert_ids_to_tokens(token)
            if piece is None:
                return f"<id {token}>"
            text = self._tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            if piece.startswith(_SENTENCEPIECE_SPACE) and not text.startswith(" "):
                text = f" {text}"  # decoding drops the space of a first word
            self._cache[token] = text
        return self._cache[token]
