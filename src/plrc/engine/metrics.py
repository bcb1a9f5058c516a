"""From terms to a loss, and the running means between two log lines, kept on the device.

Layer 4. Each term is the global sum over valid queries divided by their global number (METHOD section 3, *Normaliser*),
so that N processes equal one.
"""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from plrc import distributed
from plrc.config import Config
from plrc.objectives import Term


def total_loss(terms: dict[str, Term], config: Config) -> Tensor:
    """The weighted sum of the terms as a 0-dim tensor whose gradients DDP may average over processes."""
    o = config.objectives
    weights = {"image": o.image_weight, "point": o.point_weight, "distill": o.distill_weight}
    counts = distributed.sum_over_processes(torch.stack([term.count for term in terms.values()])).clamp(min=1)
    shares = [weights[name] * term.total / count for (name, term), count in zip(terms.items(), counts, strict=True)]
    return torch.stack(shares).sum() * distributed.world_size()


class MetricWindow:
    """Sums since the last log line; `read` gives plain numbers (the one host synchronisation) and starts anew."""

    def __init__(self, config: Config, keys: dict[str, int]) -> None:
        """`keys`: how many keys each query of a term is compared with (gives its chance level)."""
        self.keys = keys
        self.batch_size = config.optim.batch_size
        self.sums: dict[str, Tensor] = {}
        self.pending: dict[str, Tensor] = {}  # terms of the step that is under way
        self.steps = 0
        self.started, self.waited_before = time.perf_counter(), 0.0

    def add_terms(self, terms: dict[str, Term]) -> None:
        for name, term in terms.items():
            values = torch.stack([term.total.detach(), term.entropy, term.count]).double()
            self.pending[name] = self.pending.get(name, 0) + values

    def add_step(self, norm: Tensor, keep: Tensor) -> None:
        """End a step: its terms and its gradient norm count only if the step was kept."""
        self.pending["step"] = torch.stack([norm.detach(), torch.ones_like(norm)]).double()
        for name, values in self.pending.items():
            self.sums[name] = self.sums.get(name, 0) + torch.where(keep, values, 0.0)
        self.pending = {}
        self.steps += 1

    def read(self, waited: float) -> dict[str, float]:
        """`waited`: seconds spent waiting for data since the start. Losses are means over valid queries and steps, nan
        where there was none; NAME_kl is NAME_loss minus the target's entropy, NAME_chance what NAME_kl is for uniform
        affinities."""
        norm, kept = self.sums.pop("step").tolist()
        values: dict[str, float] = {}
        for name, total in self.sums.items():
            loss, entropy, count = distributed.sum_over_processes(total).tolist()
            count = count or math.nan
            values[f"{name}_loss"] = loss / count
            values[f"{name}_kl"] = (loss - entropy) / count
            values[f"{name}_chance"] = math.log(self.keys[name]) - entropy / count
        seconds = time.perf_counter() - self.started
        values["gradient_norm"] = norm / (kept or math.nan)
        values["skipped_steps"] = self.steps - kept
        values["images_per_second"] = self.steps * self.batch_size / seconds
        values["data_wait_share"] = (waited - self.waited_before) / seconds
        self.sums, self.steps = {}, 0
        self.started, self.waited_before = time.perf_counter(), waited
        return values
