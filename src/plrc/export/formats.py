"""Files of tensors, written and read back with the calls that their users make: safetensors and torch files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from plrc.files import write_atomic


def write_plain(path: Path, backbone: str, student: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write the backbone's tensors under their own names: what torchvision, timm and a loader of one's own read."""
    write_tensors(path, student, metadata)


def write_tensors(path: Path, state: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a .safetensors file with metadata, or a .pt file: a plain dictionary of tensors."""
    if path.suffix != ".safetensors":
        write_torch(path, dict(state))
        return
    copies = {name: tensor.clone() for name, tensor in state.items()}  # tied tensors: safetensors refuses shared memory
    content = safetensors.torch.save(copies, metadata)
    write_atomic(path, lambda file: file.write(content))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file of `write_tensors` as a user reads it, with the library's own call."""
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    state: dict[str, Tensor] = read_torch(path)
    return state


def write_torch(path: Path, content: Mapping[str, Any]) -> None:
    """Write a torch file of dictionaries, tensors, strings and numbers."""
    write_atomic(path, lambda file: torch.save(content, file))


def read_torch(path: Path) -> Any:
    """Read a torch file without running any code in it."""
    return torch.load(path, map_location="cpu", weights_only=True)
