"""Pickles of plain numpy arrays, which detectron2 reads: written so that they name nothing else, read without trust.

A pickle can name any function to be called. Here all functions but numpy's are refused, and numpy's are replaced by
functions of our own that make nothing but arrays of numbers.
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
    """Write nested dictionaries as a pickle that names only `numpy.ndarray`; every tensor becomes a plain array."""
    write_atomic(path, lambda file: _Writer(file, protocol=5).dump(content))


def read_arrays(path: Path) -> Any:
    """Read a pickle of nested dictionaries, with tensors in place of arrays.

    Raises:
        pickle.UnpicklingError: It names anything but numpy's functions for arrays of numbers.
    """
    with open(path, "rb") as file:
        return _tensors(_Reader(file, encoding="latin1").load())


class _Writer(pickle.Pickler):
    """Writes arrays so that no private module of numpy is named: these differ between its versions."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            array = value.detach().cpu().contiguous().numpy()
            return np.ndarray, (array.shape, array.dtype.str, bytearray(array.tobytes()))
        return NotImplemented


def _dtype(kind: Any, *_: Any) -> np.dtype[Any]:
    if isinstance(kind, (str, np.dtype)):
        dtype = np.dtype(kind, copy=True)
        if dtype.kind in "biuf":
            return dtype
    raise pickle.UnpicklingError(f"it has an array of {kind!r}, not of numbers")


def _frombuffer(buffer: Any, kind: Any, shape: Any, order: Any = "C") -> np.ndarray:
    valid = isinstance(buffer, (bytes, bytearray)) and type(shape) is tuple and all(type(side) is int for side in shape)
    if not valid or order not in ("C", "F"):
        raise pickle.UnpicklingError("it has an array that numpy has not written")
    return np.frombuffer(buffer, _dtype(kind)).reshape(shape, order=order)


def _encode(text: Any, encoding: Any) -> bytes:
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError("it has bytes that numpy has not written")
    return text.encode("latin1")


_REPLACEMENTS: dict[str, Callable[..., Any]] = {
    "ndarray": lambda shape, kind, buffer: _frombuffer(buffer, kind, shape),
    "dtype": _dtype,
    "_reconstruct": lambda *_: np.empty(0, np.uint8),  # older protocols: its state follows
    "_frombuffer": _frombuffer,
    "encode": _encode,  # older protocols: how bytes are written
}
"""Replacements of the functions that numpy's pickles name. numpy's own would accept bytes as objects: addresses."""


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name not in _REPLACEMENTS or module not in _MODULES:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not numpy's; it is not run")
        return _REPLACEMENTS[name]


def _tensors(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _tensors(value) for key, value in content.items()}
    return torch.from_numpy(content) if isinstance(content, np.ndarray) else content
