"""Running means of losses and speeds between two log lines, kept on the device."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from plrc import distributed
from plrc.objectives import Term


class MetricWindow:
    """Sums since the last log line.

    Args:
        batch_size: Images per step, over all processes.
        key_counts: The number of keys that each query of a term is compared with, one number per level, which gives its
            chance level.
    """

    def __init__(self, batch_size: int, key_counts: Mapping[str, Sequence[int]]) -> None:
        self.batch_size = batch_size
        self.key_counts = key_counts
        self.sums: dict[str, Tensor] = {}
        self.current: dict[str, Tensor] = {}  # of the step that is not finished
        self.steps = 0
        self.started = time.perf_counter()
        self.seconds_waited_before = 0.0

    def add_terms(self, terms: Mapping[str, Term]) -> None:
        """Add the terms of a micro-batch to the current step."""
        for name, term in terms.items():
            values = _widest(torch.stack([term.total.detach(), term.entropy, term.count]))
            self.current[name] = self.current.get(name, 0) + values

    def add_step(self, norm: Tensor, keep: Tensor) -> None:
        """Finish the current step, which is counted only if it was kept.

        Args:
            norm: 0-dim, the gradient norm.
            keep: 0-dim bool, whether the gradient was finite.
        """
        self.current["step"] = _widest(torch.stack([norm.detach(), torch.ones_like(norm)]))
        for name, values in self.current.items():
            self.sums[name] = self.sums.get(name, 0) + torch.where(keep, values, 0.0)
        self.current = {}
        self.steps += 1

    def read(self, seconds_waited: float) -> dict[str, float]:
        """Return the means and start a new window; this is the only wait for the device.

        Args:
            seconds_waited: Seconds spent waiting for data since the start of the process.

        Returns:
            NAME_loss (mean over valid queries and steps; nan if there is none), NAME_kl (the loss minus the entropy of
            the target) and NAME_chance (NAME_kl for uniform affinities) of each term, and the measures of steps.
        """
        norm, kept_steps = self.sums.pop("step").tolist()
        values: dict[str, float] = {}
        for name, sums in self.sums.items():
            loss, entropy, count = distributed.sum_over_processes(sums).tolist()
            count = count or math.nan
            values[f"{name}_loss"] = loss / count
            values[f"{name}_kl"] = (loss - entropy) / count
            chances = [math.log(number) for number in self.key_counts[name]]
            values[f"{name}_chance"] = sum(chances) / len(chances) - entropy / count
        seconds = time.perf_counter() - self.started
        values["gradient_norm"] = norm / (kept_steps or math.nan)
        values["skipped_steps"] = self.steps - kept_steps
        values["images_per_second"] = self.steps * self.batch_size / seconds
        values["data_wait_share"] = (seconds_waited - self.seconds_waited_before) / seconds
        self.sums = {}
        self.steps = 0
        self.started = time.perf_counter()
        self.seconds_waited_before = seconds_waited
        return values


def _widest(values: Tensor) -> Tensor:
    """Convert to float64, or to float32 on mps, which has nothing wider."""
    return values.float() if values.device.type == "mps" else values.double()
