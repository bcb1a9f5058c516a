"""What the explorer's page shows: images, networks (those of a run by step, and others), their features, in a budget.

Layer 5: imports engine and below. Reads images and checkpoints; `explorer_page.py` writes the page, `pictures.py`
PNG files.

Shapes: H x W an image as the networks see it in pixels, D components of a feature, t the lattice's stride in them.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from plrc.config import Config, DataConfig
from plrc.data.image_files import DecodeError
from plrc.data.layouts import IMAGE_EXTENSIONS, file_extension
from plrc.data.sources import ImageList, find_images
from plrc.engine.checkpoint import checkpoints, load_checkpoint
from plrc.errors import PlrcError
from plrc.model import Backbone, build_backbone
from plrc.model.user_code import trusted_backbone
from plrc.model.weights import Weights, load_into
from plrc.text import printable
from plrc.visualize.dense_features import (
    STRIDES,
    CompressedFeatures,
    compress,
    dense_features,
    fitted_size,
    native_stride,
)

ROLES = ("student", "teacher")
_SHOWN, _THUMBNAIL = 512, 72  # longer side of the pictures in the page, in pixels
_QUALITY = 82  # of their JPEG
_PAGE = 400_000  # bytes of everything else in a page: its text, the samples' pictures
_FEWEST = 16  # components that are kept at least

Progress = Callable[[int, int], None]
T = TypeVar("T")


@dataclass(frozen=True)
class ExplorerNetwork:
    """A network to look at. label: the name of its panel; step: its place on the slider, None for one of no step.

    load: the network, and which of its levels to show.
    """

    label: str
    step: int | None
    load: Callable[[], tuple[Backbone, int]]

    @property
    def title(self) -> str:
        return self.label if self.step is None else f"{self.label}, step {self.step}"


@dataclass(frozen=True)
class ExplorerImage:
    """An image of the page. pixels: uint8 [3, H, W] as the networks see it; jpeg, thumbnail: files for the reader."""

    name: str
    pixels: Tensor
    jpeg: bytes
    thumbnail: bytes


@dataclass(frozen=True)
class ExplorerConfig:
    """How fine the features are. size: the longer side of an image as the networks see it, in pixels; stride: t;
    width: D; steps: how many of the run's checkpoints; megabytes: of the page."""

    size: int
    stride: int = 8
    width: int = 128
    steps: int = 5
    megabytes: float = 25.0

    def __post_init__(self) -> None:
        if self.stride not in STRIDES:
            raise PlrcError(f"--stride is {self.stride}; write {', '.join(map(str, STRIDES[:-1]))} or {STRIDES[-1]}")
        if self.size < 2 * self.stride:
            raise PlrcError(f"--size is {self.size}; write at least {2 * self.stride}, two places of the lattice")
        if self.width < _FEWEST or self.steps < 1 or self.megabytes <= 0:
            raise PlrcError(f"write --width {_FEWEST} or more, --steps 1 or more, and --megabytes above 0")


@dataclass(frozen=True)
class Explorer:
    """All that is looked at: `codes` has one entry a source. `notes`: what was left out or made smaller, and why."""

    images: list[ExplorerImage]
    networks: list[ExplorerNetwork]
    codes: list[CompressedFeatures]
    config: ExplorerConfig
    notes: list[str]


def named_images(given: Sequence[str], limit: int) -> tuple[ImageList, list[int]]:
    """The images that --images names (a folder, glob, list or COCO file; or image files), and which of them to show."""
    files = [path for path in given if Path(path).is_file() and file_extension(path) in IMAGE_EXTENSIONS]
    if not given:
        raise PlrcError("no images named: write --images FOLDER, or name image files")
    if len(files) == len(given):
        root = str(Path(files[0]).absolute().parent)
        names = dict.fromkeys(str(Path(path).absolute()) for path in files)
        inside = all(str(Path(name).parent) == root for name in names)
        found = ImageList(root, tuple(Path(name).name if inside else name for name in names), "files")
    elif len(given) == 1:
        found = find_images(DataConfig(source=given[0]))
    else:
        wrong = next(path for path in given if path not in files)
        raise PlrcError(f"{wrong} is not an image file; name image files, or one folder, glob or list alone")
    return found, found.evenly_spaced(limit)


def run_networks(run: Path, steps: int, backbone: str = "") -> list[ExplorerNetwork]:
    """Student and teacher of at most `steps` checkpoints, evenly spread, the newest among them; oldest first.

    `backbone`: the function of a backbone of your own; the one that the run names is not imported for that alone.
    """
    found = checkpoints(run)
    if not found:
        hint = "name the folder of a run that has saved one" if run.is_dir() else "there is no such folder"
        raise PlrcError(f"{run} holds no checkpoint; {hint}")
    return [_member(path, role, backbone) for path in _spread(found, steps) for role in ROLES]


def _member(path: Path, role: str, named: str) -> ExplorerNetwork:
    def load() -> tuple[Backbone, int]:
        state = load_checkpoint(path)
        model = Config.from_dict(state["config"]).model
        backbone = build_backbone(trusted_backbone(model.backbone, named, "--backbone {}"), model.layer4_stride)
        load_into(backbone, Weights(state[role], f"{path} ({role})", {}))
        return backbone, model.stride

    return ExplorerNetwork(role, int(path.stem.removeprefix("step_")), load)


def build_explorer(
    images: ImageList,
    positions: Sequence[int],
    data: DataConfig,
    sources: Sequence[ExplorerNetwork],
    budget: ExplorerConfig,
    device: torch.device,
    progress: Progress,
) -> Explorer:
    """Read the images and compute their features by every source; progress(done, total) counts images times networks.

    `data`: how the run decodes images (`percentiles`, `max_megapixels`), so that its networks see what they know.
    Images that cannot be read are left out and named. Raises PlrcError where none can be read, where a network cannot
    be used, and where the page would be too large whatever is made smaller.
    """
    read = [_picture(images, position, data, budget) for position in positions]
    pictures = [one for one in read if isinstance(one, ExplorerImage)]
    notes = [one for one in read if isinstance(one, str)]
    if not pictures:
        raise PlrcError(f"none of the {len(positions)} images can be read; {notes[0].removeprefix('left out ')}")
    fitted, kept = _fit(budget, pictures, sources)
    if fitted != budget:
        notes.append(
            f"to stay below {budget.megabytes:g} MB: {_difference(budget, fitted)} (more room with --megabytes, "
            "fewer images with --limit)"
        )
    if fitted.stride != budget.stride:  # the lattice's sides follow from the stride
        pictures = [replace(p, pixels=_scaled(p.pixels, fitted)) for p in pictures]
    codes: dict[int, CompressedFeatures] = {}
    newest = max((i for i, s in enumerate(kept) if s.step is not None), key=lambda i: kept[i].step or 0, default=0)
    order = [newest, *(i for i in range(len(kept)) if i != newest)]
    like = None
    for done, i in enumerate(order):
        backbone, level = kept[i].load()
        backbone = backbone.to(device).eval()
        own = native_stride(backbone, level)
        features = []
        for number, picture in enumerate(pictures):
            features.append(dense_features(backbone, level, own, picture.pixels, fitted.stride).half())
            progress(done * len(pictures) + number + 1, len(kept) * len(pictures))
        codes[i] = compress(features, fitted.width, like)
        like = like or [codes[i].colors(image) for image in range(len(pictures))]
    return Explorer(pictures, kept, [codes[i] for i in range(len(kept))], fitted, notes)


def _picture(images: ImageList, position: int, data: DataConfig, budget: ExplorerConfig) -> ExplorerImage | str:
    """The image, or the sentence that says why it is left out."""
    name, least = printable(images.names[position]), max(_SHOWN, budget.size)
    try:
        image = images.decode(position, data, least)
    except DecodeError as error:
        return f"left out {name}: {error.reason}"
    shown = Image.fromarray(image.permute(1, 2, 0).numpy())
    return ExplorerImage(name, _scaled(image, budget), _jpeg(shown, _SHOWN), _jpeg(shown, _THUMBNAIL))


def _scaled(image: Tensor, budget: ExplorerConfig) -> Tensor:
    size = fitted_size(image.shape[1], image.shape[2], budget.size, budget.stride)
    return F.interpolate(image[None], size, mode="bilinear", antialias=True, align_corners=False)[0]


def _jpeg(image: Image.Image, longest: int) -> bytes:
    small, file = image.copy(), io.BytesIO()
    small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    small.save(file, "JPEG", quality=_QUALITY)
    return file.getvalue()


def _fit(
    budget: ExplorerConfig, pictures: Sequence[ExplorerImage], sources: Sequence[ExplorerNetwork]
) -> tuple[ExplorerConfig, list[ExplorerNetwork]]:
    """The finest features that fit. A coarser lattice is the largest loss, fewer components or checkpoints less."""
    steps = sorted({source.step for source in sources if source.step is not None})
    strides = [t for t in STRIDES if budget.stride <= t <= max(budget.size // 2, budget.stride)]
    widths = [w for w in (budget.width, 64, 32, _FEWEST) if w <= budget.width]
    choices = []
    for stride, width, number in itertools.product(strides, widths, range(len(steps), 0, -1)):
        kept = [s for s in sources if s.step is None or s.step in _spread(steps, number)]
        fitted = replace(budget, stride=stride, width=width, steps=budget.steps if number == len(steps) else number)
        loss = math.log2((stride / budget.stride) ** 3 * (budget.width / width) * (len(steps) / number))
        choices.append((loss, _bytes(fitted, pictures, len(kept)), fitted, kept))
    fitting = [choice for choice in choices if choice[1] <= budget.megabytes * 1e6]
    if not fitting:
        least = min(size for _, size, _, _ in choices) / 1e6
        raise PlrcError(
            f"{len(pictures)} images need {least:.1f} MB at least, and --megabytes is {budget.megabytes:g}; "
            "write more megabytes, or fewer images with --limit"
        )
    return min(fitting, key=lambda choice: choice[0])[2:]


def _spread(found: Sequence[T], number: int) -> list[T]:
    """At most `number` of them, evenly spread, the last among them."""
    number = min(number, len(found))
    return [found[len(found) - 1 - i * len(found) // number] for i in reversed(range(number))]


def _bytes(budget: ExplorerConfig, pictures: Sequence[ExplorerImage], sources: int) -> float:
    """Size of the page: base64 needs four characters for three bytes."""
    places = sum((p.pixels.shape[1] // budget.stride) * (p.pixels.shape[2] // budget.stride) for p in pictures)
    files = sum(len(p.jpeg) + len(p.thumbnail) for p in pictures)
    return (places * budget.width * sources + files) * 4 / 3 + _PAGE


def _difference(asked: ExplorerConfig, fitted: ExplorerConfig) -> str:
    changes = []
    if fitted.stride != asked.stride:
        changes.append(f"one place every {fitted.stride} pixels instead of every {asked.stride}")
    if fitted.width != asked.width:
        changes.append(f"{fitted.width} components a place instead of {asked.width}")
    if fitted.steps != asked.steps:
        changes.append(f"{fitted.steps} checkpoint{'s' if fitted.steps > 1 else ''} instead of {asked.steps}")
    return ", ".join(changes)


def sides(explorer: Explorer) -> list[tuple[int, int]]:
    """(h, w) of each image's lattice."""
    return [(codes.shape[0], codes.shape[1]) for codes in explorer.codes[0].codes]
