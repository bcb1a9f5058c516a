"""The time budget of a run: how much of it is used, and what that makes the number of steps.

Schedules are functions of a step and of the steps of the whole run. With a time budget the latter is an estimate, which
is corrected before each step so that `step / steps` is the share of the time used. So the schedules need to know
nothing of time, and reach their end when the time ends.
"""

from __future__ import annotations

import math
import time

import torch

from plrc import distributed
from plrc.config import Config, OptimConfig
from plrc.engine.adapt import total_steps

UNLIMITED_STEPS = 2**48
"""Steps of a run that ends by its time budget."""


class TimeBudget:
    """Measures the time that the steps of a run take, in all of its starts together.

    The main process measures, and all processes get its number. Without a budget nothing is measured.

    Args:
        config: `hours` is the budget, 0 for none; `clock` is what is measured: "wall", or "cpu", the CPU time of the
            main process with all of its threads, but without its loader processes.

    Attributes:
        total: The budget in seconds; 0: none.
        used: Seconds used so far, as of the last `update`.
    """

    def __init__(self, config: OptimConfig) -> None:
        self.total = 3600 * config.hours
        self.used = 0.0
        self._now = time.process_time if config.clock == "cpu" else time.monotonic
        self._last = 0.0

    def start(self) -> None:
        """Start measuring."""
        self._last = self._now()

    def update(self) -> None:
        """Add the time since the last call, or since `start`. All processes call it together."""
        if not self.total:
            return
        now = self._now()
        seconds = torch.tensor(0.0, dtype=torch.float64)
        if distributed.is_main():
            seconds += now - self._last
        self._last = now
        self.used += float(distributed.sum_over_processes(seconds))

    @property
    def is_over(self) -> bool:
        """Whether there is a budget, and all of it is used."""
        return 0 < self.total <= self.used

    @property
    def seconds_left(self) -> float:
        """The rest of the budget."""
        return max(0.0, self.total - self.used)

    def expected_steps(self, step: int, planned: int) -> float:
        """Return the steps of the whole run, as far as it is known.

        Args:
            step: Steps made so far.
            planned: Steps of the whole run without a budget.

        Returns:
            Without a budget `planned`. With a budget the number of which `step` is the used share; infinity before the
            first step.
        """
        if not self.total:
            return planned
        if not self.used:
            return math.inf
        return step * max(1.0, self.total / self.used)


def steps_of_run(config: Config, images: int, step: int, seconds_used: float) -> int:
    """Return the steps of a whole run; with a time budget they are estimated from its progress.

    Args:
        config: The settings of the run.
        images: Number of its training images.
        step: Its last step.
        seconds_used: The used part of its time budget after this step.

    Returns:
        The steps; with a time budget 0 before the first step.
    """
    if not config.optim.hours:
        return total_steps(config, images)
    budget = TimeBudget(config.optim)
    budget.used = seconds_used
    return round(budget.expected_steps(step, 0)) if step and seconds_used else 0
