"""What an explorer shows before anything is computed: its images, its networks, and how fine their features are.

Shapes: H x W pixels of an image as the networks see it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from plrc.config import Config, DataConfig
from plrc.data.channels import NPY_EXTENSION, shown_pixels
from plrc.data.image_kinds import IMAGE_EXTENSIONS, file_extension
from plrc.data.sources import ImageList, find_images
from plrc.engine.checkpoint import checkpoints, load_checkpoint
from plrc.errors import DataError, RunError
from plrc.model import Backbone, build_backbone
from plrc.model.user_code import trusted_backbone
from plrc.model.weights import Weights, load_into
from plrc.pixels import RGB_CHANNELS
from plrc.settings import require
from plrc.visualize.dense_features import STRIDES

MIN_COMPONENTS = 16
ROLES = ("student", "teacher")

T = TypeVar("T")


@dataclass(frozen=True)
class ExplorerConfig:
    """How fine the features of an explorer are, and how large its page may be.

    Attributes:
        image_size: Longer side of an image as the networks see it, in pixels.
        stride: Pixels between two places of the feature grid.
        components: Numbers that are kept of each feature.
        checkpoints: The most checkpoints of the run.
        megabytes: The largest page.
    """

    image_size: int
    stride: int = 8
    components: int = 128
    checkpoints: int = 5
    megabytes: float = 25.0

    def __post_init__(self) -> None:
        require(self.stride in STRIDES, f"--stride must be one of {', '.join(map(str, STRIDES))}, got {self.stride}")
        smallest = 2 * self.stride
        require(
            self.image_size >= smallest,
            f"--size must be >= {smallest} (two places of the feature grid), got {self.image_size}",
        )
        require(self.components >= MIN_COMPONENTS, f"--width must be >= {MIN_COMPONENTS}, got {self.components}")
        require(self.checkpoints >= 1, f"--steps must be >= 1, got {self.checkpoints}")
        require(self.megabytes > 0, f"--megabytes must be > 0, got {self.megabytes:g}")


@dataclass(frozen=True)
class ExplorerNetwork:
    """A network whose features are shown.

    Attributes:
        label: The name of its panel in the page.
        step: Its place on the slider; None for a network that does not belong to a step of the run.
        load: Returns the network, and the level whose features are shown.
    """

    label: str
    step: int | None
    load: Callable[[], tuple[Backbone, int]]

    @property
    def title(self) -> str:
        return self.label if self.step is None else f"{self.label}, step {self.step}"


@dataclass(frozen=True)
class ExplorerImage:
    """An image of the page.

    Attributes:
        name: Its name, on one line.
        pixels: uint8 [C, H, W] as the networks see it.
        jpeg: The file that the page shows.
        thumbnail: A small file of the same.
    """

    name: str
    pixels: Tensor
    jpeg: bytes
    thumbnail: bytes

    def array(self) -> NDArray[np.uint8]:
        """Return the pixels that are shown, as [H, W, 3]."""
        return shown_pixels(self.pixels)

    def grid_size(self, stride: int) -> tuple[int, int]:
        """Return (rows, columns) of the feature grid with this stride."""
        return self.pixels.shape[1] // stride, self.pixels.shape[2] // stride

    def place_at(self, point: tuple[float, float], stride: int) -> tuple[int, int]:
        """Return (row, column) of the place that holds a point (x, y), given as shares of the sides."""
        rows, columns = self.grid_size(stride)
        return min(int(point[1] * rows), rows - 1), min(int(point[0] * columns), columns - 1)


def named_images(names: Sequence[str], limit: int, channels: int = RGB_CHANNELS) -> tuple[ImageList, list[int]]:
    """Find the images that `--images` names, and choose at most `limit` of them, evenly spread.

    Args:
        names: Image files; or one folder, glob, list or COCO file.
        limit: The most images.
        channels: `data.channels` of the run.

    Returns:
        All images, and the positions of the chosen ones.

    Raises:
        DataError: There are no such images.
    """
    if not names:
        raise DataError("no images named: write --images FOLDER, or name image files")
    extensions = IMAGE_EXTENSIONS if channels == RGB_CHANNELS else (*IMAGE_EXTENSIONS, NPY_EXTENSION)
    others = [name for name in names if not (Path(name).is_file() and file_extension(name) in extensions)]
    if not others:
        images = _listed_files(names)
    elif len(names) == 1:
        images = find_images(DataConfig(source=names[0], channels=channels))
    else:
        raise DataError(f"{others[0]} is not an image file; name image files, or one folder, glob or list alone")
    return images, images.evenly_spaced(limit)


def _listed_files(names: Sequence[str]) -> ImageList:
    """List image files; their names are relative if all lie in one folder."""
    paths = list(dict.fromkeys(Path(name).absolute() for name in names))
    root = paths[0].parent
    if all(path.parent == root for path in paths):
        return ImageList(str(root), tuple(path.name for path in paths), "files")
    return ImageList(str(root), tuple(str(path) for path in paths), "files")


def run_networks(run: Path, count: int, backbone: str = "") -> list[ExplorerNetwork]:
    """List student and teacher of a run's checkpoints, oldest first.

    Args:
        run: The run folder.
        count: The most checkpoints; they are evenly spread, and the newest is always among them.
        backbone: The function of a backbone of your own, which must be named here again: code that only a run folder
            names is not imported.

    Raises:
        RunError: The folder has no checkpoint.
    """
    saved = checkpoints(run)
    if not saved:
        hint = "name the folder of a run that has saved a checkpoint" if run.is_dir() else "there is no such folder"
        raise RunError(f"{run} has no checkpoint; {hint}")
    networks = []
    for path in spread_evenly(saved, count):
        networks += [_saved_network(path, role, backbone) for role in ROLES]
    return networks


def _saved_network(path: Path, role: str, named_backbone: str) -> ExplorerNetwork:
    def load() -> tuple[Backbone, int]:
        state = load_checkpoint(path)
        config = Config.from_dict(state["config"])
        model = config.model
        backbone = build_backbone(
            trusted_backbone(model.backbone, named_backbone, "--backbone {}"), model.layer4_stride, config.data.channels
        )
        load_into(backbone, Weights(state[role], f"{path} ({role})", {}))
        backbone.pixels = config.data.pixels
        return backbone, model.largest_stride

    return ExplorerNetwork(role, int(path.stem.removeprefix("step_")), load)


def spread_evenly(items: Sequence[T], count: int) -> list[T]:
    """Choose at most `count` items, evenly spread, the last one among them."""
    count = min(count, len(items))
    last = len(items) - 1
    return [items[last - number * len(items) // count] for number in reversed(range(count))]
