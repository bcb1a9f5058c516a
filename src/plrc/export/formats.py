"""Tensors in files, written and read back as their users do it: safetensors, torch files, pickled plain arrays.

Layer 5: imports files and config. No code is run when a file is read, of a pickle either.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from plrc.config import PlrcError
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


def write_pickle(path: Path, content: Mapping[str, Any]) -> None:
    """A pickle in which every tensor is a plain numpy array, written so that only `numpy.ndarray` is named in it."""
    write_atomic(path, lambda file: _ArrayPickler(file, protocol=5).dump(content))


def read_pickle(path: Path) -> Any:
    """The content of `write_pickle`, tensors again. Raises PlrcError for anything but plain arrays."""
    with open(path, "rb") as file:
        return _tensors(_ArrayUnpickler(file, encoding="latin1").load())


class _ArrayPickler(pickle.Pickler):
    """numpy's own way names private modules that differ between its versions."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            array = value.detach().cpu().contiguous().numpy()
            return np.ndarray, (array.shape, array.dtype.str, bytearray(array.tobytes()))
        return NotImplemented


class _ArrayUnpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, encoding: str) -> None:
        super().__init__(file, encoding=encoding)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) != ("numpy", "ndarray"):
            raise PlrcError(f"the pickle names {module}.{name}, which plrc does not run; it reads plain arrays only")
        return np.ndarray


def _tensors(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _tensors(value) for key, value in content.items()}
    return torch.from_numpy(content) if isinstance(content, np.ndarray) else content
