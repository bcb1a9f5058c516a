"""Export of a fine-tuned detector to ONNX, checked in ONNX Runtime. Needs onnx, onnxruntime and onnxscript.

Shapes: B images, H x W pixels of C channels, N predictions per image.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import paste_masks_in_image

from plrc.data.image_errors import DecodeError
from plrc.data.sources import find_images
from plrc.errors import ConfigError, ExportError, MissingPackageError, PlrcError
from plrc.files import file_sha256, write_json
from plrc.machine import installed_version, plrc_version, versions
from plrc.model.user_code import describe_error
from plrc.scenes import render_scene
from plrc.transfer.detector_file import Detector, load_detector
from plrc.transfer.detectors.batched import batched_detector
from plrc.transfer.detectors.onnx_operators import translations
from plrc.transfer.detectors.torchvision import SIDE_MULTIPLE
from plrc.transfer.detectors.transformers import SquareDetector
from plrc.unproven import unproven_folder

OPSET = 18
BATCHES = (1, 3, 7)  # numbers of images that the file is checked with
MASK_SIDES = {"fpn": 28, "c4": 14}
SCORE_TOLERANCE = 1e-3
BOX_TOLERANCE = 0.5  # pixels of the image
MASK_TOLERANCE = 1e-2  # of the probability of a pixel
MAX_UNMATCHED = 0.02  # share of the predictions: those at a threshold, or of equal scores, may differ


@dataclass(frozen=True)
class DetectorReceipt:
    """What was exported and what was checked; `NAME.receipt.json` holds these fields.

    Attributes:
        file: Path of the ONNX file.
        sha256: SHA-256 of the file.
        model: Path of the model that was exported.
        detector: Value of `model.detector`.
        task: "detection" or "instances".
        classes: Names of the classes, by number.
        inputs: The inputs of the graph.
        outputs: Its outputs.
        batches: Numbers of images that were compared.
        images: Where the compared images are from.
        predictions: Number of predictions of PyTorch that were compared; an image in several batches counts in each.
        unmatched: How many of them have no counterpart in ONNX Runtime with the same class, a score within
            SCORE_TOLERANCE, corners within BOX_TOLERANCE and a mask within MASK_TOLERANCE; or how many of ONNX Runtime
            have none in PyTorch, if those are more.
        largest_score_difference: Between predictions and their counterparts.
        largest_box_difference: Between predictions and their counterparts, in pixels of the image.
        versions: Versions of the software.
    """

    file: str
    sha256: str
    model: str
    detector: str
    task: str
    classes: tuple[str, ...]
    inputs: dict[str, str]
    outputs: dict[str, str]
    batches: tuple[int, ...]
    images: str
    predictions: int
    unmatched: int
    largest_score_difference: float
    largest_box_difference: float
    versions: dict[str, str]

    def line(self) -> str:
        """The receipt in one line."""
        batches = ", ".join(map(str, self.batches))
        return (
            f"{self.file}: {self.detector}, {len(self.classes)} classes; in ONNX Runtime with {batches} images (of "
            f"{self.images}), {self.predictions - self.unmatched} of {self.predictions} predictions are PyTorch's; "
            f"scores differ by {self.largest_score_difference:.1e}, boxes by {self.largest_box_difference:.1e} px"
        )

    def advice(self) -> str:
        """Inputs and outputs as lines to read."""
        lines = [f"input {name}: {text}" for name, text in self.inputs.items()]
        lines += [f"output {name}: {text}" for name, text in self.outputs.items()]
        return "\n".join(lines)


def export_detector(run: str | Path, out: str | Path | None = None, backbone: str = "") -> DetectorReceipt:
    """Write the detector of a transfer run as ONNX, for any number of images at once, and check it in ONNX Runtime.

    Of its predictions for 1, 3 and 7 images, at most 2 % may differ from PyTorch's. The images are those of the run's
    data; if they are no longer there, generated scenes. NAME.receipt.json records the check, the
    inputs and the outputs.

    Args:
        run: Folder of a run of `plrc transfer detection` or `instances`, or its model.safetensors.
        out: The .onnx file to write. Default: RUN/exported/detector.onnx.
        backbone: The function that builds a backbone of your own; see `load_detector`.

    Returns:
        The receipt.

    Raises:
        RunError, WeightsError, ConfigError: The run, its model, `out` or `backbone` cannot be used.
        ExportError: PyTorch cannot write this detector as ONNX, or its predictions differ in ONNX Runtime.
        MissingPackageError: onnx, onnxruntime or onnxscript is not installed.

    Examples:
        >>> import plrc
        >>> receipt = plrc.export_detector("transfer/first", "detector.onnx")  # doctest: +SKIP
        >>> print(receipt.line())  # doctest: +SKIP
        detector.onnx: faster_rcnn, 7 classes; in ONNX Runtime with 1, 3, 7 images ...
    """
    detector = load_detector(run, "cpu", backbone)
    folder = detector.source.parent
    file = Path(out) if out is not None else folder / "exported" / "detector.onnx"
    if file.suffix != ".onnx" or file.is_dir():
        raise ConfigError(f"--out is {file}; name a file that ends in .onnx")
    model = detector.model.model
    images, origin = _images_to_compare(detector, max(BATCHES))
    try:
        with unproven_folder(file) as folder_of_proof:
            written = folder_of_proof / file.name
            _write(detector, prepare_batch(model, images[:2]), written)
            comparison = compare(written, detector, images)
            if comparison.predictions == 0:
                raise ExportError(
                    f"the detector predicts nothing on {len(images)} images ({origin}), so ONNX Runtime cannot be "
                    f"compared with PyTorch and {file} was not written; train it longer"
                )
            if comparison.unmatched > MAX_UNMATCHED * comparison.predictions:
                raise ExportError(
                    f"{comparison.unmatched} of {comparison.predictions} predictions differ between PyTorch and ONNX "
                    f"Runtime, so {file} was not written; the detector may be untrained, with many equal scores"
                )
            receipt = DetectorReceipt(
                file=str(file),
                sha256=file_sha256(written),
                model=str(detector.source),
                detector=detector.config.model.detector,
                task=detector.config.task,
                classes=detector.classes,
                inputs=describe_inputs(detector),
                outputs=_describe_outputs(detector),
                batches=BATCHES,
                images=origin,
                predictions=comparison.predictions,
                unmatched=comparison.unmatched,
                largest_score_difference=comparison.largest_score_difference,
                largest_box_difference=comparison.largest_box_difference,
                versions=versions() | {name: installed_version(name) for name in ("onnx", "onnxruntime")},
            )
            written.replace(file)
            write_json(file.with_name(f"{file.name}.receipt.json"), dataclasses.asdict(receipt))
    except OSError as error:
        raise ExportError(f"cannot write {file}: {error.strerror}") from error
    return receipt


def prepare_batch(model: nn.Module, images: Sequence[Tensor]) -> dict[str, Tensor]:
    """Resize images and put them into the inputs of the graph.

    Args:
        model: The detector.
        images: uint8 [C, h, w] of any sizes.

    Returns:
        The inputs by name.
    """
    pixels = [image.float() / 255 for image in images]
    if isinstance(model, SquareDetector):
        side = (model.test_side, model.test_side)
        squares = [F.interpolate(image[None], side, mode="bilinear", antialias=True) for image in pixels]
        return {"images": torch.cat(squares)}
    detector: Any = model
    resized = [detector.transform.resize(image, None)[0] for image in pixels]
    sizes = torch.tensor([image.shape[1:] for image in resized])
    height, width = (-(-side // SIDE_MULTIPLE) * SIDE_MULTIPLE for side in sizes.amax(0).tolist())
    batch = torch.zeros(len(images), len(resized[0]), height, width)
    for canvas, image in zip(batch, resized, strict=True):
        canvas[:, : image.shape[1], : image.shape[2]] = image
    return {"images": batch, "sizes": sizes}


@dataclass(frozen=True)
class Comparison:
    """How far the predictions of ONNX Runtime are from PyTorch's; see `DetectorReceipt`."""

    predictions: int
    unmatched: int
    largest_score_difference: float
    largest_box_difference: float


def compare(file: Path, detector: Detector, images: Sequence[Tensor]) -> Comparison:
    """Compare the predictions of the detector in PyTorch and in ONNX Runtime, in batches of 1, 3 and 7 images."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    model = detector.model.model
    predictions = 0
    unmatched = 0
    all_pairs: list[Pair] = []
    for number in BATCHES:
        batch = images[:number]
        inputs = prepare_batch(model, batch)
        outputs = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        with torch.inference_mode():
            expected = model([image.float() / 255 for image in batch])
        sizes = inputs.get("sizes", torch.tensor([inputs["images"].shape[2:]]).expand(number, -1)).numpy()
        for i, image in enumerate(batch):
            height, width = image.shape[1:]
            scale = np.array([width, height, width, height]) / sizes[i][[1, 0, 1, 0]]
            pairs = match_predictions(expected[i], outputs[0][i] * scale, outputs[1][i], outputs[2][i])
            if "masks" in expected[i]:
                masks = torch.from_numpy(outputs[3][i])
                pairs = [pair for pair in pairs if _mask_difference(expected[i], masks, pair) <= MASK_TOLERANCE]
            number_of_pytorch = len(expected[i]["scores"])
            number_of_onnx = int((outputs[1][i] > 0).sum())
            predictions += number_of_pytorch
            unmatched += max(number_of_pytorch, number_of_onnx) - len(pairs)
            all_pairs += pairs
    return Comparison(
        predictions=predictions,
        unmatched=unmatched,
        largest_score_difference=max((pair.score_difference for pair in all_pairs), default=0.0),
        largest_box_difference=max((pair.box_difference for pair in all_pairs), default=0.0),
    )


class Pair(NamedTuple):
    """A prediction of PyTorch and its counterpart in ONNX Runtime.

    Attributes:
        pytorch: Position of the prediction.
        onnx: Position of its counterpart.
        score_difference: How far the scores are apart.
        box_difference: How far the corners are apart at most, in pixels of the image.
    """

    pytorch: int
    onnx: int
    score_difference: float
    box_difference: float


def match_predictions(expected: dict[str, Tensor], boxes: Any, scores: Any, classes: Any) -> list[Pair]:
    """Pair the predictions of PyTorch for an image with those of ONNX Runtime, each with the nearest that is left.

    Args:
        expected: PyTorch's predictions: boxes [n, 4], scores [n], labels [n].
        boxes: Those of ONNX Runtime in pixels of the image, [N, 4].
        scores: Their scores [N]; 0: no prediction.
        classes: Their classes [N], from 0.
    """
    free = scores > 0
    pairs = []
    for position, (box, score, label) in enumerate(
        zip(expected["boxes"].numpy(), expected["scores"].numpy(), expected["labels"].numpy(), strict=True)
    ):
        corners = np.abs(boxes - box).max(axis=1)
        near = free & (classes == label - 1) & (np.abs(scores - score) <= SCORE_TOLERANCE) & (corners <= BOX_TOLERANCE)
        if near.any():
            best = int(np.where(near, corners, np.inf).argmin())
            free[best] = False
            pairs.append(Pair(position, best, float(abs(scores[best] - score)), float(corners[best])))
    return pairs


def _mask_difference(expected: dict[str, Tensor], masks: Tensor, pair: Pair) -> float:
    """How far the mask of ONNX Runtime, pasted into PyTorch's box, is from PyTorch's mask of the image."""
    of_image = expected["masks"][pair.pytorch]
    pasted = paste_masks_in_image(
        masks[pair.onnx][None, None], expected["boxes"][pair.pytorch][None], tuple(of_image.shape[1:])
    )
    return float((pasted[0] - of_image).abs().max())


def describe_inputs(detector: Detector) -> dict[str, str]:
    """Describe the inputs of the graph, by name."""
    model: Any = detector.model.model
    channels = detector.config.data.channels
    pixels = f"float32 [B, {channels}, {{}}], {'RGB, ' if channels == 3 else ''}0 to 1, not normalized"
    if isinstance(model, SquareDetector):
        side = model.test_side
        resized = f"resized to {side} x {side} without keeping the aspect, bilinear with antialiasing"
        return {"images": f"{pixels.format(f'{side}, {side}')}; {resized}"}
    rule = f"shorter side {model.transform.test_sizes[0]} px, longer side at most {model.transform.max_size} px"
    padded = f"padded at the right and below to the same H and W, multiples of {SIDE_MULTIPLE}"
    return {
        "images": f"{pixels.format('H, W')}; resized ({rule}; bilinear without antialiasing) and {padded}",
        "sizes": "int64 [B, 2], height and width of each image before padding",
    }


def _describe_outputs(detector: Detector) -> dict[str, str]:
    outputs = {
        "boxes": "float32 [B, N, 4], x0 y0 x1 y1 in pixels of the resized image",
        "scores": "float32 [B, N], the most confident first; 0: no prediction",
        "classes": "int64 [B, N], numbers in the list `classes`, from 0; -1: no prediction",
    }
    if detector.config.task == "instances":
        side = MASK_SIDES[detector.config.model.neck]
        outputs["masks"] = f"float32 [B, N, {side}, {side}], probabilities on a grid over the box"
    return outputs


def _write(detector: Detector, example: dict[str, Tensor], file: Path) -> None:
    """Trace the detector, for any B and, for torchvision's detectors, any H and W."""
    try:
        import onnxruntime  # noqa: F401 (needed for the check)
        from onnxscript import opset18
    except ImportError as error:
        raise MissingPackageError("exports to ONNX", "onnx", "onnxruntime", "onnxscript") from error
    dynamic = torch.export.Dim.DYNAMIC
    shapes: dict[str, dict[int, Any]] = {"images": {0: dynamic}}
    if "sizes" in example:
        shapes = {"images": {0: dynamic, 2: dynamic, 3: dynamic}, "sizes": {0: dynamic}}
    outputs = _describe_outputs(detector)
    try:
        with _without_checks_of_transformers(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on how networks of others are traced; the result is checked
            program: Any = torch.onnx.export(
                batched_detector(detector.model.model),
                tuple(example.values()),
                input_names=list(example),
                output_names=list(outputs),
                dynamic_shapes=shapes,
                opset_version=OPSET,
                custom_translation_table=translations(opset18),
                dynamo=True,
                verbose=False,
            )
    except PlrcError:
        raise
    except Exception as error:  # a network may do anything that ONNX cannot
        name = detector.config.model.detector
        raise ExportError(f"PyTorch cannot write this {name} as ONNX: {describe_error(error)}") from error
    program.model.metadata_props.update(
        {
            "classes": json.dumps(detector.classes),
            "detector": detector.config.model.detector,
            "task": detector.config.task,
            "inputs": json.dumps(describe_inputs(detector)),
            "outputs": json.dumps(outputs),
            "plrc_version": plrc_version(),
        }
    )
    program.save(file, external_data=False)


@contextlib.contextmanager
def _without_checks_of_transformers() -> Iterator[None]:
    """Leave out the library's assertions on tensors, which have no form in ONNX."""
    name = "TRANSFORMERS_DISABLE_TORCH_CHECK"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _images_to_compare(detector: Detector, number: int) -> tuple[list[Tensor], str]:
    """Images uint8 [C, h, w] to compare predictions on, and where they are from."""
    data = replace(detector.config.data.decoding, source=detector.config.data.source)
    images: list[Tensor] = []
    with contextlib.suppress(PlrcError):
        listed = find_images(data)
        for position in listed.evenly_spaced(number):
            with contextlib.suppress(DecodeError):
                images.append(listed.decode(position, data))
    if images:
        return (images * number)[:number], "the run's data"
    for index in range(number):
        scene = torch.from_numpy(render_scene(0, index, 192).image).permute(2, 0, 1)
        images.append(scene[torch.arange(data.channels) % len(scene)])
    return images, "generated scenes"
