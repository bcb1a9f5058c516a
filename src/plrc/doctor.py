"""`plrc doctor`: what is installed, which device there is, and whether each kernel and decoder works here. Layer 6."""

from __future__ import annotations

import importlib
import io
import platform
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from plrc.machine import cores

CORE = (
    "torch", "torchvision", "numpy", "pillow", "tyro", "rich", "tensorboard", "safetensors", "fsspec", "tomli-w",
    "jinja2", "matplotlib",
)  # fmt: skip
EXTRAS = {
    "transfer": "faster-coco-eval", "regions": "scikit-image", "timm": "timm", "transformers": "transformers",
    "shards": "webdataset", "onnx": "onnx",
}  # fmt: skip
TORCHVISION_ADVICE = (
    "torchvision cannot be imported beside this torch: both wheels must come from the same source "
    "(a CPU-only torch with the registry's torchvision fails so); reinstall them together: "
    "pip install --force-reinstall torch torchvision"
)


def report() -> int:
    """Print the findings; the exit status is 1 if something that plrc needs does not work."""
    found = {name: _installed(name) for name in CORE}
    faults = [f"{name} is missing: pip install {name}" for name, where in found.items() if not where]
    rows = {name: where or "missing" for name, where in found.items()}
    for extra, name in EXTRAS.items():
        rows[f"extra {extra}"] = _installed(name) or f"no: pip install 'plrc-pretrain[{extra}]'"
    if not faults:
        tried, faults = _try_out()
        rows |= tried
    table = Table("what", "found", title=f"plrc on Python {platform.python_version()}, {platform.platform()}")
    for what, state in rows.items():
        table.add_row(what, escape(state))
    console = Console(highlight=False)
    console.print(table)
    for fault in faults:
        console.print(f"fault: {fault}", markup=False, soft_wrap=True)
    console.print("all that plrc needs works here" if not faults else f"faults: {len(faults)}")
    return 1 if faults else 0


def _try_out() -> tuple[dict[str, str], list[str]]:
    """Devices, kernels and decoders with what became of them, and what does not work."""
    try:
        importlib.import_module("torchvision.io")
    except (ImportError, RuntimeError, OSError) as error:
        return {}, [f"{TORCHVISION_ADVICE} ({str(error).splitlines()[0]})"]
    import torch

    from plrc.objectives import available_backends

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    rows = {
        "CPU": f"{cores()} cores, {torch.get_num_threads()} threads",
        "GPU": ", ".join(gpus) or "none (plrc runs on the CPU)",
    }
    rows |= {f"kernel {name}": state for name, state in available_backends().items()}
    decoders = {name: _fault_of_decoder(name) for name in ("JPEG", "PNG", "WEBP", "TIFF", "BMP")}
    rows |= {f"decoder {name}": fault or "works" for name, fault in decoders.items()}
    return rows, [f"{name} images cannot be decoded: {fault}" for name, fault in decoders.items() if fault]


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _fault_of_decoder(name: str) -> str:
    """Encode and decode a small red picture; why that fails, or nothing."""
    from PIL import Image

    from plrc.data.decode import decode_bytes
    from plrc.data.image_files import DecodeError

    try:
        file = io.BytesIO()
        Image.new("RGB", (16, 8), (255, 0, 0)).save(file, name)
        image = decode_bytes(file.getvalue())
    except (OSError, KeyError, DecodeError) as error:
        return str(error)
    return "" if image.shape == (3, 8, 16) and int(image[0].min()) > 250 else "wrong pixels"
