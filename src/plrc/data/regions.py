"""Region ids of an image: a regular grid, random cells or boxes, superpixels, or masks from files; then their noise.

Layer 1: imports config, rng and this folder. Regions live in the image frame as a small map of ids, read with
geometry.look_up; -1 is unlabelled. They depend on the settings, the seed and the image alone: not on the epoch, the
views or the number of workers. Reads files, never writes.

Shapes: n x n the grid, size x size any other id map, k regions.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from plrc.config import Config, RegionConfig
from plrc.data.id_maps import MAX_REGIONS, RegionError, find_map, load_regions, map_path, renumber, resize_nearest
from plrc.data.masks import read_coco_masks
from plrc.data.region_noise import add_noise
from plrc.data.sources import ImageList
from plrc.errors import ConfigError, MissingPackageError, PlrcError
from plrc.rng import generator

_BOX_SIDES = (0.1, 0.5)  # shares of the image's sides
_COMPACTNESS, _BLUR = 20.0, 1.0  # SLIC: weight of distance against color; standard deviation in cells of the map
_GRAPH_BLUR, _SMALLEST = 0.8, 1 / 256  # Felzenszwalb: the authors' blur; share of the map that a segment has at least


class Regions:
    """The regions of the images of a list. What is wrong with the source as a whole is said when this is made.

    Raises PlrcError where scikit-image is needed and missing, where there is no folder of id maps, and where the COCO
    file cannot be used.
    """

    def __init__(self, config: Config, images: ImageList) -> None:
        self.config, self.images = config, images
        source, maps = config.regions.source, config.regions.maps
        if source == "maps" and not Path(maps).is_dir():
            raise PlrcError(f"regions.maps is {maps}, which is not a folder; name the one with the id maps")
        if source == "shards" and (images.shards is None or images.shards.samples[:, 3].max() < 0):
            raise PlrcError("regions.source is shards, but --data names no shards with id maps; see: plrc shard --help")
        if source in ("slic", "felzenszwalb"):
            _segmentation()
        self.masks = read_coco_masks(maps, images) if source == "coco" else None

    def __call__(self, position: int) -> Tensor:
        """Ids int16 [size, size] of the image at `position`: 0 .. k - 1, -1 unlabelled; the plain grid is [n, n].

        Raises RegionError where the image has no regions, and DecodeError where superpixels need an unreadable image.
        """
        config, name = self.config.regions, self.images.names[position]
        if config.source == "grid":
            ids = grid_regions(config.grid)
        elif config.source == "maps":
            path = find_map(config.maps, name)
            if path is None:
                wanted = map_path(config.maps, name)
                raise RegionError(f"image {name} has no id map: write {wanted} (or .npz, .npy), or take another source")
            ids = load_regions(path, config.map_size)
        elif self.images.shards is not None and config.source == "shards":
            found = self.images.shards.read_map(position)
            if found is None:
                raise RegionError(f"image {name} has no id map in its shard; plrc shard --maps puts it there")
            ids = load_regions(io.BytesIO(found), config.map_size, name)
        else:
            ids = renumber(self._drawn(config, name, position), name)
        return self.with_noise(ids, name) if config.noisy else ids

    def with_noise(self, ids: Tensor, name: str) -> Tensor:
        """Ids [h, w] of an image with the noise that the settings ask for: int16 [size, size], 0 .. k - 1, -1."""
        config = self.config.regions
        streams = [generator(self.config.seed, "regions", 1 + i, _number(name)) for i in range(4)]
        return renumber(add_noise(resize_nearest(ids.numpy(), config.map_size), config, streams), name)

    def _drawn(self, config: RegionConfig, name: str, position: int) -> NDArray[Any]:
        size, rng = config.map_size, generator(self.config.seed, "regions", 0, _number(name))
        if config.source == "voronoi":
            return voronoi_regions(config.count, size, rng)
        if config.source == "boxes":
            return box_regions(config.count, size, rng)
        if self.masks is not None:
            return np.maximum(self.masks.objects(name, size), 0) - 1
        pixels = self._pixels(position, size)
        if config.source == "slic":
            return slic_regions(pixels, config.count)
        return felzenszwalb_regions(pixels, config.scale)

    def _pixels(self, position: int, size: int) -> NDArray[np.uint8]:
        """The image at the size of its id map, uint8 [size, size, 3]. Not that of the loader: a JPEG is decoded at the
        smallest of its scales that is large enough here, whatever the views need."""
        image = self.images.decode(position, self.config.data, size)
        small = F.interpolate(image[None], size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        return np.ascontiguousarray(small[0].permute(1, 2, 0).numpy())


def grid_regions(n: int) -> Tensor:
    """The regular grid: ids 0 .. n * n - 1 row by row, int16 [n, n] (paper section 3: n = 4)."""
    if n * n > MAX_REGIONS:
        raise ConfigError(f"regions.grid is {n}; write at most {int(MAX_REGIONS**0.5)}")
    return torch.arange(n * n, dtype=torch.int16).reshape(n, n)


def voronoi_regions(count: int, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Cells of `count` uniform random sites: each cell of the map [size, size] has the id of the nearest site."""
    sites, centers = rng.random((count, 2)), (np.arange(size) + 0.5) / size
    rows, columns = ((sites[:, axis, None] - centers) ** 2 for axis in (0, 1))  # [count, size]
    return np.asarray((rows[:, :, None] + columns[:, None, :]).argmin(axis=0))


def box_regions(count: int, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """`count` random boxes, sides and places uniform, smaller ones on larger ones; -1 outside of all: [size, size]."""
    sides = rng.uniform(*_BOX_SIDES, (count, 2))
    start = rng.random((count, 2)) * (1 - sides)
    ends = np.rint(np.stack([start, start + sides]) * size).astype(np.int64)
    ids = np.full((size, size), -1, dtype=np.int64)
    for i in np.argsort(-sides.prod(axis=1)):
        (top, left), (bottom, right) = ends[:, i]
        ids[top:bottom, left:right] = i
    return ids


def slic_regions(pixels: NDArray[np.uint8], count: int) -> NDArray[np.int64]:
    """About `count` SLIC superpixels (Achanta et al. 2012) of RGB pixels [size, size, 3]: ids [size, size]."""
    ids = _segmentation().slic(pixels, n_segments=count, compactness=_COMPACTNESS, sigma=_BLUR, start_label=0)
    return np.asarray(ids, dtype=np.int64)


def felzenszwalb_regions(pixels: NDArray[np.uint8], scale: float) -> NDArray[np.int64]:
    """The graph-based segments of Felzenszwalb and Huttenlocher (2004) of RGB pixels [size, size, 3]: [size, size].

    scale: their k, larger for fewer and larger segments. A segment below 1/256 of the map joins its neighbour.
    """
    smallest = int(pixels.shape[0] * pixels.shape[1] * _SMALLEST)
    ids = _segmentation().felzenszwalb(pixels, scale=scale, sigma=_GRAPH_BLUR, min_size=smallest)
    return np.asarray(ids, dtype=np.int64)


def _segmentation() -> Any:
    """scikit-image's segmentations, loaded. Raises PlrcError where it is not installed."""
    try:
        from skimage import segmentation
        from skimage.segmentation import felzenszwalb, slic  # noqa: F401 - else they are loaded when first called
    except ImportError as error:
        raise MissingPackageError("superpixels", "scikit-image") from error
    return segmentation


def _number(name: str) -> int:
    """The image's key for random numbers: a hash of its name, so that other images in the list change nothing."""
    digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
