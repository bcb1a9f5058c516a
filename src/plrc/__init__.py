"""plrc: self-supervised pre-training for object detectors.

Combines image contrast, point-level region contrast and point affinity distillation. The names below are the public
interface. Those that need PyTorch are imported when they are first used, so that `import plrc` is fast.

Examples:
    >>> import plrc
    >>> config = plrc.preset("small_r18").with_values({"data.source": "photos/", "run.out": "runs/first"})
    >>> run = plrc.pretrain(config)
    >>> backbone = plrc.load_backbone(run.path)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from plrc.config import Config
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
from plrc.presets import preset

if TYPE_CHECKING:
    from plrc import objectives
    from plrc.api import pretrain
    from plrc.engine.pretrain import Run
    from plrc.export import export_backbone, load_backbone

    __version__: str

__all__ = [
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
    "export_backbone",
    "load_backbone",
    "objectives",
    "preset",
    "pretrain",
]

_IMPORTED_ON_USE = {
    "Run": "plrc.engine.pretrain",
    "export_backbone": "plrc.export",
    "load_backbone": "plrc.export",
    "pretrain": "plrc.api",
}


def __getattr__(name: str) -> Any:
    if name == "objectives":
        return import_module("plrc.objectives")
    if name == "__version__":
        return import_module("plrc.machine").plrc_version()
    if name in _IMPORTED_ON_USE:
        return getattr(import_module(_IMPORTED_ON_USE[name]), name)
    raise AttributeError(f"module 'plrc' has no attribute {name!r}")
