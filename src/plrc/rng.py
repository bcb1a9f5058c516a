"""Randomness as a function: every draw comes from a generator keyed by (seed, purpose, epoch, index).

Layer 0. No state is kept, so a run does not depend on the number of workers, and a resume needs only its position.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

Purpose = Literal[
    "order", "crops", "colour", "points", "held_out", "scenes", "shuffle", "weights", "probe", "layers", "labels",
    "mirror", "heads", "regions",
]  # fmt: skip
_PURPOSES: tuple[Purpose, ...] = get_args(Purpose)  # append only: the position is part of the key


def generator(seed: int, purpose: Purpose, epoch: int = 0, index: int = 0) -> np.random.Generator:
    """A NumPy generator of its own for this key (Philox: key = seed and purpose, counter = index and epoch)."""
    key = np.array([seed, _PURPOSES.index(purpose)], dtype=np.uint64)
    counter = np.array([0, 0, index, epoch], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def torch_seed(seed: int, purpose: Purpose, epoch: int = 0, index: int = 0) -> int:
    """A 63-bit seed for `torch.manual_seed` or `torch.Generator.manual_seed` with the same key."""
    return int(generator(seed, purpose, epoch, index).integers(0, 2**63 - 1))
