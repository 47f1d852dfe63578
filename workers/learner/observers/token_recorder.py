"""What the learners tell of single tokens, for the record: of a few responses, never of a whole batch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from demopsd_dist.data.records import ScoredExample, TokenRecord
from demopsd_dist.objective import Loss, Objective, TokenSlice, TokenViews, candidates, target_of

MOST_VALUES = 1 << 22  # log-probabilities kept whole before candidates are taken from them: many tokens at once
_VIEWS = ("student", "reference", "teacher")


class TokenRecorder:
    """The tokens of one micro-batch to tell of: the first `max_tokens` of each response in `record_ids`.

    `see` takes a slice of the micro-batch after the other, in order; what it keeps stays on the device until `tables`.
    """

    def __init__(
        self,
        scored: Sequence[ScoredExample],
        record_ids: frozenset[str],
        method: Objective,
        *,
        count: int,
        max_tokens: int,
        device: torch.device,
        most_values: int = MOST_VALUES,
    ) -> None:
        self._method, self._count, self._most_values = method, count, most_values
        self._lengths: dict[str, int] = {}
        places: list[Tensor] = []
        start = 0
        for item in scored:
            rollout = item.example.rollout
            if rollout.id in record_ids:
                self._lengths[rollout.id] = length = min(len(rollout.tokens_T), max_tokens)
                places.append(torch.arange(start, start + length))
            start += len(rollout.tokens_T)
        self._place_N = torch.cat(places).to(device) if places else torch.zeros(0, dtype=torch.int64, device=device)
        self._whole: dict[str, list[Tensor]] = defaultdict(list)  # (N, A) of each view, and (N, K) ids
        self._seen: dict[str, list[Tensor]] = defaultdict(list)  # (N,) and (N, C)
        self._has_tail = True

    @torch.no_grad()
    def see(
        self, part: TokenSlice, views: TokenViews, loss: Loss, entropy_N: Tensor, support_NK: Tensor | None
    ) -> None:
        """Args: the slice, what the method saw of it and made of it, the student's entropies, the whole support."""
        here_N = self._place_N[(self._place_N >= part.tokens.start) & (self._place_N < part.tokens.stop)]
        if not len(here_N):
            return
        row_N = here_N - part.tokens.start
        self._seen["entropy"].append(entropy_N[row_N])
        self._seen["loss"].append(loss.loss_BT.detach()[row_N])
        for name, value in loss.distributions.items():
            self._seen[f"distribution {name}"].append(value[row_N])
        logp = (views.student_logp_BTA, views.reference_logp_BTA, views.teacher_logp_BTA)
        for name, logp_NA in zip(_VIEWS, logp, strict=True):
            if logp_NA is not None:
                self._whole[name].append(logp_NA.detach()[row_N])
        if support_NK is not None:
            self._whole["support"].append(support_NK[here_N])
        self._has_tail = views.has_tail
        if sum(values.numel() for values in self._whole["student"]) > self._most_values:
            self._choose()

    def _choose(self) -> None:
        """Of the views kept whole so far, the candidates alone."""
        whole = {name: torch.cat(parts) for name, parts in self._whole.items() if parts}
        self._whole.clear()
        if not whole:
            return
        support_NK = whole.pop("support", None)
        place_NC = candidates(list(whole.values()), self._count, self._has_tail)
        views = TokenViews(whole["student"], whole.get("reference"), whole.get("teacher"), has_tail=self._has_tail)
        if (target_NA := target_of(self._method, views)) is not None:
            whole["target"] = target_NA
        self._seen["candidate"].append(place_NC if support_NK is None else support_NK.gather(-1, place_NC))
        for name, logp_NA in whole.items():
            self._seen[name].append(logp_NA.gather(-1, place_NC))

    @torch.no_grad()
    def tables(self) -> dict[str, TokenRecord]:
        """By rollout id."""
        self._choose()
        cut = {name: torch.cat(parts).cpu().split(list(self._lengths.values())) for name, parts in self._seen.items()}

        def of(index: int, name: str, to: Callable[[Tensor], Tensor] = Tensor.float):
            return to(cut[name][index]).numpy().copy() if name in cut else None

        return {
            rollout: TokenRecord(
                entropy_T=of(i, "entropy"),
                loss_T=of(i, "loss"),
                distributions={n.removeprefix("distribution "): of(i, n) for n in cut if n.startswith("distribution ")},
                candidate_TC=of(i, "candidate", Tensor.int),
                student_logp_TC=of(i, "student"),
                reference_logp_TC=of(i, "reference"),
                teacher_logp_TC=of(i, "teacher"),
                target_logp_TC=of(i, "target"),
            )
            for i, rollout in enumerate(self._lengths)
        }
