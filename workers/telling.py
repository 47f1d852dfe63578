"""What the learners tell of single tokens, for the record: of a few responses, never of a whole batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from demopsd_dist.data.records import Scored, TokenTable
from demopsd_dist.objective import Loss, Method, Slice, TokenViews, candidates, target_of


class Telling:
    """The tokens of one micro-batch to tell of: the first `max_tokens` of each response in `told`.

    `see` takes a slice of the micro-batch after the other, in order; what it keeps stays on the device until `tables`.
    """

    def __init__(
        self,
        scored: Sequence[Scored],
        told: frozenset[str],
        method: Method,
        *,
        count: int,
        max_tokens: int,
        device: torch.device,
    ) -> None:
        self._method, self._count = method, count
        self._lengths: dict[str, int] = {}
        places: list[Tensor] = []
        start = 0
        for item in scored:
            rollout = item.lesson.rollout
            if rollout.id in told:
                self._lengths[rollout.id] = length = min(len(rollout.tokens_T), max_tokens)
                places.append(torch.arange(start, start + length))
            start += len(rollout.tokens_T)
        self._place_N = torch.cat(places).to(device) if places else torch.zeros(0, dtype=torch.int64, device=device)
        self._seen: dict[str, list[Tensor]] = {}

    @torch.no_grad()
    def see(self, part: Slice, views: TokenViews, loss: Loss, support_NK: Tensor | None) -> None:
        here_N = self._place_N[(self._place_N >= part.tokens.start) & (self._place_N < part.tokens.stop)]
        if not len(here_N):
            return
        row_N = here_N - part.tokens.start
        seen = TokenViews(
            views.student_logp_BTA.detach()[row_N],
            _rows(views.reference_logp_BTA, row_N),
            _rows(views.teacher_logp_BTA, row_N),
            has_tail=views.has_tail,
        )
        distributions = {
            "student": seen.student_logp_BTA,
            "reference": seen.reference_logp_BTA,
            "teacher": seen.teacher_logp_BTA,
            "target": target_of(self._method, seen),
        }
        there = {name: logp_NA for name, logp_NA in distributions.items() if logp_NA is not None}
        place_NC = candidates([logp for name, logp in there.items() if name != "target"], self._count, seen.has_tail)
        self._keep("candidate", place_NC if support_NK is None else support_NK[here_N].gather(-1, place_NC))
        self._keep("entropy", part.entropy()[row_N])
        self._keep("loss", loss.loss_BT.detach()[row_N])
        for name, value in loss.spreads.items():
            self._keep(f"spread {name}", value[row_N])
        for name, logp_NA in there.items():
            self._keep(name, logp_NA.gather(-1, place_NC))

    def tables(self) -> dict[str, TokenTable]:
        """By rollout id."""
        whole = {name: torch.cat(parts).cpu() for name, parts in self._seen.items()}
        cut = {name: values.split(list(self._lengths.values())) for name, values in whole.items()}

        def of(index: int, name: str, to: Callable[[Tensor], Tensor] = Tensor.float):
            return to(cut[name][index]).numpy().copy() if name in cut else None

        return {
            rollout: TokenTable(
                entropy_T=of(i, "entropy"),
                loss_T=of(i, "loss"),
                spreads={n.removeprefix("spread "): of(i, n) for n in cut if n.startswith("spread ")},
                candidate_TC=of(i, "candidate", Tensor.int),
                student_logp_TC=of(i, "student"),
                reference_logp_TC=of(i, "reference"),
                teacher_logp_TC=of(i, "teacher"),
                target_logp_TC=of(i, "target"),
            )
            for i, rollout in enumerate(self._lengths)
        }

    def _keep(self, name: str, values: Tensor) -> None:
        self._seen.setdefault(name, []).append(values)


def _rows(values_NA: Tensor | None, row_N: Tensor) -> Tensor | None:
    return None if values_NA is None else values_NA.detach()[row_N]
