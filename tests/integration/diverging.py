"""What each of two real processes does in test_survival.py: python -m tests.integration.diverging SETTINGS.toml.

A run whose gradients are not finite in one of the processes while the learning rate is high.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from plrc import distributed
from plrc.config import Config
from plrc.engine import pretrain as loop
from plrc.engine import recovery
from plrc.engine.learner import Learner
from plrc.engine.state import TrainingState
from plrc.objectives import Term


def main(settings: str) -> None:
    torch.set_num_threads(1)
    config = Config.load(Path(settings))
    recovery.MAX_SKIPPED_IN_A_ROW = 4
    state_of, states = TrainingState.begin, []
    total_loss = Learner.total_loss

    def begin(self: TrainingState, *given: object) -> int:
        states.append(self)
        return state_of(self, *given)  # type: ignore[arg-type]

    def poisoned(self: Learner, terms: dict[str, Term]) -> torch.Tensor:
        loss = total_loss(self, terms)
        rate = states[-1].optimizer.param_groups[0]["lr"]  # of the step before
        bad = distributed.rank() == 1 and 0.1 * config.optim.lr < rate < 0.9 * config.optim.lr
        return loss * float("nan") if bad else loss

    TrainingState.begin = begin  # type: ignore[method-assign]
    Learner.total_loss = poisoned  # type: ignore[method-assign]
    assert loop.pretrain(config).finished


if __name__ == "__main__":
    main(sys.argv[1])
