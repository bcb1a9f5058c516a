"""Hand-over as ONNX: normalized images [B, 3, H, W] -> one output for each stride, checked in ONNX Runtime.

Layer 5: imports model and this folder; the extra onnx. For inference: plrc does not read it back. Names in the graph
are the backbone's own behind `net.`; BatchNorm's step counters are absent by rule.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plrc.errors import PlrcError
from plrc.export.pixels import pixels
from plrc.export.proof import Proof, check_features, check_tensors, features_of, installed
from plrc.model.backbone import RESNETS, build_backbone
from plrc.model.naming import COUNTER
from plrc.model.user_code import TEST_SIZE, describe_error

ENDINGS = (".onnx",)
TOLERANCE = 1e-4  # of the largest feature: the runtime joins convolutions with what follows them
SIZES = ((96, 96), (65, 130))  # of ResNets: B, H and W are free, other sizes than the one that is traced
OTHERS = (TEST_SIZE, (192, 320))  # of other networks, which may ask that their coarsest stride divides both sides


def version() -> str:
    runtime = installed("onnxruntime")
    return f"{installed('onnx')}, ONNX Runtime {runtime}" if runtime else ""


def tensors(name: str, student: dict[str, Tensor]) -> dict[str, Tensor]:
    """The student's tensors as the graph holds them."""
    return {f"net.{key}": value for key, value in student.items() if not key.endswith(COUNTER)}


def write(path: Path, name: str, student: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Trace the backbone; nothing is folded, so that every tensor stays what it is."""
    try:
        import onnxscript  # noqa: F401 (torch.onnx needs it)
    except ImportError as error:
        raise PlrcError(
            "an export to ONNX needs onnx and more; install them with: pip install 'plrc-pretrain[onnx]'"
        ) from error
    net = build_backbone(name)
    net.net.load_state_dict(student)
    free = torch.export.Dim.DYNAMIC
    try:
        program: Any = torch.onnx.export(
            net.eval(),
            (torch.zeros(2, 3, *((64, 96) if name in RESNETS else TEST_SIZE)),),
            input_names=["images"],
            output_names=[f"stride{stride}" for stride in net.channels],
            dynamic_shapes={"images": {0: free, 2: free, 3: free}},
            dynamo=True,
            optimize=False,
            verbose=False,
        )
    except Exception as error:  # of many kinds, for what a network may do and ONNX cannot
        raise PlrcError(f"PyTorch cannot write {name} as ONNX: {describe_error(error)}") from error
    program.model.metadata_props.update(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    program.save(path, external_data=False)


def prove(path: Path, name: str, student: dict[str, Tensor]) -> Proof:
    """Read the graph's tensors, run it in ONNX Runtime at two sizes, and compare both with the run's student.

    Raises PlrcError unless every tensor is equal bit for bit, none is left over on either side, and features are equal.
    """
    expected = tensors(name, student)
    state = read_initializers(path)
    check_tensors(state, expected, "the file")
    absent = tuple(key for key in student if key.endswith(COUNTER))
    if not version():
        return Proof(len(state), absent=absent, unverified="onnxruntime is not installed")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    outputs = [output.name for output in session.get_outputs()]

    def theirs(images: Tensor) -> dict[int, Tensor]:
        found = session.run(outputs, {"images": images.numpy()})
        return {int(key.removeprefix("stride")): torch.from_numpy(f) for key, f in zip(outputs, found, strict=True)}

    ours = features_of(name, student)
    difference = max(check_features(theirs, ours, TOLERANCE, size) for size in (SIZES if name in RESNETS else OTHERS))
    return Proof(len(state), difference, tolerance=TOLERANCE, networks=("ONNX Runtime on the CPU",), absent=absent)


def read_initializers(path: Path) -> dict[str, Tensor]:
    """The tensors that a graph holds, by name."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    return {tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer}


def settings(name: str) -> dict[str, Any]:
    sides = "B, H and W are free" if name in RESNETS else "B is free, H and W where the coarsest stride divides them"
    return pixels() | {
        "set": [
            f"input images: float32 [B, 3, H, W], normalized as above; {sides}",
            "outputs: one for each stride, such as stride8: [B, C, ceil(H / stride), ceil(W / stride)]",
        ]
    }
