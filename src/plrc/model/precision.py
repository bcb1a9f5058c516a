"""Files whose numbers are in half precision, which is converted to float32, the type in which networks are trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

HALF_TYPES = "half_types"
"""Key in the metadata of weights: names of the types that were converted while the file was read."""


def conversion_notes(state: Mapping[str, Tensor], prefix: str, metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Say which types of a file become float32.

    Args:
        state: The file's tensors.
        prefix: Only tensors whose names start with this count.
        metadata: What the file holds besides tensors.

    Returns:
        A sentence; nothing if there is no half precision in the file.
    """
    types = {tensor.dtype for name, tensor in state.items() if name.startswith(prefix)}
    names = [str(kind).removeprefix("torch.") for kind in (torch.float16, torch.bfloat16) if kind in types]
    if metadata.get(HALF_TYPES):
        names.append(metadata[HALF_TYPES])
    if not names:
        return ()
    return (f"the file holds numbers in {', '.join(names)}, which are converted to float32",)
