"""Masks of objects as COCO's run lengths: from arrays, polygons and files, and back to arrays.

Layer 1: imports config. Needs the package faster-coco-eval (extra transfer or regions) once a function is called.

Shapes: n objects, H x W pixels of the annotated image.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plrc.errors import PlrcError


def mask_functions() -> Any:
    """faster-coco-eval's functions of masks. Raises PlrcError where it is not installed."""
    try:
        from faster_coco_eval.core import mask
    except ImportError as error:
        raise PlrcError(
            "masks need the package faster-coco-eval; pip install 'plrc-pretrain[transfer]' (or 'plrc-pretrain[regions]')"
        ) from error
    return mask


def encode_mask(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """A mask [H, W] -> compressed COCO run lengths {"size": [H, W], "counts": bytes}."""
    found: dict[str, Any] = mask_functions().encode(np.asfortranarray(mask, dtype=np.uint8))
    return found


def decode_masks(segments: tuple[Any, ...], height: int, width: int) -> NDArray[np.uint8]:
    """Run lengths of n masks -> uint8 [n, H, W], 0 or 1."""
    if not segments:
        return np.zeros((0, height, width), dtype=np.uint8)
    return np.ascontiguousarray(mask_functions().decode(list(segments)).transpose(2, 0, 1))


def encode_segment(segment: Any, height: int, width: int) -> dict[str, Any] | None:
    """COCO's `segmentation` (polygons, run lengths, compressed run lengths) -> compressed run lengths.

    None for what is none of these, belongs to another image size, or covers no pixel.
    """
    functions, size = mask_functions(), [height, width]
    try:
        if isinstance(segment, dict):
            counts = segment["counts"].encode() if isinstance(segment["counts"], str) else segment["counts"]
            if list(segment["size"]) != size or (isinstance(counts, list) and sum(counts) != height * width):
                return None
            rle = {"size": size, "counts": counts}
            rle = rle if isinstance(counts, bytes) else functions.frPyObjects(rle, height, width)
            functions.decode(rle)  # raises where the run lengths do not fill the image
        else:
            polygons = [p for p in segment if len(p) >= 6 and len(p) % 2 == 0 and all(map(math.isfinite, p))]
            rle = functions.merge(functions.frPyObjects(polygons, height, width))
        return rle if int(functions.area(rle)) > 0 else None
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError):  # what Python and the C++ raise on odd data
        return None
