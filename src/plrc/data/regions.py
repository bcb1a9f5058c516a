"""Regions of an image as a map of ids: a grid, random cells or boxes, superpixels, or masks from files; with noise.

Regions live in the image frame and are read with `geometry.look_up`. They depend on the settings, the seed and the
image alone, not on the epoch, the views or the number of loader processes. Nothing is written.

Shapes: an id map is [size, size], that of the grid [n, n]. Its ids are 0 .. k - 1, or -1 for unlabelled cells.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from plrc.config import Config, RegionConfig
from plrc.data.id_maps import (
    MAX_REGIONS,
    RegionError,
    find_map,
    load_regions,
    map_path,
    renumber,
    require_own_maps,
    resize_nearest,
)
from plrc.data.image_header import Header
from plrc.data.masks import read_coco_masks
from plrc.data.region_noise import add_noise
from plrc.data.sources import ImageList
from plrc.errors import ConfigError, MissingPackageError
from plrc.pixels import RGB_CHANNELS
from plrc.rng import generator

_BOX_SIDES = (0.1, 0.5)  # smallest and largest side of a box, as fractions of the image's sides
_SLIC_COMPACTNESS = 20.0  # weight of distance against color in Lab, whose lightness is 0 to 100
_SLIC_CHANNEL_COMPACTNESS = _SLIC_COMPACTNESS / 100  # against channels that are not RGB, from 0 to 1
_SLIC_SIGMA = 1.0  # standard deviation of the blur, in cells of the map
_FELZENSZWALB_SIGMA = 0.8  # the value of Felzenszwalb and Huttenlocher
_FELZENSZWALB_MIN_AREA = 1 / 256  # area of the smallest segment, as a fraction of the map


class Regions:
    """The regions of the images of a list.

    The source of the regions is checked when this object is created, before any image is read.

    Args:
        config: The settings.
        images: The images.

    Raises:
        ConfigError: There is no folder of id maps, or the shards have no id maps.
        DataError: The COCO file cannot be used, or two images share an id map.
        MissingPackageError: A package that the source of regions needs is not installed.
    """

    def __init__(self, config: Config, images: ImageList) -> None:
        self.config = config
        self.images = images
        source = config.regions.source
        maps = config.regions.maps
        if source == "maps" and not Path(maps).is_dir():
            raise ConfigError(f"regions.maps is {maps}, which is not a folder; name the one with the id maps")
        if source == "maps":
            require_own_maps(maps, images.names)
        if source == "shards" and (images.shards is None or not images.shards.has_maps):
            raise ConfigError(
                "regions.source is shards, but --data names no shards with id maps; see: plrc shard --help"
            )
        if source in ("slic", "felzenszwalb"):
            _import_segmentation()
        self.masks = read_coco_masks(maps, images, config.data.channels) if source == "coco" else None

    def __call__(self, position: int) -> Tensor:
        """Return the regions of an image.

        Args:
            position: Position of the image in the list.

        Returns:
            Ids 0 .. k - 1, -1 unlabelled: int16 [size, size]; a grid without noise is [n, n].

        Raises:
            RegionError: The image has no regions.
            DecodeError: The image (for superpixels) or its shard (for id maps in shards) cannot be read.
        """
        config = self.config.regions
        name = self.images.names[position]
        if config.source == "grid":
            ids = grid_regions(config.grid)
        elif config.source == "maps":
            ids = self._read_map(config, name, position)
        elif config.source == "shards":
            ids = self._read_shard_map(config, name, position)
        else:
            ids = renumber(self._compute_ids(config, name, position), name)
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
        # the streams 1 to 4 are for the four kinds of noise; stream 0 draws the regions
        generators = [generator(self.config.seed, "regions", stream, key) for stream in (1, 2, 3, 4)]
        resized = resize_nearest(ids.numpy(), config.map_size)
        return renumber(add_noise(resized, config, generators), name)

    def _read_map(self, config: RegionConfig, name: str, position: int) -> Tensor:
        path = find_map(config.maps, name)
        if path is None:
            wanted = map_path(config.maps, name)
            raise RegionError(
                f"image {name} has no id map: write {wanted} (or .npz, .npy), or set another regions.source"
            )
        return load_regions(path, config.map_size, header=self._header_reader(position))

    def _read_shard_map(self, config: RegionConfig, name: str, position: int) -> Tensor:
        assert self.images.shards is not None  # checked by __init__
        content = self.images.shards.read_map(position)
        if content is None:
            raise RegionError(f"image {name} has no id map in its shard; write the shards with plrc shard --maps")
        return load_regions(io.BytesIO(content), config.map_size, name, self._header_reader(position))

    def _header_reader(self, position: int) -> Callable[[], Header]:
        return partial(self.images.read_header, position, self.config.data.channels)

    def _compute_ids(self, config: RegionConfig, name: str, position: int) -> NDArray[Any]:
        size = config.map_size
        rng = generator(self.config.seed, "regions", 0, _image_key(name))
        if config.source == "voronoi":
            return voronoi_regions(config.count, size, rng)
        if config.source == "boxes":
            return box_regions(config.count, size, rng)
        if self.masks is not None:
            objects = self.masks.objects(name, size)  # > 0 an object, 0 background, -1 a crowd
            return np.maximum(objects, 0) - 1  # background and crowds are unlabelled
        pixels = self._load_pixels(position, size)
        if config.source == "slic":
            return slic_regions(pixels, config.count)
        return felzenszwalb_regions(pixels, config.scale)

    def _load_pixels(self, position: int, size: int) -> NDArray[np.uint8]:
        """Decode the image and resize it to its id map: uint8 [size, size, C].

        The loader's own image is not used, because its size depends on the settings of the views.
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
    """Draw `count` uniform random sites; each cell of the map has the id of the nearest site: [size, size]."""
    sites = rng.random((count, 2))
    centers = (np.arange(size) + 0.5) / size
    row_distance = (sites[:, 0, None] - centers) ** 2  # [count, size]
    column_distance = (sites[:, 1, None] - centers) ** 2
    return np.asarray((row_distance[:, :, None] + column_distance[:, None, :]).argmin(axis=0))


def box_regions(count: int, size: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw `count` boxes of random sizes and places, small ones on top of large ones: [size, size], -1 outside."""
    sides = rng.uniform(*_BOX_SIDES, (count, 2))
    start = rng.random((count, 2)) * (1 - sides)
    corners = np.rint(np.stack([start, start + sides]) * size).astype(np.int64)  # [2, count, 2]
    ids = np.full((size, size), -1, dtype=np.int64)
    for i in np.argsort(-sides.prod(axis=1)):
        (top, left), (bottom, right) = corners[:, i]
        ids[top:bottom, left:right] = i
    return ids


def slic_regions(pixels: NDArray[np.uint8], count: int) -> NDArray[np.int64]:
    """Compute about `count` SLIC superpixels (Achanta et al. 2012) of pixels [size, size, C]: ids [size, size].

    RGB is compared in Lab; other channels as they are.
    """
    slic = _import_segmentation().slic
    compactness = _SLIC_COMPACTNESS if pixels.shape[2] == RGB_CHANNELS else _SLIC_CHANNEL_COMPACTNESS
    ids = slic(pixels, n_segments=count, compactness=compactness, sigma=_SLIC_SIGMA, start_label=0, channel_axis=-1)
    return np.asarray(ids, dtype=np.int64)


def felzenszwalb_regions(pixels: NDArray[np.uint8], scale: float) -> NDArray[np.int64]:
    """Compute the graph-based segments of Felzenszwalb and Huttenlocher (2004).

    Args:
        pixels: [size, size, C].
        scale: Their parameter k: larger for fewer and larger segments.

    Returns:
        Ids [size, size]. A segment smaller than 1/256 of the map is merged with its neighbor.
    """
    smallest = int(pixels.shape[0] * pixels.shape[1] * _FELZENSZWALB_MIN_AREA)
    segment = _import_segmentation().felzenszwalb
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Got image with third dimension", RuntimeWarning)  # more than three channels
        ids = segment(pixels, scale=scale, sigma=_FELZENSZWALB_SIGMA, min_size=smallest, channel_axis=-1)
    return np.asarray(ids, dtype=np.int64)


def _import_segmentation() -> Any:
    """Return the module skimage.segmentation. Raises MissingPackageError."""
    try:
        from skimage import segmentation
        from skimage.segmentation import felzenszwalb, slic  # noqa: F401 - otherwise imported only when first used
    except ImportError as error:
        raise MissingPackageError("superpixels", "scikit-image") from error
    return segmentation


def _image_key(name: str) -> int:
    """Return the key of an image's random numbers: a hash of its name, which does not depend on the other images."""
    digest = hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
