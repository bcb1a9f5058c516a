"""The proofs behind a receipt: equal tensors, bit for bit, and equal features; what differs is named.

Layer 5: imports model and below. Shapes: B images, H x W pixels, C channels.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from plrc.errors import PlrcError
from plrc.model.backbone import build_backbone
from plrc.model.naming import COUNTER
from plrc.model.user_code import describe_error
from plrc.text import some

TOLERANCE = 1e-5  # of the largest feature: the same float32 operations, in whatever order the library runs them
SIZE = (96, 96)  # of the images that features are compared on
Features = Callable[[Tensor], Mapping[int, Tensor]]


@dataclass(frozen=True)
class Proof:
    """What was compared with the run's student, and where."""

    tensors: int
    """In the file, each equal bit for bit."""
    largest_difference: float | None = None
    """Between features of the target's network and plrc's, relative to the largest feature; None: not compared."""
    left_random: tuple[str, ...] = ()
    """Tensors of the target's network that a backbone does not have."""
    tolerance: float = TOLERANCE
    networks: tuple[str, ...] = ()
    """Of the target, that the file was loaded into."""
    unverified: str = ""
    """Why it was loaded into none: then names and shapes were checked by rule."""
    absent: tuple[str, ...] = ()
    """Tensors of the backbone that the file leaves out by rule."""


def installed(package: str) -> str:
    """The version of a package that is installed here; empty if it is not."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def check_tensors(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str) -> None:
    """Raise PlrcError, which names the tensors, unless both hold the same names with the same bits."""
    check_names(found, expected, where)
    differ = [f"{name} ({how})" for name, tensor in expected.items() if (how := _difference(found[name], tensor))]
    if differ:
        raise PlrcError(f"{where} differs from the run in {len(differ)} tensors: {some(differ)}; export again")


def check_names(found: Iterable[str], expected: Iterable[str], where: str) -> None:
    """Raise PlrcError unless both are the same names, in any order."""
    found, expected = list(found), list(expected)
    lacks, more = sorted({*expected} - {*found}), sorted({*found} - {*expected})
    faults = [f"it {word} {some(names)}" for word, names in (("lacks", lacks), ("has beside them", more)) if names]
    if faults:
        raise PlrcError(f"{where} does not hold the run's tensors: {' and '.join(faults)}; export again")


def check_features(
    theirs: Features, ours: Features, tolerance: float = TOLERANCE, size: tuple[int, int] = SIZE
) -> float:
    """The largest difference of two networks in eval mode, relative to the largest feature of its level.

    Raises PlrcError above `tolerance`, for other levels or shapes, for features that are not finite, and where a
    network does not take images of `size`.
    """
    largest = 0.0
    try:
        with torch.inference_mode():
            images = example_images(size)
            a, b = theirs(images), ours(images)
    except Exception as error:  # networks of other libraries and of the user's own may raise anything
        raise PlrcError(
            f"features of images [2, 3, {size[0]}, {size[1]}] cannot be compared: {describe_error(error)}"
        ) from error
    if {s: f.shape for s, f in a.items()} != {s: f.shape for s, f in b.items()}:
        raise PlrcError("the exported network has features of other levels or shapes than the run's")
    for stride, features in b.items():
        difference = float((a[stride] - features).abs().max() / features.abs().max().clamp_min(1e-12))
        if not math.isfinite(difference) or difference > tolerance:
            raise PlrcError(
                f"the exported network's features of stride {stride} differ from the run's by {difference:.1e} of the "
                f"largest (allowed {tolerance:.0e})"
            )
        largest = max(largest, difference)
    return largest


def features_of(name: str, student: Mapping[str, Tensor], strides: Iterable[int] = ()) -> Features:
    """The run's own backbone in eval mode, at some strides or at all that it has, with layer4 as its library has it."""
    net = build_backbone(name)
    try:
        net.net.load_state_dict(student)
    except RuntimeError as error:  # names or shapes that differ
        raise PlrcError(f"the run's student is not a {name}: {error}") from error
    net.eval()
    wanted = tuple(strides) or tuple(net.channels)
    return lambda images: {stride: features for stride, features in net(images).items() if stride in wanted}


def example_images(size: int | tuple[int, int] = SIZE) -> Tensor:
    """[2, 3, *size] in normalized units: noise and a smooth picture, the same in every call."""
    height, width = (size, size) if isinstance(size, int) else size
    noise = torch.randn(3, height, width, generator=torch.Generator().manual_seed(0))
    y, x = torch.meshgrid(torch.linspace(0, 3, height), torch.linspace(0, 2, width), indexing="ij")
    smooth = torch.stack([torch.sin(x + y), torch.cos(2 * x), torch.sin(x * y)])
    return torch.stack([noise, smooth])


def content_hash(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values: the same for the same backbone in whatever file it is.

    Names are the backbone's own. BatchNorm's step counters do not count: not every format has them.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        if not name.endswith(COUNTER):
            tensor = state[name].detach().cpu().contiguous()
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _difference(found: Tensor, expected: Tensor) -> str:
    """How a tensor differs; empty if it has the same bits."""
    if found.dtype != expected.dtype:
        return f"{found.dtype} instead of {expected.dtype}".replace("torch.", "")
    if found.shape != expected.shape:
        return f"{list(found.shape)} instead of {list(expected.shape)}"
    a, b = found.cpu().contiguous().reshape(-1), expected.cpu().contiguous().reshape(-1)
    if torch.equal(a.view(torch.uint8), b.view(torch.uint8)):
        return ""
    if found.dim() == 4 and torch.equal(found.flip(1), expected):
        return "its input channels are in reverse order"
    return f"values differ by up to {float((a.double() - b.double()).abs().max()):.1e}"
