"""Pickles of plain numpy arrays, which detectron2 reads: written so that they name nothing else, read without trust.

Layer 2: imports files. A pickle can name any function to be called; here all but numpy's are refused,
and of those our own, which make arrays of numbers alone, take the place.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plrc.files import write_atomic

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


def _dtype(kind: Any, *_: Any) -> np.dtype[Any]:
    found = np.dtype(kind, copy=True) if isinstance(kind, (str, np.dtype)) else None
    if found is None or found.kind not in "biuf":
        raise pickle.UnpicklingError(f"it has an array of {kind!r}, not of numbers")
    return found


def _frombuffer(buffer: Any, kind: Any, shape: Any, order: Any = "C") -> np.ndarray:
    known = isinstance(buffer, (bytes, bytearray)) and type(shape) is tuple and all(type(side) is int for side in shape)
    if not known or order not in ("C", "F"):
        raise pickle.UnpicklingError("it has an array that numpy has not written")
    return np.frombuffer(buffer, _dtype(kind)).reshape(shape, order=order)


def _encode(text: Any, encoding: Any) -> bytes:
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("it has bytes that numpy has not written")
    return text.encode("latin1")


_KNOWN: dict[str, Callable[..., Any]] = {
    "ndarray": lambda shape, kind, buffer: _frombuffer(buffer, kind, shape),
    "dtype": _dtype,
    "_reconstruct": lambda *_: np.empty(0, np.uint8),  # older protocols: its state follows
    "_frombuffer": _frombuffer,
    "encode": _encode,  # older protocols: how bytes are written
}
"""What stands for the functions that numpy's pickles name. Numpy's own would take bytes for objects: addresses."""


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _KNOWN or module not in _MODULES:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not numpy's; it is not run")
        return _KNOWN[name]


def _tensors(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _tensors(value) for key, value in content.items()}
    return torch.from_numpy(content) if isinstance(content, np.ndarray) else content
