"""Regions of an image as a map of ids: a grid, random cells or boxes, superpixels, or masks from files; with noise.

Regions live in the image frame and are read with `geometry.look_up`. They depend on the settings, the seed and the
image alone, not on the epoch, the views or the number of loader processes. Nothing is written.

Shapes: n x n the grid, size x size every other id map; k regions, -1 unlabelled.
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
from plrc.errors import ConfigError, MissingPackageError
from plrc.rng import generator

_BOX_SIDES = (0.1, 0.5)  # shares of the image's sides
_SLIC_COMPACTNESS = 20.0  # weight of distance against color
_SLIC_BLUR = 1.0  # standard deviation in cells of the map
_GRAPH_BLUR = 0.8  # as Felzenszwalb and Huttenlocher use it
_GRAPH_SMALLEST = 1 / 256  # share of the map that a segment has at least


class Regions:
    """The regions of the images of a list.

    What is wrong with the source as a whole is raised when this object is created, before any image is read.

    Args:
        config: The settings.
        images: The images.

    Raises:
        ConfigError: There is no folder of id maps, or the shards have no id maps.
        DataError: The COCO file cannot be used.
        MissingPackageError: A package that the source of regions needs is not installed.
    """

    def __init__(self, config: Config, images: ImageList) -> None:
        self.config = config
        self.images = images
        source = config.regions.source
        maps = config.regions.maps
        if source == "maps" and not Path(maps).is_dir():
            raise ConfigError(f"regions.maps is {maps}, which is not a folder; name the one with the id maps")
        if source == "shards" and (images.shards is None or images.shards.samples[:, 3].max() < 0):
            raise ConfigError(
                "regions.source is shards, but --data names no shards with id maps; see: plrc shard --help"
            )
        if source in ("slic", "felzenszwalb"):
            _import_segmentation()
        self.masks = read_coco_masks(maps, images) if source == "coco" else None

    def __call__(self, position: int) -> Tensor:
        """Return the regions of an image.

        Args:
            position: Which image of the list.

        Returns:
            Ids 0 .. k - 1, -1 unlabelled: int16 [size, size]; a grid without noise is [n, n].

        Raises:
            RegionError: The image has no regions.
            DecodeError: Superpixels need the image, which cannot be read.
        """
        config = self.config.regions
        name = self.images.names[position]
        if config.source == "grid":
            ids = grid_regions(config.grid)
        elif config.source == "maps":
            ids = self._read_map(config, name)
        elif self.images.shards is not None and config.source == "shards":
            content = self.images.shards.read_map(position)
            if content is None:
                raise RegionError(f"image {name} has no id map in its shard; plrc shard --maps puts it there")
            ids = load_regions(io.BytesIO(content), config.map_size, name)
        else:
            ids = renumber(self._compute(config, name, position), name)
        return self.with_noise(ids, name) if config.noisy else ids

    def with_noise(self, ids: Tensor, name: str) -> Tensor:
        """Add the noise that the settings ask for.

        Args:
            ids: Region ids [h, w].
            name: The image, on which the noise depends.

        Returns:
            Ids 0 .. k - 1, -1 unlabelled: int16 [size, size].
        """
        config = self.config.regions
        key = _image_key(name)
        generators = [generator(self.config.seed, "regions", 1 + i, key) for i in range(4)]
        return renumber(add_noise(resize_nearest(ids.numpy(), config.map_size), config, generators), name)

    def _read_map(self, config: RegionConfig, name: str) -> Tensor:
        path = find_map(config.maps, name)
        if path is None:
            wanted = map_path(config.maps, name)
            raise RegionError(f"image {name} has no id map: write {wanted} (or .npz, .npy), or take another source")
        return load_regions(path, config.map_size)

    def _compute(self, config: RegionConfig, name: str, position: int) -> NDArray[Any]:
        size = config.map_size
        rng = generator(self.config.seed, "regions", 0, _image_key(name))
        if config.source == "voronoi":
            return voronoi_regions(config.count, size, rng)
        if config.source == "boxes":
            return box_regions(config.count, size, rng)
        if self.masks is not None:
            return np.maximum(self.masks.objects(name, size), 0) - 1
        pixels = self._load_pixels(position, size)
        if config.source == "slic":
            return slic_regions(pixels, config.count)
        return felzenszwalb_regions(pixels, config.scale)

    def _load_pixels(self, position: int, size: int) -> NDArray[np.uint8]:
        """The image at the size of its id map, uint8 [size, size, 3].

        It is decoded separately from the loader's image, so that regions do not depend on the settings of views.
        """
        image = self.images.decode(position, self.config.data, size)
        small = F.interpolate(image[None], size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        return np.ascontiguousarray(small[0].permute(1, 2, 0).numpy())


def grid_regions(n: int) -> Tensor:
    """Return the regular grid of paper section 3: ids 0 .. n * n - 1 row by row, int16 [n, n]."""
    if n * n > MAX_REGIONS:
        raise ConfigError(f"regions.grid must be <= {int(MAX_REGIONS**0.5)}, got {n}")
    return torch.arange(n * n, dtype=torch.int16).reshape(n, n)


def voronoi_regions(count: int, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw cells around `count` uniform random sites: each place has the id of the nearest site, [size, size]."""
    sites = rng.random((count, 2))
    centers = (np.arange(size) + 0.5) / size
    row_distance = (sites[:, 0, None] - centers) ** 2  # [count, size]
    column_distance = (sites[:, 1, None] - centers) ** 2
    return np.asarray((row_distance[:, :, None] + column_distance[:, None, :]).argmin(axis=0))


def box_regions(count: int, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw `count` boxes of uniform sides and places, smaller ones on larger ones; -1 outside: [size, size]."""
    sides = rng.uniform(*_BOX_SIDES, (count, 2))
    start = rng.random((count, 2)) * (1 - sides)
    ends = np.rint(np.stack([start, start + sides]) * size).astype(np.int64)
    ids = np.full((size, size), -1, dtype=np.int64)
    for i in np.argsort(-sides.prod(axis=1)):
        (top, left), (bottom, right) = ends[:, i]
        ids[top:bottom, left:right] = i
    return ids


def slic_regions(pixels: NDArray[np.uint8], count: int) -> NDArray[np.int64]:
    """Compute about `count` SLIC superpixels (Achanta et al. 2012) of RGB pixels [size, size, 3]: ids [size, size]."""
    slic = _import_segmentation().slic
    ids = slic(pixels, n_segments=count, compactness=_SLIC_COMPACTNESS, sigma=_SLIC_BLUR, start_label=0)
    return np.asarray(ids, dtype=np.int64)


def felzenszwalb_regions(pixels: NDArray[np.uint8], scale: float) -> NDArray[np.int64]:
    """Compute the graph-based segments of Felzenszwalb and Huttenlocher (2004).

    Args:
        pixels: RGB [size, size, 3].
        scale: Their parameter k: larger for fewer and larger segments.

    Returns:
        Ids [size, size]. A segment below 1/256 of the map is joined to its neighbor.
    """
    smallest = int(pixels.shape[0] * pixels.shape[1] * _GRAPH_SMALLEST)
    ids = _import_segmentation().felzenszwalb(pixels, scale=scale, sigma=_GRAPH_BLUR, min_size=smallest)
    return np.asarray(ids, dtype=np.int64)


def _import_segmentation() -> Any:
    """scikit-image's segmentations. Raises MissingPackageError."""
    try:
        from skimage import segmentation
        from skimage.segmentation import felzenszwalb, slic  # noqa: F401 - otherwise loaded when first called
    except ImportError as error:
        raise MissingPackageError("superpixels", "scikit-image") from error
    return segmentation


def _image_key(name: str) -> int:
    """The image's key for random numbers: a hash of its name, so that other images in the list change nothing."""
    digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
