"""Pickles of plain numpy arrays, which detectron2 reads: written so that they name nothing else, read without trust.

Layer 2: imports files. A pickle can name any function to be called; here all but numpy's own are refused.
"""

from __future__ import annotations

import codecs
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plrc.files import write_atomic

_ARRAY = np.zeros(1)
_ALLOWED: dict[str, Any] = {
    "ndarray": np.ndarray,
    "dtype": np.dtype,
    "_reconstruct": _ARRAY.__reduce__()[0],  # numpy has moved it between modules
    "_frombuffer": _ARRAY.__reduce_ex__(5)[0],
    "encode": codecs.encode,  # of bytes, in older protocols
}
_MODULES = (
    "numpy",
    "numpy.core.multiarray",
    "numpy._core.multiarray",
    "numpy.core.numeric",
    "numpy._core.numeric",
    "_codecs",
)


def write_arrays(path: Path, content: Mapping[str, Any]) -> None:
    """Nested dictionaries as a pickle in which every tensor is a plain array and only `numpy.ndarray` is named."""
    write_atomic(path, lambda file: _Writer(file, protocol=5).dump(content))


def read_arrays(path: Path) -> Any:
    """The content of a pickle with tensors for arrays. Raises UnpicklingError for one that names other things."""
    with open(path, "rb") as file:
        return _tensors(_Reader(file, encoding="latin1").load())


class _Writer(pickle.Pickler):
    """numpy's own way names private modules, which differ between its versions."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            array = value.detach().cpu().contiguous().numpy()
            return np.ndarray, (array.shape, array.dtype.str, bytearray(array.tobytes()))
        return NotImplemented


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _ALLOWED or module not in _MODULES:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not numpy's; it is not run")
        return _ALLOWED[name]


def _tensors(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _tensors(value) for key, value in content.items()}
    return torch.from_numpy(content) if isinstance(content, np.ndarray) else content
