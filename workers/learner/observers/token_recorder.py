"""Records of single tokens, for the samples in a run folder: a few responses of each step."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import torch
from torch import Tensor

from demopsd_dist.data.records import TokenRecord
from demopsd_dist.objective import Loss, Objective, TokenSlice, TokenViews, candidate_indices, target_of
from workers.learner.loss_inputs import LossInputs

MAX_BUFFERED_VALUES = 1 << 22  # log-probabilities of all atoms that are buffered before candidates are chosen from them
_VIEWS = ("student", "reference", "teacher")
_DISTRIBUTION = "distribution "  # prefix of a distribution's name among the columns


class TokenRecorder:
    """Observer that records the first `max_tokens` tokens of each response in `record_ids`.

    Of the atoms only `candidate_count` candidates are recorded. Values stay on the device until `token_records`.
    """

    def __init__(
        self,
        record_ids: frozenset[str],
        objective: Objective,
        *,
        candidate_count: int,
        max_tokens: int,
        max_buffered_values: int = MAX_BUFFERED_VALUES,
    ) -> None:
        self._record_ids, self._objective = record_ids, objective
        self._candidate_count, self._max_tokens = candidate_count, max_tokens
        self._max_buffered_values = max_buffered_values
        self._inputs: LossInputs | None = None  # of the current micro-batch
        self._position_N = torch.zeros(0, dtype=torch.int64)  # of the recorded tokens in the current micro-batch
        self._lengths: dict[str, int] = {}  # recorded tokens by rollout id, in order
        self._undistilled: set[str] = set()  # of a mixed loss: rollouts without a teacher
        self._atoms: dict[str, list[Tensor]] = defaultdict(list)  # buffer: (N, A) of each view, and (N, K) support ids
        self._alphas: list[Tensor] = []  # (N,) each, of a gate that looks at whole responses
        self._columns: dict[str, list[Tensor]] = defaultdict(list)  # (N,) and (N, C)
        self._has_tail = True

    @torch.no_grad()
    def add_slice(self, inputs: LossInputs, part: TokenSlice, views: TokenViews, result: Loss) -> None:
        """Record the tokens of one slice."""
        if inputs is not self._inputs:
            self._begin_micro_batch(inputs)
        position_N = self._position_N
        position_N = position_N[(position_N >= part.tokens.start) & (position_N < part.tokens.stop)]
        if not len(position_N):
            return
        row_N = position_N - part.tokens.start
        self._columns["entropy"].append(part.entropy_N[row_N])
        self._columns["loss"].append(result.loss_BT.detach()[row_N])
        for name, value in result.distributions.items():
            self._columns[_DISTRIBUTION + name].append(value[row_N])
        logp = (views.student_logp_BTA, views.reference_logp_BTA, views.teacher_logp_BTA)
        for name, logp_NA in zip(_VIEWS, logp, strict=True):
            if logp_NA is not None:
                self._atoms[name].append(logp_NA.detach()[row_N])
        if inputs.support_NK is not None:
            self._atoms["support"].append(inputs.support_NK[position_N])
        if views.alpha_BT is not None:
            self._alphas.append(views.alpha_BT[row_N])
        self._has_tail = views.has_tail
        if sum(values.numel() for values in self._atoms["student"]) > self._max_buffered_values:
            self._choose_candidates()

    def _begin_micro_batch(self, inputs: LossInputs) -> None:
        """Find the tokens to record in a micro-batch."""
        self._choose_candidates()
        self._inputs = inputs
        positions: list[Tensor] = []
        start = 0
        for rollout_id, length in zip(inputs.rollout_ids, inputs.lengths, strict=True):
            if rollout_id in self._record_ids:
                self._lengths[rollout_id] = recorded = min(length, self._max_tokens)
                if inputs.distillation_weight_N is not None and not inputs.distillation_weight_N[start]:
                    self._undistilled.add(rollout_id)
                positions.append(torch.arange(start, start + recorded))
            start += length
        position_N = torch.cat(positions) if positions else torch.zeros(0, dtype=torch.int64)
        self._position_N = position_N.to(inputs.response_N.device)

    def _choose_candidates(self) -> None:
        """Replace the buffered atoms by the candidates among them."""
        logp = {name: torch.cat(parts) for name, parts in self._atoms.items() if parts}
        alpha_N = torch.cat(self._alphas) if self._alphas else None
        self._atoms.clear()
        self._alphas.clear()
        if not logp:
            return
        support_NK = logp.pop("support", None)
        index_NC = candidate_indices(list(logp.values()), self._candidate_count, self._has_tail)
        views = TokenViews(
            logp["student"], logp.get("reference"), logp.get("teacher"), has_tail=self._has_tail, alpha_BT=alpha_N
        )
        if (target_NA := target_of(self._objective, views)) is not None:
            logp["target"] = target_NA
        self._columns["candidate"].append(index_NC if support_NK is None else support_NK.gather(-1, index_NC))
        for name, logp_NA in logp.items():
            self._columns[name].append(logp_NA.gather(-1, index_NC))

    @torch.no_grad()
    def token_records(self) -> dict[str, TokenRecord]:
        """Records of all slices so far, by rollout id."""
        self._choose_candidates()
        lengths = list(self._lengths.values())
        split = {name: torch.cat(parts).cpu().split(lengths) for name, parts in self._columns.items()}

        def column(index: int, name: str, to: Callable[[Tensor], Tensor] = Tensor.float):
            return to(split[name][index]).numpy().copy() if name in split else None

        def taught(index: int, rollout_id: str, name: str):
            return None if rollout_id in self._undistilled else column(index, name)

        return {
            rollout_id: TokenRecord(
                entropy_T=column(i, "entropy"),
                loss_T=column(i, "loss"),
                distributions={
                    name.removeprefix(_DISTRIBUTION): column(i, name)
                    for name in split
                    if name.startswith(_DISTRIBUTION) and rollout_id not in self._undistilled
                },
                candidate_TC=column(i, "candidate", Tensor.int),
                student_logp_TC=column(i, "student"),
                reference_logp_TC=column(i, "reference"),
                teacher_logp_TC=taught(i, rollout_id, "teacher"),
                target_logp_TC=taught(i, rollout_id, "target"),
            )
            for i, rollout_id in enumerate(self._lengths)
        }
