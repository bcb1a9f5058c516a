"""Settings of what is trained on: images, views of them, and their regions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from plrc.errors import ConfigError
from plrc.pixels import IMAGENET, RGB_CHANNELS, PixelStatistics, given_statistics
from plrc.settings import (
    require,
    require_at_least,
    require_between,
    require_pattern,
    require_positive,
    require_range,
    setting,
)

MAX_CHANNELS = 1024


@dataclass(frozen=True)
class DataConfig:
    """Which images to train on."""

    source: str = setting("", alias="data")
    """Images to train on: a folder (with subfolders), a glob, a .txt list, a COCO .json or a Pascal VOC folder; or tar
    shards: a folder written by plrc shard, a pattern such as x-{000..099}.tar, or a URL (s3://, gs://, https://) of
    either."""
    layout: Literal["auto", "folder", "glob", "list", "coco", "voc", "shards"] = "auto"
    """Layout of `source`. auto: detect it."""
    split: str = ""
    """VOC only: name of the list in ImageSets/Main, such as trainval. Empty: all images."""
    exclude: str = ""
    """Images to leave out of training: a text file with one path or file name per line, a COCO .json, or a folder or
    glob of images."""
    held_out: int = 64
    """Images held out of training for the health checks; a tenth of all images if that is fewer. 0: none."""
    group: str = setting("", metavar="folder|PATTERN")
    """Images that are held out together or not at all, such as frames of one video: those of a folder, or those in
    whose path the first group of a regular expression is the same, such as (.+)_MOV. Empty: no groups."""
    pages: Literal["first", "all"] = "first"
    """Which pages of a TIFF file are used. all: each page is an image of its own; page 2 of x.tif is called x.tif#2.
    Thumbnails and masks in the file do not count."""
    channels: int = 3
    """Channels of an image. 3: images are read as RGB. Another number (1: gray, 5: multispectral, ...): TIFF files, and
    NumPy arrays (.npy) [H, W, channels] or [channels, H, W], are read as they are; a file with another number of
    channels counts as unreadable."""
    rescale_percentiles: tuple[float, float] = (0.5, 99.5)
    """16-bit images: the gray values at these two percentiles of an image become 0 and 255. With `channels` other than
    3, those of each channel, because channels may have different units."""
    max_megapixels: float = 200.0
    """Images with more megapixels than this count as unreadable; protects against decompression bombs."""
    max_unreadable_fraction: float = 0.1
    """Stop the run when a larger fraction of the images, or of their id maps, cannot be read."""
    mean: tuple[float, ...] = ()
    """Mean of red, green and blue, on the scale 0 to 1, that pixels are normalized with. Empty: what the weights of
    `model.init` were trained with (as their file says, else as timm's configuration of the network says), or
    ImageNet's. With `channels` other than 3: a number for each channel; empty: measured at the start of a run."""
    std: tuple[float, ...] = ()
    """Standard deviation of red, green and blue (of each channel), on the scale 0 to 1; set it together with `mean`."""

    def __post_init__(self) -> None:
        require_at_least("data.held_out", self.held_out, 0)
        require_pattern("data.group", self.group)
        require_between("data.channels", self.channels, 1, MAX_CHANNELS)
        require_range("data.rescale_percentiles", self.rescale_percentiles, 0, 100)
        require_positive("data.max_megapixels", self.max_megapixels)
        require_between("data.max_unreadable_fraction", self.max_unreadable_fraction, 0, 1)
        given_statistics(self.mean, self.std, channels=self.channels)

    @property
    def pixels(self) -> PixelStatistics:
        """The statistics that pixels are normalized with: `mean` and `std`, or ImageNet's.

        At the start of a run, the statistics of start weights, or of the images, have been written into `mean` and
        `std`.

        Raises:
            ConfigError: Images are not RGB, and `mean` and `std` are empty.
        """
        given = given_statistics(self.mean, self.std, channels=self.channels)
        if given is None and self.channels != RGB_CHANNELS:
            raise ConfigError(
                f"data.mean and data.std are needed for images of {self.channels} channels: a number for each channel; "
                f"plrc scan DIR --channels {self.channels} measures them"
            )
        return given or IMAGENET


@dataclass(frozen=True)
class ViewConfig:
    """Crops and color augmentation of views A (student), B (teacher, overlaps with A) and C (teacher, independent)."""

    size: int = 224
    """Width and height of a view, in pixels."""
    scale: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest area of a crop, as a fraction of the image's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest aspect ratio of a crop (width / height)."""
    tiles: int = 0
    """Large images with small objects: side in pixels of a square that is cut out of the image at a random place, each
    time another one; views are cut from it, so that objects keep their size. A smaller image is used whole. 0: views
    are cut from the whole image."""
    flip_prob: float = 0.5
    """Probability of a horizontal flip."""
    overlap: float = 0.5
    """Smallest overlap of views A and B: area of their intersection / area of the larger one."""
    overlap_tries: int = 100
    """Number of crops to try for view B. If none of them overlaps enough with A, B takes the crop of A."""
    jitter_prob: float = 0.8
    """Probability of color jitter."""
    brightness: float = 0.4
    """Largest relative change of brightness."""
    contrast: float = 0.4
    """Largest relative change of contrast."""
    saturation: float = 0.4
    """Largest relative change of saturation."""
    hue: float = 0.1
    """Largest shift of the hue, as a fraction of the color circle."""
    gray_prob: float = 0.2
    """Probability of a grayscale view."""
    blur_prob: float = 0.5
    """Probability of Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest standard deviation of the blur, in pixels."""
    teacher_color: bool = True
    """Whether the colors of views B and C are changed too, as in the paper. Without, the teacher sees them as they are,
    neither jittered nor gray nor blurred."""

    def __post_init__(self) -> None:
        require_at_least("views.size", self.size, 16)
        require_range("views.scale", self.scale, 1e-4, 1)
        require(self.tiles == 0 or self.tiles >= 16, f"views.tiles must be 0 or >= 16, got {self.tiles}")
        require_range("views.ratio", self.ratio, 0.05, 20)
        require_range("views.blur_sigma", self.blur_sigma, 0.01, 50)
        for name in ("overlap", "flip_prob", "jitter_prob", "gray_prob", "blur_prob"):
            require_between(f"views.{name}", getattr(self, name), 0, 1)
        for name in ("brightness", "contrast", "saturation"):
            require_between(f"views.{name}", getattr(self, name), 0, 1)
        require_between("views.hue", self.hue, 0, 0.5)
        require_at_least("views.overlap_tries", self.overlap_tries, 1)


@dataclass(frozen=True)
class RegionConfig:
    """The regions of an image: points in the same region are positives of each other."""

    source: Literal["grid", "voronoi", "boxes", "slic", "felzenszwalb", "maps", "coco", "shards"] = "grid"
    """grid: equal cells. voronoi, boxes: random cells or boxes. slic, felzenszwalb: superpixels (need scikit-image).
    maps: one id map per image (PNG or npz) in the folder `maps`. coco: the masks in the COCO file `maps`. shards: the
    id maps that plrc shard stored with the images."""
    grid: int = 4
    """grid: cells per side (paper: 4, which gives 16 regions)."""
    count: int = 16
    """voronoi, boxes, slic: number of regions per image (slic: approximately)."""
    scale: float = 200.0
    """felzenszwalb: a larger scale gives fewer and larger segments."""
    maps: str = ""
    """For the source maps: folder of id maps with the same relative names as the images (a/b.jpg -> a/b.png); in a PNG,
    0 means unlabelled. For the source coco: the JSON file with the masks."""
    map_size: int = 64
    """Cells per side of an id map; maps from files are resized to it. The source grid uses it only with noise."""
    merge: float = 0.0
    """Noise: probability that a region is merged into a neighbor."""
    split: float = 0.0
    """Noise: probability that a region is split into two halves."""
    jitter: float = 0.0
    """Noise: standard deviation of the displacement of boundaries, as a fraction of the image's sides."""
    reassign: float = 0.0
    """Noise: fraction of the cells of an id map that get the id of a random region."""

    def __post_init__(self) -> None:
        require_at_least("regions.grid", self.grid, 1)
        require_at_least("regions.map_size", self.map_size, 4)
        require_between("regions.count", self.count, 1, self.map_size**2)
        require_positive("regions.scale", self.scale)
        for name in ("merge", "split", "jitter", "reassign"):
            require_between(f"regions.{name}", getattr(self, name), 0, 1)
        if self.source == "maps":
            require(self.maps != "", "regions.source maps needs regions.maps: the folder with the id maps")
        elif self.source == "coco":
            require(self.maps != "", "regions.source coco needs regions.maps: the COCO file with the masks")
        else:
            require(self.maps == "", f"regions.maps needs regions.source maps or coco, got {self.source}")

    @property
    def noisy(self) -> bool:
        """Whether any kind of noise is on."""
        return max(self.merge, self.split, self.jitter, self.reassign) > 0
