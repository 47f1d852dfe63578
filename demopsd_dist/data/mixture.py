"""Questions of several training sets, drawn by their weights.

The set of the p-th question drawn in a run is that of the point (offset + p golden ratio) mod 1 on a line on which each
set has a part of the length of its share. So after any number of questions each set has had its share, up to a few. The
offset follows from the seed; the order within a set is a permutation for each epoch of that set. Neither depends on
other settings, so a step's questions are found again without the steps before it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import overload

import numpy as np

from demopsd_dist.data.records import Prompt

_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio, odd
_WHOLE = 1 << 64


class MixedPrompts(Sequence[Prompt]):
    """Prompts of several training sets, with the draws of each step.

    Args:
        sets: prompts by the name of their set.
        weights: a positive number for each set.
    """

    def __init__(self, sets: Mapping[str, Sequence[Prompt]], weights: Mapping[str, float]) -> None:
        self.sets = {name: list(prompts) for name, prompts in sets.items()}
        self._all = [prompt for prompts in self.sets.values() for prompt in prompts]
        shares = np.cumsum([weights[name] for name in self.sets], dtype=np.float64)
        ends = [min(int(share / shares[-1] * _WHOLE), _WHOLE - 1) for share in shares[:-1]]
        self._ends = np.array(ends, dtype=np.uint64)  # the end of each part but the last
        self._names = list(self.sets)

    def __len__(self) -> int:
        return len(self._all)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...

    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...

    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        return self._all[index]

    def set_of(self, prompt: Prompt) -> str:
        """Name of the prompt's set."""
        return prompt.id.partition("/")[0]

    def of_step(self, seed: int, per_step: int, step: int) -> list[Prompt]:
        """The prompts of a step, all different; `step` counts from 0."""
        return self._draw(f"mixture/{seed}", step * per_step, per_step, set())

    def more(self, seed: int, step: int, used_ids: set[str], count: int) -> list[Prompt]:
        """Further prompts of a step that are not in `used_ids`; fewer where no more are left."""
        return self._draw(f"mixture/{seed}/more/{step}", 0, count, used_ids)

    def _draw(self, seed: str, first: int, count: int, used_ids: set[str]) -> list[Prompt]:
        """The draws from `first` on. Where a set has no unused prompt, the next set gives one."""
        positions = np.arange(first + count, dtype=np.uint64)
        offset = np.uint64(random.Random(seed).getrandbits(64))
        with np.errstate(over="ignore"):  # modulo 2^64
            points = positions * np.uint64(_GOLDEN) + offset
        chosen = np.searchsorted(self._ends, points, side="right")
        counts = np.bincount(chosen[:first], minlength=len(self._names))
        queues = [self._unused(seed, name, int(drawn)) for name, drawn in zip(self._names, counts, strict=True)]
        used, drawn = set(used_ids), []
        for index in chosen[first:].tolist():
            for other in range(len(queues)):
                prompt = next((one for one in queues[(index + other) % len(queues)] if one.id not in used), None)
                if prompt is not None:
                    used.add(prompt.id)
                    drawn.append(prompt)
                    break
        return drawn

    def _unused(self, seed: str, name: str, drawn: int) -> Iterator[Prompt]:
        """Prompts of a set from its `drawn`-th draw on, to the end of the epoch after the running one."""
        prompts = self.sets[name]
        epoch, first = divmod(drawn, len(prompts))
        for number in (epoch, epoch + 1):
            order = list(range(len(prompts)))
            random.Random(f"{seed}/order/{name}/{number}").shuffle(order)
            yield from (prompts[index] for index in order[first:])
            first = 0
