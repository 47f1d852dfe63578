"""The learning rate of each training step."""

from __future__ import annotations

import math

from demopsd_dist.config import LearnerConfig, Schedule


def learning_rate(settings: LearnerConfig, step: int, steps: int) -> float:
    """Learning rate of training step `step` of `steps`, counted from 1: linear warm-up from 0, then the schedule."""
    if step <= settings.warmup_steps:
        return settings.learning_rate * step / settings.warmup_steps
    done = min(1.0, (step - settings.warmup_steps) / max(steps - settings.warmup_steps, 1))
    match settings.schedule:
        case Schedule.constant:
            left = 1.0
        case Schedule.linear:
            left = 1.0 - done
        case Schedule.cosine:
            left = 0.5 * (1.0 + math.cos(math.pi * done))
    final = settings.final_learning_rate_fraction
    return settings.learning_rate * (final + (1.0 - final) * left)
