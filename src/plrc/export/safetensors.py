"""Hand-over as a plain file: the backbone's own names, for a loader of one's own.

Layer 5: imports model and this folder. For backbones of torchvision and timm this is the file that they get too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from plrc.export.formats import read_tensors, write_tensors
from plrc.export.pixels import pixels
from plrc.export.proof import SIZE, Proof, check_features, check_tensors, features_of
from plrc.model.user_code import TEST_SIZE, is_user_code

ENDINGS = (".safetensors", ".pt")


def version() -> str:
    return str(safetensors.__version__)


def tensors(name: str, student: dict[str, Tensor]) -> dict[str, Tensor]:
    """The student's tensors under the names that the backbone itself gives them."""
    return dict(student)


def write(path: Path, name: str, student: dict[str, Tensor], metadata: dict[str, str]) -> None:
    write_tensors(path, student, metadata)


def prove(path: Path, name: str, student: dict[str, Tensor]) -> Proof:
    """Load the file into a second backbone of the same name, and compare it with the run's student."""
    state = read_tensors(path)
    check_tensors(state, student, "the file")
    size = TEST_SIZE if is_user_code(name) else SIZE
    difference = check_features(features_of(name, state), features_of(name, student), size=size)
    return Proof(len(state), difference, networks=(name,))


def settings(name: str) -> dict[str, Any]:
    return pixels() | {"set": ["names in the file: those of the backbone's own state_dict()"]}
