"""The model card beside every export: Markdown filled from the run alone, nothing in it is a guess.

Layer 5: imports presets and below. Paths are cut to their last name: a card is made to be published. Every text that
comes from a user or a file stands in a code span, so that it cannot be read as Markdown.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
import torchvision

from plrc.config import Config
from plrc.data.manifest import read_manifest
from plrc.errors import PlrcError
from plrc.model.user_code import is_user_code
from plrc.presets import PRESETS, preset

PATHS = ("data.source", "data.exclude", "regions.maps", "model.init", "model.backbone")  # settings that may name a path
TAIL = 2**16  # bytes at the end of metrics.jsonl in which the last losses are looked for
CHAIN = 8  # runs that start from runs, at most so many are followed

IMAGENET = """Its name is that of published weights of torchvision or timm, most of which were trained on ImageNet. The
images of ImageNet are licensed for non-commercial research only; whether that binds weights is not settled."""
RELEASE = "If it is of `facebookresearch/PLRC`: that is CC-BY-NC 4.0, non-commercial only."
LICENCES = ((r"-[0-9a-f]{8}\.pth$", IMAGENET), (r"(?i)plrc|point.?level.?region", RELEASE))
"""(what a file's name looks like, what to know about its licence)."""
RANDOM = "random weights"
LIMITS = """- Intended: the initial weights of a detector or segmenter that is then trained on labels, for images like
  those of the training data.
- Input: RGB, divided by 255, then ImageNet's mean and standard deviation. Another order or scale of the channels gives
  other features, without any error.
- Biases of the training images pass on; nothing was filtered. Do not use the features to identify people.
- Whether it beats ImageNet weights on your task is not known before it is measured: `plrc compare`."""


def card_path(out: Path) -> Path:
    """Where the card of an exported file lies: NAME.card.md beside it."""
    return out.with_name(f"{out.name}.card.md")


def model_card(receipt: Mapping[str, Any], saved: Mapping[str, Any], run: Path) -> str:
    """The card, from the fields of a receipt, a checkpoint's content, and what else lies in the run folder."""
    config = Config.from_dict(saved["config"])
    sections = {
        "What this is": _about(receipt, config),
        "Training data": _data(config, run),
        "Recipe": _recipe(config, saved["step"], int(receipt["steps"])),
        "Results": _results(saved, run),
        "Intended use and limits": _limits(config, receipt),
        "Starting weights and licence": _licence(config),
        "Use": _use(receipt),
        "Proof of the hand-over": _proof(receipt),
        "Versions": _versions(saved),
    }
    parts = [f"# Model card: {_code(Path(receipt['file']).name)}"]
    parts += [f"## {title}\n\n{text}" for title, text in sections.items()]
    return "\n\n".join(parts) + "\n"


def start_of(init: str) -> list[str]:
    """The starting weights, what those started from, and so on, as far as runs can be followed."""
    chain: list[str] = []
    while init not in chain and len(chain) < CHAIN:
        chain.append(init or RANDOM)
        before = _init_of(Path(init)) if init else None
        if before is None:
            break
        init = before
    return chain


def _about(receipt: Mapping[str, Any], config: Config) -> str:
    library = _code(str(receipt["target"]))
    return (
        f"The backbone {_plain('model.backbone', config.model.backbone)} of an object detector, pre-trained without "
        f"labels by plrc (point-level region contrast and point affinity distillation; Bai et al., CVPR 2022), "
        f"written for {library}. It gives feature maps; it has no classifier and detects nothing by itself."
    )


def _data(config: Config, run: Path) -> str:
    path = run / "manifest.json"
    try:
        manifest = read_manifest(path)
    except PlrcError:
        return "The run folder has no readable manifest beside this checkpoint: what it was trained on is not recorded."
    counts = manifest["counts"]
    rows = {
        "kind of source": manifest["layout"],
        "training images": f"{counts['train']:,}",
        "held out for health checks": f"{counts['held_out']:,}",
        "excluded": f"{counts['excluded']:,}",
        "SHA-256 of names and sizes": manifest["sha256"],
        "regions from": config.regions.source,
    }
    known = "Names and sizes of all images are in the run's `manifest.json`. No labels were used."
    if config.regions.source in ("maps", "coco"):
        known = known.replace("No labels were used.", "Regions were read from files: they may stem from labels.")
    return f"{_table(rows)}\n\n{known}"


def _recipe(config: Config, step: int, steps: int) -> str:
    name = config.preset if config.preset in PRESETS else "custom"
    batch = config.optim.batch_size
    rows = {
        "preset": config.preset,
        "method": config.method,
        "steps": f"{step:,}" + (f" of {steps:,}: the run is not finished" if step < steps else ""),
        "images seen": f"{step * batch:,} ({batch:,} a step)",
        "views": f"{config.views.size} x {config.views.size} pixels",
        "level that was trained": _level(config),
        "seed": str(config.seed),
    }
    changed = [
        f"- {_code(key)}: {_plain(key, mine)} (preset: {_plain(key, usual)})"
        for key, mine, usual in config.differences(preset(name, config.method))
        if key not in ("preset", "method", "seed", "data.source")
    ]
    start = "the preset" if name != "custom" else "plrc's defaults"
    told = (
        "\n".join([f"Settings that differ from {start}:", "", *changed]) if changed else f"All settings are {start}'s."
    )
    return f"{_table(rows)}\n\n{told}"


def _level(config: Config) -> str:
    """Which features, and whether the last stage saw a finer lattice than it will in most detectors."""
    finer = ", with layer4 at stride 1 (the same tensors as at stride 2)" if config.model.layer4_stride == 1 else ""
    return f"stride {config.model.stride}{finer if config.model.stride == 32 else ''}"


def _results(saved: Mapping[str, Any], run: Path) -> str:
    parts = []
    losses = {key: value for key, value in _last_losses(run).items() if key.endswith(("_loss", "_kl"))}
    if losses:
        parts.append("Last training losses:\n\n" + _table({key: f"{value:.4f}" for key, value in losses.items()}))
    if saved["health"]:
        first, last = saved["health"][0], saved["health"][-1]
        measured = [k for k in last if k not in ("step", "seconds") and None not in (first.get(k), last[k])]
        rows = {k: f"{first[k]:.3f} -> {last[k]:.3f}" for k in measured}
        steps = f"steps {first['step']} and {last['step']}"
        parts.append(f"Label-free health of the features on held-out images, at {steps}:\n\n{_table(rows)}")
    parts.append("No detection result is part of this export; `plrc compare` measures one on labelled images of yours.")
    return "\n\n".join(parts)


def _limits(config: Config, receipt: Mapping[str, Any]) -> str:
    lines = [LIMITS]
    if config.model.stride < 32:
        known = "" if not is_user_code(config.model.backbone) else ", where the network has any,"
        lines.append(f"- Layers after stride {config.model.stride}{known} were not trained.")
    if int(receipt["step"]) < int(receipt["steps"]):
        lines.append("- The run was not finished when this was exported.")
    return "\n".join(lines)


def _licence(config: Config) -> str:
    own = "Your images' licence and your own terms apply to these weights; plrc itself is Apache-2.0 and claims none."
    chain = [link if link == RANDOM else Path(link).name for link in start_of(config.model.init)]
    if chain == [RANDOM] and is_user_code(config.model.backbone):
        code = _plain("model.backbone", config.model.backbone)
        return (
            f"The network is built by its owner's code ({code}). plrc cannot tell whether that code loads weights: "
            f"if it does, **check their licence**; if not, they were random. {own}"
        )
    if chain == [RANDOM]:
        return f"Random initial weights: no licence of others is inherited from them. {own}"
    told = f"Started from {', which started from '.join(map(_code, chain))}."
    if chain[-1] == RANDOM:
        return f"{told} The images of those runs count too. {own}"
    known = [sentence for pattern, sentence in LICENCES if re.search(pattern, chain[-1])]
    return (
        f"{told}\n\n**Warning: these starting weights may not be free for your use.** "
        f"{known[0] if known else 'plrc does not know their licence.'} "
        f"Ask under which licence they were given before you use or publish these weights.\n\n{own}"
    )


def _use(receipt: Mapping[str, Any]) -> str:
    have = receipt["settings"]
    rows = {key: str(have[key]) for key in ("channels", "pixels", "mean", "std")}
    lines = [f"- {_code(line)}" for line in have["set"]]
    return "\n".join([_table(rows), "", f"With {_code(str(receipt['target']))}:", "", *lines])


def _proof(receipt: Mapping[str, Any]) -> str:
    rows: dict[str, str] = {}
    for key, value in receipt.items():
        if isinstance(value, (list, tuple)):
            rows[key.replace("_", " ")] = ", ".join(_without_folder(str(item)) for item in value) or "none"
        elif key in ("file", "checkpoint"):
            rows[key] = Path(value).name
        elif key == "note":
            rows |= {key: _reason(value)} if value else {}
        elif value is None:
            rows[key.replace("_", " ")] = "not compared"
        elif isinstance(value, float):
            rows[key.replace("_", " ")] = f"{value:.1e}"
        elif isinstance(value, (str, int)):
            rows[key.replace("_", " ")] = _without_folder(str(value))
    return _table(rows)


def _versions(saved: Mapping[str, Any]) -> str:
    return _table(
        {
            "plrc, at training": str(saved["version"]),
            "PyTorch, at export": torch.__version__,
            "torchvision, at export": torchvision.__version__,
            "Python, at export": platform.python_version(),
        }
    )


def _last_losses(run: Path) -> dict[str, float]:
    try:
        with open(run / "metrics.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        if line.startswith("{") and line.endswith("}"):
            values = json.loads(line)
            if values.get("kind") == "train":
                return {key: value for key, value in values.items() if isinstance(value, float)}
    return {}


def _init_of(path: Path) -> str | None:
    """`model.init` of the run that a folder or file is of; None where it is of none, or not there any more."""
    folder = path.parent.parent if path.parent.name in ("checkpoints", "exported") else path
    stored = folder / "config.toml" if (folder / "config.toml").is_file() else None
    try:
        if path.suffix == ".safetensors" and path.is_file():
            with safetensors.safe_open(path, "pt") as file:
                config = (file.metadata() or {}).get("config")
            return Config.from_dict(json.loads(config)).model.init if config else None
        return Config.load(stored).model.init if stored and path.exists() else None
    except (PlrcError, ValueError, safetensors.SafetensorError):
        return None


def _table(rows: Mapping[str, str]) -> str:
    lines = [f"| {key} | {_code(value).replace('|', chr(92) + '|')} |" for key, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _plain(key: str, value: Any) -> str:
    return _code(_last_name(str(value)) if key in PATHS else str(value)) if value != "" else "(empty)"


def _reason(note: str) -> str:
    """Without its last part, the message of a package that cannot be imported, where that may tell of folders."""
    return note.partition(" (")[0] if re.search(r"[\\/]", note) else note


def _without_folder(text: str) -> str:
    return _last_name(text) if ".py:" in text else text


def _last_name(text: str) -> str:
    place, colon, function = text.rpartition(":")
    return f"{_last(place)}:{function}" if colon and place.endswith(".py") else _last(text)


def _last(text: str) -> str:
    return re.split(r"[\\/]", text.rstrip("\\/"))[-1]


def _code(text: str) -> str:
    """A code span that holds any text: its fence is longer than every run of backticks inside."""
    text = " ".join(text.split()) or " "
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{space}{text}{space}{fence}"
