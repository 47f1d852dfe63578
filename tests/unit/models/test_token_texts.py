"""Texts of token ids beyond the tokenizer, which a model with more embedding rows can sample."""

from __future__ import annotations

import numpy as np
from transformers import AutoTokenizer

from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.models.token_texts import TokenTexts


def test_an_id_beyond_the_tokenizer_has_a_visible_text() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODEL_DIR)
    assert max(tokenizer.get_vocab().values()) == 266
    texts = TokenTexts(tokenizer)
    known = texts.texts_of_tokens([20, 21])
    ids = np.asarray([20, 270, 21], np.int32)
    assert texts.texts_of_sequence(ids) == texts.texts_of_tokens(ids) == [known[0], "<id 270>", known[1]]
    assert all(known)
