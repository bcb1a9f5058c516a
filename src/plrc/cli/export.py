"""`plrc export`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from plrc.cli.options import CommandParser, about, positional
from plrc.errors import ConfigError

CHECK_IN = "--check-in is now a command of its own: plrc verify RUN detector.py:build"


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    run: Path = positional("RUN")
    """Run folder (its newest checkpoint) or checkpoint file. With --to onnx also the folder of a transfer run."""
    to: Literal["torchvision", "timm", "transformers", "detectron2", "mmdetection", "safetensors", "onnx"]
    """The library or format that the weights are for."""
    out: Path | None = None
    """File to write: .safetensors or .pt; .pth for mmdetection, .pth or .pkl for detectron2, .onnx; for transformers a
    folder. By default below exported/ in the run folder."""
    backbone: str = ""
    """A run with a backbone of your own: its function once more, as package.module:function or file.py:function. A run
    of transformers:FOLDER whose folder has moved: transformers:FOLDER."""
    into: Path | None = None
    """For transformers: the folder of a detector (save_pretrained). A copy of it with the run's backbone is written.
    By default that of a run of the backbone transformers:FOLDER."""


def run(arguments: Sequence[str]) -> int:
    """Export the pre-trained backbone for a library, and prove that the library loads it.

    The folder of a transfer run is exported as ONNX: the whole fine-tuned detector, for any number of images at once.

    examples:
      plrc export runs/first --to torchvision
      plrc export runs/first --to torchvision --out backbone.pt
      plrc export runs/first --to transformers --out my-resnet/
      plrc export runs/own --to transformers --into my-d-fine/ --out my-d-fine-plrc/
      plrc export runs/first --to detectron2
      plrc export runs/own --to safetensors --backbone my_net.py:build
      plrc export transfer/first --to onnx --out detector.onnx
    """
    parser = CommandParser("export", about(run), refused={"check_in": CHECK_IN})
    parser.add_fields(ExportOptions)
    options = ExportOptions(**parser.parse(arguments))
    from plrc.transfer.detector_file import is_transfer_run

    if is_transfer_run(options.run):
        return _export_detector(options)
    from plrc.export import export_backbone

    receipt = export_backbone(options.run, options.to, options.out, options.backbone, options.into)
    print(receipt.line())
    print(receipt.advice())
    return 0


def _export_detector(options: ExportOptions) -> int:
    from plrc.transfer.onnx_detector import export_detector

    if options.to != "onnx":
        raise ConfigError(
            f"{options.run} is a run of plrc transfer, whose fine-tuned detector is exported as ONNX only; write --to "
            f"onnx, or name a run of plrc pretrain for --to {options.to}"
        )
    receipt = export_detector(options.run, options.out, options.backbone)
    print(receipt.line())
    print(receipt.advice())
    return 0
