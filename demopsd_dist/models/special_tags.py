"""Texts of responses in which tags are special tokens, such as `<answer>` in some models' tokenizers.

An engine leaves special tokens out of a response's text. That is right for the tokens that frame a conversation, and
wrong for tags: an answer without its tags is none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from demopsd_dist.data.chat_template import ChatTemplate
from demopsd_dist.data.template_checks import frame
from demopsd_dist.data.thinking import THOUGHT_MARKS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TAG = re.compile(r"</?([\w:-]+)>")


class ResponseTexts:
    """Texts of responses, with the special tokens that are part of the text.

    Left out are the tokenizer's named tokens (begin, end, padding, unknown) and what its chat template frames turns
    with; pairs `<name>`, `</name>` are tags and stay, and so do the marks of a thought and all others.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        special = {token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        named = {token for token in tokenizer.special_tokens_map.values() if isinstance(token, str)}
        framing = _frame_of(tokenizer)
        kept = {token for token in special if _is_tag(token, special) or token in THOUGHT_MARKS}
        control = {token for token in special if token in named or (token in framing and token not in kept)}
        self.left_out = {special[token] for token in control}
        self.tags = set(special.values()) - self.left_out

    def text(self, tokens: Sequence[int], engine_text: Callable[[], str]) -> str:
        """Text of a response, given without the token that ended it: the engine's where no tag is among its tokens."""
        if self.tags.isdisjoint(tokens):
            return engine_text()
        ids = [token for token in tokens if token not in self.left_out]
        text = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


def _is_tag(token: str, special: Iterable[str]) -> bool:
    """True for `<name>` and `</name>` where both are special tokens."""
    match = _TAG.fullmatch(token)
    return match is not None and {f"<{match[1]}>", f"</{match[1]}>"} <= set(special)


def _frame_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """Text that the tokenizer's chat template puts around turns; empty where it has no template."""
    return frame(ChatTemplate(tokenizer)) if tokenizer.chat_template else ""
