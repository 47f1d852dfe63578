"""Memory of the driver's Python side over hundreds of steps: it does not grow with their number."""

from __future__ import annotations

import asyncio
import functools
import gc
import tracemalloc
from pathlib import Path
from typing import Any

from rich.cells import cached_cell_len
from rich.console import Console

from demopsd_dist.config import Config, load
from demopsd_dist.data.sources import load_data
from demopsd_dist.minisci import MODEL_DIR
from demopsd_dist.run_record.folder import RunFolder
from demopsd_dist.run_record.log import RunLog
from demopsd_dist.run_record.profiling.timeline import Spans
from demopsd_dist.testing import StandInLearners, World, stand_in_roles
from demopsd_dist.training.loop import train
from demopsd_dist.training.run import Run, RunState
from launch._task import build_task, compose_run
from tests.driver.test_loop import DEMO

WARM_UP, STEPS = 30, 90  # after the warm-up the caches of questions and prompts are full, and checkpoints are removed
MOST_BYTES_A_STEP = 300
WORDS = (
    f"steps={STEPS}",
    "rollout.ahead=1",
    "rollout.prompts_per_step=2",
    "rollout.group_size=4",
    "data.minisci_train_size=8",
    "data.minisci_test_size=1",
    "data.ood=null",
    "evaluation.samples=1",
    "evaluation.every_steps=5",
    "leakage.every_steps=5",
    "checkpoint.every_steps=5",
    "samples.responses=1",
)


class TracedMemory:
    """Hook of a run that reads the memory of all Python objects at two steps, and forgets what the stand-ins note."""

    def __init__(self, world: World, learners: StandInLearners) -> None:
        self._world, self._learners = world, learners
        self.bytes_at: dict[int, int] = {}

    async def __call__(self, stage: str, step: int, content: Any) -> None:
        if stage != "record":
            return
        self._world.diary.clear()
        self._learners.batches.clear()
        if step in (WARM_UP, STEPS):
            cached_cell_len.cache_clear()  # Rich keeps the widths of the last 4,096 texts that it has printed
            clear_bounded_caches()
            gc.collect()
            self.bytes_at[step], _ = tracemalloc.get_traced_memory()

    @property
    def bytes_a_step(self) -> float:
        return (self.bytes_at[STEPS] - self.bytes_at[WARM_UP]) / (STEPS - WARM_UP)


def clear_bounded_caches() -> None:
    """Empty the caches of functions that have a limit, as rich's of the widths of texts; those without one stay."""
    for found in gc.get_objects():
        if isinstance(found, functools._lru_cache_wrapper) and found.cache_parameters()["maxsize"] is not None:
            found.cache_clear()


def test_no_step_leaves_anything_in_the_memory_of_the_driver(tmp_path: Path) -> None:
    config: Config = load(DEMO, [*WORDS, f"output_dir={tmp_path}"])
    task, _ = build_task(config, MODEL_DIR, load_data(config.data).questions)
    world = World()
    roles = stand_in_roles(world)
    assert isinstance(roles.learners, StandInLearners)
    memory = TracedMemory(world, roles.learners)
    with RunLog(RunFolder.create(config), config.steps, Console(quiet=True)) as log:
        log.spans = Spans(max_spans=100)  # full after the warm-up; a run keeps more, a fixed number too
        run: Run = compose_run(config, roles, task, log, on_stage=memory)
        tracemalloc.start()
        try:
            asyncio.run(train(run, RunState()))
        finally:
            tracemalloc.stop()
            run.ledger.close()
    assert set(memory.bytes_at) == {WARM_UP, STEPS}
    assert memory.bytes_a_step < MOST_BYTES_A_STEP
