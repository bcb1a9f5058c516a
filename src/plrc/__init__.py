"""plrc: self-supervised pre-training for object detectors.

Combines image contrast, point-level region contrast and point affinity distillation. The names below are the public
interface. They are imported when they are first used, so that `import plrc` is fast.

Examples:
    >>> import plrc
    >>> config = plrc.preset("small_r18").with_values({"data.source": "photos/", "run.out": "runs/first"})
    >>> run = plrc.pretrain(config)
    >>> backbone = plrc.load_backbone(run.path)
"""

from __future__ import annotations

TYPE_CHECKING = False  # not imported from `typing`, which takes longer than the rest
if TYPE_CHECKING:
    from typing import Any

    from plrc import objectives
    from plrc.api import pretrain
    from plrc.compare.result import Comparison
    from plrc.compare.weights import compare_weights
    from plrc.config import Config
    from plrc.engine.pretrain import Run
    from plrc.errors import (
        ConfigError,
        DataError,
        ExportError,
        LayoutError,
        MissingPackageError,
        PlrcError,
        RunError,
        WeightsError,
    )
    from plrc.export import export_backbone, load_backbone
    from plrc.presets import preset
    from plrc.transfer.detector_file import load_detector
    from plrc.transfer.onnx_detector import export_detector
    from plrc.transfer.predict import predict
    from plrc.transfer.presets import protocol

    __version__: str

__all__ = [
    "Comparison",
    "Config",
    "ConfigError",
    "DataError",
    "ExportError",
    "LayoutError",
    "MissingPackageError",
    "PlrcError",
    "Run",
    "RunError",
    "WeightsError",
    "compare_weights",
    "export_backbone",
    "export_detector",
    "load_backbone",
    "load_detector",
    "objectives",
    "predict",
    "preset",
    "pretrain",
    "protocol",
]

_MODULES = {
    "plrc.api": ("pretrain",),
    "plrc.compare.result": ("Comparison",),
    "plrc.compare.weights": ("compare_weights",),
    "plrc.config": ("Config",),
    "plrc.engine.pretrain": ("Run",),
    "plrc.errors": tuple(name for name in __all__ if name.endswith("Error")),
    "plrc.export": ("export_backbone", "load_backbone"),
    "plrc.presets": ("preset",),
    "plrc.transfer.detector_file": ("load_detector",),
    "plrc.transfer.onnx_detector": ("export_detector",),
    "plrc.transfer.predict": ("predict",),
    "plrc.transfer.presets": ("protocol",),
}


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "objectives":
        return import_module("plrc.objectives")
    if name == "__version__":
        return import_module("plrc.machine").plrc_version()
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'plrc' has no attribute {name!r}")
