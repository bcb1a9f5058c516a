"""What an export target is: a library, or a file format, that a trained backbone is written for.

Shapes: B images, H x W pixels, C channels.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from plrc.export.formats import read_tensors, write_plain
from plrc.model.naming import COUNTER_SUFFIX, Naming
from plrc.pixels import RGB_CHANNELS, PixelStatistics

LEVELS = (4, 8, 16, 32)  # strides of the features that every library's ResNet gives
IMAGE_SIZE = (96, 96)  # height and width of the images that features are compared on
TOLERANCE = 1e-5  # of the largest feature: the same float32 operations, in another order
State = dict[str, Tensor]
Features = Callable[[Tensor], Mapping[int, Tensor]]


class LibraryUnavailable(Exception):
    """The target's library is installed but cannot be used here, so the exported file cannot be loaded into it."""


@dataclass(frozen=True)
class LoadedNetwork:
    """A network of the target's library, in eval mode, into which the exported file was loaded.

    Attributes:
        name: What it is, as the receipt names it.
        tensors: Its tensors under the names of the file, without those that a backbone does not have.
        features: images [B, N, H, W] of N channels -> {stride: features [B, C, H / stride, W / stride]}.
        strides: Strides of the features to compare with the run's; empty: all that the run's backbone has.
        sizes: Heights and widths of the images to compare on.
        keeps_counters: Whether it has BatchNorm's step counters and loads them.
        left_random: Names of its tensors that a backbone does not have and that keep their random values.
    """

    name: str
    tensors: State
    features: Features
    strides: tuple[int, ...] = LEVELS
    sizes: tuple[tuple[int, int], ...] = (IMAGE_SIZE,)
    keeps_counters: bool = True
    left_random: tuple[str, ...] = ()


@dataclass(frozen=True)
class Target:
    """A library or format to export to. A new one is a module with a `TARGET` and one row in `plrc.export.targets`.

    `backbone` is always the run's `model.backbone`, `student` the backbone's tensors under its own names.

    Attributes:
        name: As `plrc export --to` takes it.
        package: The Python package whose networks the file is loaded into.
        version: () -> the version of that package; empty if it is not installed.
        rename: (backbone, student) -> the tensors under the names in the file. Raises ExportError where the library
            does not have this backbone.
        load: (file, backbone, tensors in the file, channels of the images) -> networks of the library with the file
            loaded as its users load it. Raises LibraryUnavailable, or ExportError where the library does not take the
            file.
        instructions: (backbone, statistics of pixels) -> what the user has to set in the library, one line per setting.
        endings: What the file's name may end in, the default first; empty if the export is a folder.
        file_in_folder: The name of the weights file where the export is a folder.
        pixel_max: The largest value of a pixel that the library's detectors normalize: 1 or 255.
        naming: The rule for the names of a ResNet's tensors, which the file is checked against.
        keeps_counters: Whether the file holds BatchNorm's step counters.
        tolerance: Largest difference of features that is allowed, relative to the largest feature.
        write: (file, backbone, student, metadata) -> writes the file, and what belongs to it in the same folder.
        read: file -> the tensors in it.
        rounded: Tensors -> the same in the precision of the file, as float32; different only where the file is to hold
            half precision.
    """

    name: str
    package: str
    version: Callable[[], str]
    rename: Callable[[str, State], State]
    load: Callable[[Path, str, State, int], list[LoadedNetwork]]
    instructions: Callable[[str, PixelStatistics], list[str]]
    endings: tuple[str, ...] = (".safetensors", ".pt")
    file_in_folder: str = ""
    pixel_max: int = 1
    naming: Naming | None = None
    keeps_counters: bool = True
    tolerance: float = TOLERANCE
    write: Callable[[Path, str, State, dict[str, str]], None] = write_plain
    read: Callable[[Path], State] = read_tensors
    rounded: Callable[[State], State] = dict

    def settings(self, backbone: str, pixels: PixelStatistics) -> dict[str, Any]:
        """Pixels as the run saw them, and `set`: what has to be set in the library."""
        return pixel_settings(pixels, self.pixel_max) | {"set": self.instructions(backbone, pixels)}


def pixel_settings(pixels: PixelStatistics, pixel_max: int) -> dict[str, Any]:
    """Order of channels, mean and standard deviation of pixels from 0 to `pixel_max`, as the run normalized them."""
    return {
        "channels": "RGB" if pixels.channels == RGB_CHANNELS else f"{pixels.channels}, as in the files",
        "pixels": f"0 to {pixel_max}",
        "mean": [round(value * pixel_max, 8) for value in pixels.mean],
        "std": [round(value * pixel_max, 8) for value in pixels.std],
    }


def without_counters(state: Mapping[str, Tensor]) -> State:
    """The tensors without BatchNorm's step counters, which change no feature."""
    return {name: tensor for name, tensor in state.items() if not name.endswith(COUNTER_SUFFIX)}


@contextlib.contextmanager
def logging_disabled(level: int) -> Iterator[None]:
    """Silence a library that logs a line for every tensor, up to `level`."""
    before = logging.root.manager.disable
    logging.disable(level)
    try:
        yield
    finally:
        logging.disable(before)
