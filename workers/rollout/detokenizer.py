"""Texts of finished responses, by vLLM's detokenizer and with the tags that it leaves out."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from demopsd_dist.models.special_tags import ResponseTexts


class Detokenizer:
    """Detokenizer of whole responses, which are what rewards read.

    While it samples, an engine decodes every token twice: into the text so far, and as the name of the token of a
    log-probability. That takes time between two steps of the model, on the engine's own thread, so requests ask for
    neither (`detokenize=False`), and the same class of vLLM decodes a response once, when it is finished.
    """

    def __init__(self, tokenizer: Any) -> None:
        from vllm import SamplingParams
        from vllm.v1.engine.detokenizer import IncrementalDetokenizer

        self._tokenizer, self._params = tokenizer, SamplingParams()
        self._new_stream = IncrementalDetokenizer.from_new_request
        self._texts = ResponseTexts(tokenizer)

    def text(self, prompt: Sequence[int], body: Sequence[int]) -> str:
        """Text of a response to a prompt.

        Args:
            body: the response's tokens without the one that ended it.
        """
        return self._texts.text(body, lambda: self._engine_text(prompt, body))

    def _engine_text(self, prompt: Sequence[int], body: Sequence[int]) -> str:
        request: Any = SimpleNamespace(
            request_id="finished", sampling_params=self._params, prompt_token_ids=list(prompt), prompt_embeds=None
        )
        stream = self._new_stream(self._tokenizer, request)
        stream.update(list(body), stop_terminated=False)
        return stream.get_next_output_text(finished=True, delta=False)
