"""Random numbers as a function of (seed, purpose, epoch, index).

No state is kept, so a run does not depend on the number of workers, and resuming needs only the position in the run.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

# Append only: the position of a purpose is part of the key.
Purpose = Literal[
    "order",
    "crops",
    "color",
    "points",
    "held_out",
    "scenes",
    "shuffle",
    "weights",
    "probe",
    "layers",
    "labels",
    "mirror",
    "heads",
    "regions",
    "teacher",
    "tiles",
]
_PURPOSES: tuple[Purpose, ...] = get_args(Purpose)


def generator(seed: int, purpose: Purpose, epoch: int = 0, index: int = 0) -> np.random.Generator:
    """Return a NumPy generator that depends on its arguments only.

    Args:
        seed: The setting seed.
        purpose: What the numbers are used for; different purposes give independent numbers.
        epoch: Epoch, or 0.
        index: Index of a sample, a step, or 0.

    Returns:
        A Philox generator whose key is (seed, purpose) and whose counter starts at (index, epoch).
    """
    key = np.array([seed, _PURPOSES.index(purpose)], dtype=np.uint64)
    counter = np.array([0, 0, index, epoch], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def torch_seed(seed: int, purpose: Purpose, epoch: int = 0, index: int = 0) -> int:
    """Return a 63-bit seed for PyTorch that depends on its arguments only; see `generator`."""
    return int(generator(seed, purpose, epoch, index).integers(0, 2**63 - 1))
