"""`plrc doctor`: what is installed, which device there is, and whether each kernel and decoder works here. Layer 5."""

from __future__ import annotations

import importlib
import io
import os
import platform
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console
from rich.table import Table

CORE = ("torch", "torchvision", "numpy", "pillow", "tyro", "rich", "tensorboard", "safetensors", "fsspec")
EXTRAS = {
    "transfer": "faster-coco-eval", "regions": "scikit-image", "timm": "timm", "transformers": "transformers",
    "shards": "webdataset", "report": "matplotlib", "wandb": "wandb",
}  # fmt: skip
TORCHVISION_ADVICE = (
    "torchvision cannot be imported beside this torch: both wheels must come from the same source "
    "(a CPU-only torch with the registry's torchvision fails so); reinstall them together: "
    "pip install --force-reinstall torch torchvision"
)


def report() -> int:
    """Print the findings; the exit status is 1 if something that plrc needs does not work."""
    console, faults = Console(highlight=False), []
    table = Table("what", "found", title=f"plrc on Python {platform.python_version()}, {platform.platform()}")
    for name in CORE:
        table.add_row(name, _installed(name) or "missing")
        if not _installed(name):
            faults.append(f"{name} is missing: pip install {name}")
    for extra, name in EXTRAS.items():
        table.add_row(f"extra {extra}", _installed(name) or f"not installed (pip install 'plrc[{extra}]')")
    try:
        importlib.import_module("torchvision.io")
    except (ImportError, RuntimeError, OSError) as error:
        console.print(table)
        console.print(f"fault: {TORCHVISION_ADVICE} ({str(error).splitlines()[0]})", markup=False)
        return 1
    import torch

    from plrc.objectives import available_backends

    table.add_row("CPU", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads")
    table.add_row("GPU", torch.cuda.get_device_name() if torch.cuda.is_available() else "none (plrc runs on the CPU)")
    for name, state in available_backends().items():
        table.add_row(f"kernel {name}", state)
    for name in ("JPEG", "PNG", "WEBP", "TIFF", "BMP"):
        state = _decodes(name)
        table.add_row(f"decoder {name}", state or "works")
        if state:
            faults.append(f"{name} images cannot be decoded: {state}")
    console.print(table)
    for fault in faults:
        console.print(f"fault: {fault}", markup=False)
    console.print("all that plrc needs works here" if not faults else f"{len(faults)} faults")
    return 1 if faults else 0


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _decodes(name: str) -> str:
    """Encode and decode a small picture; the reason if that fails, else an empty string."""
    from PIL import Image

    from plrc.data.decode import DecodeError, decode_bytes

    try:
        file = io.BytesIO()
        Image.new("RGB", (16, 8), (255, 0, 0)).save(file, name)
        image = decode_bytes(file.getvalue())
        return "" if tuple(image.shape) == (3, 8, 16) and int(image[0].min()) > 250 else "wrong pixels"
    except (OSError, KeyError, DecodeError) as error:
        return str(error)
