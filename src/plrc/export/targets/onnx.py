"""Export to ONNX: normalized images [B, N, H, W] of N channels -> one output per stride, checked in ONNX Runtime.

For inference: plrc does not read the file back. Names in the graph are the backbone's own behind `net.`; BatchNorm's
step counters are absent. Needs the packages onnx, onnxruntime and onnxscript.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plrc.errors import ExportError, MissingPackageError
from plrc.export.proof import backbone_with
from plrc.export.target import LoadedNetwork, State, Target, without_counters
from plrc.machine import installed_version
from plrc.model.backbone import RESNETS
from plrc.model.user_code import TEST_SIZE, describe_error
from plrc.pixels import MEAN_KEY, PixelStatistics

TOLERANCE = 1e-4  # of the largest feature: the runtime joins convolutions with what follows them
TRACED_SIZE = (64, 96)  # of the images that a ResNet is traced with
RESNET_SIZES = ((96, 96), (65, 130))  # to compare on: B, H and W are free, so not the traced size
_CONSTANTS = "plrc_constants"  # metadata: names of buffers that are no weights, such as indices of positions
OTHER_SIZES = (TEST_SIZE, (192, 320))  # other networks may need sides that their coarsest stride divides


def version() -> str:
    """Versions of onnx and of the runtime; empty if there is no runtime."""
    runtime = installed_version("onnxruntime")
    return f"{installed_version('onnx')}, ONNX Runtime {runtime}" if runtime else ""


def rename(backbone: str, student: State) -> State:
    """The student's tensors under the names that they have in the graph."""
    return {f"net.{name}": tensor for name, tensor in without_counters(student).items()}


def write(file: Path, backbone: str, student: State, metadata: dict[str, str]) -> None:
    """Trace the backbone. Nothing is folded, so that every tensor keeps its values."""
    try:
        import onnxscript  # noqa: F401 (torch.onnx needs it)
    except ImportError as error:
        raise MissingPackageError("exports to ONNX", "onnx", "onnxruntime", "onnxscript") from error
    channels = len(json.loads(metadata[MEAN_KEY]))
    network = backbone_with(backbone, student, channels)
    size = TRACED_SIZE if backbone in RESNETS else TEST_SIZE
    dynamic = torch.export.Dim.DYNAMIC
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)  # PyTorch 2.11, in itself
            program: Any = torch.onnx.export(
                network,
                (torch.zeros(2, channels, *size),),
                input_names=["images"],
                output_names=[f"stride{stride}" for stride in network.channels],
                dynamic_shapes={"images": {0: dynamic, 2: dynamic, 3: dynamic}},
                dynamo=True,
                optimize=False,
                verbose=False,
            )
    except Exception as error:  # a network may do anything that ONNX cannot
        raise ExportError(f"PyTorch cannot write {backbone} as ONNX: {describe_error(error)}") from error
    constants = [name for name, _ in network.named_buffers() if name not in network.state_dict()]
    program.model.metadata_props.update(metadata | {_CONSTANTS: json.dumps(constants)})
    file.parent.mkdir(parents=True, exist_ok=True)
    program.save(file, external_data=False)


def read(file: Path) -> State:
    """The tensors that the graph holds, without those that the code of the network computes."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(file)
    texts = {entry.key: entry.value for entry in model.metadata_props}
    constants = set(json.loads(texts.get(_CONSTANTS, "[]")))
    tensors: State = {}
    for tensor in model.graph.initializer:
        if tensor.name not in constants:
            tensors[tensor.name] = torch.from_numpy(numpy_helper.to_array(tensor).copy())
    return tensors


def load(file: Path, backbone: str, tensors: State, channels: int) -> list[LoadedNetwork]:
    """Open the graph in ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    strides = [int(name.removeprefix("stride")) for name in names]

    def features(images: Tensor) -> dict[int, Tensor]:
        outputs = session.run(names, {"images": images.numpy()})
        return dict(zip(strides, map(torch.from_numpy, outputs), strict=True))

    sizes = RESNET_SIZES if backbone in RESNETS else OTHER_SIZES
    return [LoadedNetwork("ONNX Runtime on the CPU", tensors, features, strides=(), sizes=sizes, keeps_counters=False)]


def instructions(backbone: str, pixels: PixelStatistics) -> list[str]:
    """What goes into the graph and comes out of it."""
    sides = "B, H and W are free"
    if backbone not in RESNETS:
        sides = "B is free, H and W where the coarsest stride divides them"
    return [
        f"input images: float32 [B, {pixels.channels}, H, W], normalized as above; {sides}",
        "outputs: one for each stride, such as stride8: [B, C, ceil(H / stride), ceil(W / stride)]",
    ]


TARGET = Target(
    name="onnx",
    package="onnxruntime",
    version=version,
    rename=rename,
    load=load,
    instructions=instructions,
    endings=(".onnx",),
    keeps_counters=False,
    tolerance=TOLERANCE,
    write=write,
    read=read,
)
