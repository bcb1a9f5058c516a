"""Hashes of what images show, by which near-duplicates are recognized: frames of one video, copies, other file formats.

A hash has 256 bits, one for each of 16 x 16 neighboring areas of the gray image: whether the right one is brighter. It
changes little when an image is compressed again or scaled. How many bits may differ was chosen on real data
(docs/TRANSFER.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

HASH_BYTES = 32
SIMILAR_BITS = 32  # images whose hashes differ in at most this many bits look alike
MIN_SIDE = 64  # pixels that a hash needs; a JPEG may be decoded at a smaller size, but not below

_ROWS = 16
_STEP = 1  # gray levels; smaller steps are noise
_PLAIN_BITS = 48  # an image with fewer steps up, or fewer areas without one, has too little structure to be compared
_BLOCK = 2**24  # distances that are computed at a time

Hashes = NDArray[np.uint8]
"""[n, HASH_BYTES]."""


def hash_image(pixels: Tensor) -> NDArray[np.uint8]:
    """Compute the hash of an image.

    Args:
        pixels: uint8 [C, H, W].

    Returns:
        [HASH_BYTES].
    """
    array = pixels.permute(1, 2, 0).numpy()
    if array.shape[2] == 3:
        gray = Image.fromarray(array).convert("L")
    else:
        gray = Image.fromarray(array.mean(axis=2).astype(np.uint8))
    areas = np.asarray(gray.resize((_ROWS + 1, _ROWS), Image.Resampling.BOX), dtype=np.int16)
    return np.packbits(areas[:, 1:] > areas[:, :-1] + _STEP)


def is_plain(hashes: Hashes) -> NDArray[np.bool_]:
    """Return for each image whether it shows too little structure for its hash to mean anything."""
    ones = np.unpackbits(hashes, axis=1).sum(axis=1)
    plain: NDArray[np.bool_] = np.minimum(ones, 8 * HASH_BYTES - ones) < _PLAIN_BITS
    return plain


def unpack_hashes(digits: Iterable[str]) -> Hashes:
    """Return the hashes that are written in hexadecimal digits."""
    return np.frombuffer(bytes.fromhex("".join(digits)), dtype=np.uint8).reshape(-1, HASH_BYTES)


def find_similar(
    names: Sequence[str], hashes: Hashes, other_names: Sequence[str] = (), others: Hashes | None = None
) -> list[tuple[str, str]]:
    """Find the images that look almost like another one. Plain images are left out.

    Args:
        names: The n images.
        hashes: Their hashes.
        other_names: The images that they are compared with.
        others: The hashes of these. None: the images are compared with each other.

    Returns:
        Such images, each with the most similar other one.
    """
    kept = np.flatnonzero(~is_plain(hashes)).tolist()
    hashes = hashes[kept]
    if others is None:
        other_names = [names[i] for i in kept]
        enough = len(kept) > 1
    else:
        structured = np.flatnonzero(~is_plain(others)).tolist()
        other_names = [other_names[i] for i in structured]
        others = others[structured]
        enough = len(kept) > 0 and len(structured) > 0
    if not enough:
        return []
    positions, differing = nearest(hashes, others)
    similar = np.flatnonzero(differing <= SIMILAR_BITS).tolist()
    return [(names[kept[i]], other_names[positions[i]]) for i in similar]


def nearest(first: Hashes, second: Hashes | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the most similar image for each image.

    Args:
        first: Hashes of n images.
        second: Hashes of the images to choose from, at least one. None: the other images of `first`.

    Returns:
        [n] positions in `second`, and [n] numbers of bits that differ.
    """
    others = _signs(first if second is None else second)
    rows = max(1, _BLOCK // len(others))
    positions = np.zeros(len(first), dtype=np.int64)
    differing = np.zeros(len(first), dtype=np.int64)
    for start in range(0, len(first), rows):
        block = slice(start, start + rows)
        equal_minus_differing = _signs(first[block]) @ others.T
        if second is None:
            here = torch.arange(len(equal_minus_differing))
            equal_minus_differing[here, here + start] = -torch.inf
        best, position = equal_minus_differing.max(dim=1)
        positions[block] = position.numpy()
        differing[block] = ((8 * HASH_BYTES - best.clamp(min=-8 * HASH_BYTES)) / 2).long().numpy()
    return positions, differing


def _signs(hashes: Hashes) -> Tensor:
    """The bits as -1 and 1, float32 [n, 256]; the product of two hashes is 256 - 2 x the number of differing bits."""
    return torch.from_numpy(np.unpackbits(hashes, axis=1)).float() * 2 - 1
