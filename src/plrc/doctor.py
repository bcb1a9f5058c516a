"""What `plrc doctor` finds out: installed packages, devices, and whether each kernel and image decoder works here."""

from __future__ import annotations

import importlib
import io
import platform
from dataclasses import dataclass, field

from plrc.machine import cores, installed_version

REQUIRED = (
    "torch",
    "torchvision",
    "numpy",
    "pillow",
    "tifffile",
    "docstring-parser",
    "pyyaml",
    "rich",
    "tensorboard",
    "safetensors",
    "filelock",
    "fsspec",
    "tomli-w",
    "jinja2",
    "matplotlib",
)
OPTIONAL = {
    "faster-coco-eval": "detection scores and masks",
    "scikit-image": "superpixels",
    "timm": "timm backbones",
    "transformers": "networks and detectors of transformers, and export to it",
    "scipy": "training of detectors of transformers",
    "webdataset": "tar shards",
    "aiohttp": "shards at an http(s) address",
    "onnx": "export to ONNX",
    "onnxruntime": "export to ONNX",
    "onnxscript": "export to ONNX",
    "pillow-heif": "HEIC images",
    "imagecodecs": "compressed TIFF of many channels",
    "wandb": "run.loggers wandb",
    "mlflow-skinny": "run.loggers mlflow",
}
DECODERS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")
TORCHVISION_ADVICE = (
    "torchvision cannot be imported with this torch: both wheels must come from the same source "
    "(a CPU-only torch with the registry's torchvision fails); reinstall them together: "
    "pip install --force-reinstall torch torchvision"
)


@dataclass
class Diagnosis:
    """What was examined.

    Attributes:
        platform: Python version and operating system.
        states: What was examined -> its version, "works", or what is wrong.
        faults: What plrc needs and what does not work, each with what to do.
    """

    platform: str
    states: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def examine() -> Diagnosis:
    """Examine packages, devices, kernels and image decoders.

    Returns:
        The diagnosis; nothing is wrong if its `faults` are empty.
    """
    diagnosis = Diagnosis(f"plrc on Python {platform.python_version()}, {platform.platform()}")
    for name in REQUIRED:
        installed = installed_version(name)
        diagnosis.states[name] = installed or "missing"
        if not installed:
            diagnosis.faults.append(f"{name} is missing: pip install {name}")
    for name, purpose in OPTIONAL.items():
        diagnosis.states[f"{name} (optional)"] = installed_version(name) or f"no; for {purpose}: pip install {name}"
    if not diagnosis.faults:
        _examine_torch(diagnosis)
    return diagnosis


def _examine_torch(diagnosis: Diagnosis) -> None:
    """Devices, kernels and decoders."""
    try:
        importlib.import_module("torchvision.io")
    except (ImportError, RuntimeError, OSError) as error:
        diagnosis.faults.append(f"{TORCHVISION_ADVICE} ({str(error).splitlines()[0]})")
        return
    import torch

    from plrc.objectives import available_backends

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    diagnosis.states["CPU"] = f"{cores()} cores, {torch.get_num_threads()} threads"
    if torch.backends.mps.is_available():
        gpus.append("Apple (mps)")
    diagnosis.states["GPU"] = ", ".join(gpus) or "none (plrc runs on the CPU)"
    for name, state in available_backends().items():
        diagnosis.states[f"kernel {name}"] = state
    for name in DECODERS:
        fault = _decoder_fault(name)
        diagnosis.states[f"decoder {name}"] = fault or "works"
        if fault:
            diagnosis.faults.append(f"{name} images cannot be decoded: {fault}")


def _decoder_fault(image_format: str) -> str:
    """Encode and decode a small red picture: why that fails, or nothing."""
    from PIL import Image

    from plrc.data.decode import decode_bytes
    from plrc.data.image_errors import DecodeError

    file = io.BytesIO()
    try:
        Image.new("RGB", (16, 8), (255, 0, 0)).save(file, image_format)
        image = decode_bytes(file.getvalue())
    except (OSError, KeyError, DecodeError) as error:
        return str(error)
    is_red = image.shape == (3, 8, 16) and int(image[0].min()) > 250
    return "" if is_red else "wrong pixels"
