"""The model card of every export: a Markdown template, filled with facts of the run alone.

A card is made to be published: paths are cut to their last name, and every text that comes from a user or a file stands
in a code span, so that it cannot be read as Markdown.
"""

from __future__ import annotations

import dataclasses
import platform
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torchvision
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from plrc.config import Config
from plrc.data.manifest import read_manifest
from plrc.engine.provenance import file_name, start_origin, teacher_origins
from plrc.errors import PlrcError
from plrc.export.receipt import Receipt
from plrc.files import iterate_json_lines
from plrc.model.timm_networks import PREFIX as TIMM_PREFIX
from plrc.model.user_code import is_user_code
from plrc.pixels import IMAGENET
from plrc.presets import PRESETS, preset

TEMPLATE = "card.md.jinja"
PATHS = (
    "data.source",
    "data.exclude",
    "regions.maps",
    "model.init",
    "model.backbone",
    "teacher.init",
    "teacher.backbone",
    "teacher.cache",
)
"""Settings that may name a path."""


def card_path(file: Path) -> Path:
    """Path of the card of an exported file: NAME.card.md in the same folder."""
    return file.with_name(f"{file.name}.card.md")


def model_card(receipt: Receipt, saved: Mapping[str, Any], run: Path) -> str:
    """Write the card of an export.

    Args:
        receipt: The export's receipt.
        saved: Content of the checkpoint that was exported.
        run: The run folder; what is missing there is left out of the card.

    Returns:
        The card as Markdown.
    """
    config = Config.from_dict(saved["config"])
    name = config.preset if config.preset in PRESETS else "custom"
    start = start_origin(config, run)
    facts = {
        "file": Path(receipt.file).name,
        "receipt": receipt,
        "backbone": _publishable("model.backbone", config.model.backbone),
        "user_code": is_user_code(config.model.backbone),
        "stride": config.model.largest_stride,
        "data": _data(config, run),
        "regions_from_files": config.regions.source in ("maps", "coco"),
        "recipe": _recipe(config, receipt),
        "has_preset": name != "custom",
        "changed_settings": _changed_settings(config, preset(name, config.method)),
        "losses": _last_losses(run),
        "health": _health(saved["health"]),
        "health_steps": [report["step"] for report in (saved["health"][:1] + saved["health"][-1:])],
        "start": start,
        "teachers": teacher_origins(config, run),
        "channels": config.data.channels,
        "pixel_statistics": _statistics(config),
        "pixels": {key: str(receipt.settings[key]) for key in ("channels", "pixels", "mean", "std")},
        "instructions": [_without_folder(line, receipt.backbone) for line in receipt.settings["set"]],
        "proof": _proof(receipt),
        "versions": {
            "plrc, at training": str(saved["version"]),
            "PyTorch, at export": torch.__version__,
            "torchvision, at export": torchvision.__version__,
            "Python, at export": platform.python_version(),
        },
    }
    return _template_environment().get_template(TEMPLATE).render(facts)


@cache
def _template_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("plrc.export", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["code"] = code_span
    environment.filters["last_name"] = _last_name
    environment.filters["code_or_empty"] = lambda text: code_span(text) if text else "(empty)"
    return environment


def code_span(text: str) -> Markup:
    """A Markdown code span that holds any text: its fence is longer than every run of backticks inside."""
    text = " ".join(text.split()) or " "
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return Markup(f"{fence}{space}{text}{space}{fence}")  # complete: nothing in it is read as Markdown or HTML


def _statistics(config: Config) -> str:
    """Describe what is subtracted from pixels and what they are divided by."""
    pixels = config.data.pixels
    return "ImageNet's mean and standard deviation" if pixels == IMAGENET else str(pixels)


def _data(config: Config, run: Path) -> dict[str, str] | None:
    """What the run was trained on; None without a readable manifest."""
    try:
        manifest = read_manifest(run / "manifest.json")
    except PlrcError:
        return None
    counts = manifest["counts"]
    return {
        "kind of source": manifest["layout"],
        "training images": f"{counts['train']:,}",
        "held out for health checks": f"{counts['held_out']:,}",
        "excluded": f"{counts['excluded']:,}",
        "SHA-256 of names and sizes": manifest["sha256"],
        "regions from": config.regions.source,
    }


def _recipe(config: Config, receipt: Receipt) -> dict[str, str]:
    batch = config.optim.batch_size
    steps = f"{receipt.step:,}"
    if receipt.step < receipt.steps:
        steps += f" of {receipt.steps:,}: the run is not finished"
    strides = ", ".join(map(str, config.model.strides))
    level = f"stride {strides}"
    if (config.model.largest_stride, config.model.layer4_stride) == (32, 1):
        level += ", with layer4 at stride 1 (the same tensors as at stride 2)"
    return {
        "preset": config.preset,
        "method": config.method,
        "steps": steps,
        "images seen": f"{receipt.step * batch:,} ({batch:,} per step)",
        "views": f"{config.views.size} x {config.views.size} pixels",
        "level that was trained": level,
        "seed": str(config.seed),
    }


def _changed_settings(config: Config, usual: Config) -> list[dict[str, str]]:
    changed = []
    for name, value, usual_value in config.differences(usual):
        if name not in ("preset", "method", "seed", "data.source"):
            setting = {
                "name": name,
                "value": _publishable(name, value),
                "usual": _publishable(name, usual_value),
            }
            changed.append(setting)
    return changed


def _last_losses(run: Path) -> dict[str, str]:
    """Losses of the last line of training in metrics.jsonl."""
    last: dict[str, Any] = {}
    for line in iterate_json_lines(run / "metrics.jsonl"):
        if line.get("kind") == "train":
            last = line
    losses = {key: value for key, value in last.items() if key.endswith(("_loss", "_kl"))}
    return {key: f"{value:.4f}" for key, value in losses.items() if isinstance(value, float)}


def _health(reports: list[dict[str, Any]]) -> dict[str, str]:
    """The measures of the first and of the last health report."""
    if not reports:
        return {}
    first = reports[0]
    last = reports[-1]
    measures = {}
    for key, value in last.items():
        if key not in ("step", "seconds") and value is not None and first.get(key) is not None:
            measures[key] = f"{first[key]:.3f} -> {value:.3f}"
    return measures


def _proof(receipt: Receipt) -> dict[str, str]:
    """The receipt's fields without folders."""
    rows: dict[str, str] = {}
    for key, value in dataclasses.asdict(receipt).items():
        name = key.replace("_", " ")
        if isinstance(value, (list, tuple)):
            rows[name] = ", ".join(_without_folder(str(item), receipt.backbone) for item in value) or "none"
        elif key in ("file", "checkpoint"):
            rows[name] = Path(value).name
        elif key == "note":
            if value:
                rows[name] = _reason(value)
        elif value is None:
            rows[name] = "not compared"
        elif isinstance(value, float):
            rows[name] = f"{value:.1e}"
        elif isinstance(value, (str, int)):
            rows[name] = _without_folder(str(value), receipt.backbone)
    return rows


def _publishable(key: str, value: Any) -> str:
    """A setting's value, paths cut to their last name."""
    return _last_name(str(value)) if key in PATHS else str(value)


def _reason(note: str) -> str:
    """A note without the message of a package that cannot be imported, if that message names folders."""
    return note.partition(" (")[0] if re.search(r"[\\/]", note) else note


def _without_folder(text: str, backbone: str) -> str:
    """A text of the receipt; where it names the backbone, that is cut to its last name."""
    for name in (backbone, backbone.removeprefix(TIMM_PREFIX)):  # timm's networks stand there under their own names
        text = text.replace(name, _publishable("model.backbone", name))
    return text


def _last_name(text: str) -> str:
    """The last name of a path, or of the path in path/to/file.py:function."""
    place, colon, function = text.rpartition(":")
    return f"{file_name(place)}:{function}" if colon and place.endswith(".py") else file_name(text)
