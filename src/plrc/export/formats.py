"""Tensors in files, written and read back as their users do it: safetensors and torch files. Layer 5: imports files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from plrc.files import write_atomic


def write_tensors(path: Path, state: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """A .safetensors file with metadata, or a .pt file: a plain dictionary of tensors."""
    if path.suffix == ".safetensors":
        apart = {name: tensor.clone() for name, tensor in state.items()}  # tied ones stand under each of their names
        content = safetensors.torch.save(apart, metadata)
        write_atomic(path, lambda file: file.write(content))
    else:
        write_torch(path, dict(state))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The file of `write_tensors` as a user reads it, with the library's own call."""
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    state: dict[str, Tensor] = read_torch(path)
    return state


def write_torch(path: Path, content: Mapping[str, Any]) -> None:
    """A torch file of dictionaries, tensors, strings and numbers."""
    write_atomic(path, lambda file: torch.save(content, file))


def read_torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)
