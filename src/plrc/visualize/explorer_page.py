"""An `Explorer` and pictures of its run -> one self-contained HTML file.

Layer 5. The page runs its own scripts only (the policy in its head names their hash) and asks nothing of any host.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from plrc.errors import PlrcError
from plrc.files import write_text
from plrc.visualize.affinity import colour_table
from plrc.visualize.dense_features import CompressedFeatures
from plrc.visualize.explorer import Explorer, sides
from plrc.visualize.page import render
from plrc.visualize.report import run_section
from plrc.visualize.samples import Samples

SCRIPTS = ("features.mjs", "explorer.mjs")
_QUALITY = 85  # of the samples' pictures


def write_explorer_page(path: Path, explorer: Explorer, run: Path, samples: Samples) -> int:
    """Write the page, which appears whole or not at all; returns its size in bytes."""
    write_text(path, explorer_page(explorer, run, samples))
    return path.stat().st_size


def explorer_page(explorer: Explorer, run: Path, samples: Samples) -> str:
    """The HTML of the page."""
    script = _script()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    content = _content(explorer)
    section: dict[str, Any] | None = None
    missing = ""
    try:
        section = run_section(run)
    except PlrcError as error:  # of a folder that was copied in part
        missing = str(error)
    return render(
        "explorer.html", name=run.resolve().name, run=section, missing=missing, script=Markup(script),
        script_hash=Markup(f"'sha256-{digest}'"), data=content, blocks=_blocks(explorer),
        images=len(explorer.images), steps=len(content["steps"]), budget=explorer.config, notes=explorer.notes,
        key=_data_uri(Image.fromarray(colour_table()[None])), networks=_errors(explorer), regions=samples.regions,
        match=samples.match, samples_note=samples.note, batch=_data_uri(samples.batch, "WEBP") if samples.batch else "",
        samples=[{"name": name, "source": _data_uri(picture, "WEBP")} for name, picture in samples.pictures],
    )  # fmt: skip


def _script() -> str:
    """The modules as one script, their names in a block of their own; it runs where it stands, so that the first image
    can be used while the others still arrive."""
    pages = files("plrc.visualize") / "pages"
    text = "\n".join((pages / name).read_text(encoding="utf-8") for name in SCRIPTS)
    text = re.sub(r"^import \{.*?\} from .*?;\n", "", text, flags=re.MULTILINE | re.DOTALL)
    return '"use strict";\n{\n' + re.sub(r"^export ", "", text, flags=re.MULTILINE) + "}\n"


def _content(explorer: Explorer) -> dict[str, Any]:
    """What explorer.mjs reads: images, networks, and the panels, one a network or one for all steps of a role."""
    steps = sorted({source.step for source in explorer.networks if source.step is not None})
    panels: dict[tuple[str, int], list[int]] = {}
    for i, source in enumerate(explorer.networks):
        panels.setdefault((source.label, -1 if source.step is not None else i), []).append(i)
    images = []
    for picture, (rows, columns) in zip(explorer.images, sides(explorer), strict=True):
        height, width = picture.pixels.shape[1:]
        one = {"name": picture.name, "width": width, "height": height, "columns": columns, "rows": rows}
        images.append(one | {"thumbnail": base64.b64encode(picture.thumbnail).decode()})
    return {
        "images": images,
        "steps": steps,
        "panels": [{"label": label, "members": members} for (label, _), members in panels.items()],
        "networks": [_network(codes) for codes in explorer.codes],
        "table": base64.b64encode(colour_table().tobytes()).decode(),
    }


def _network(codes: CompressedFeatures) -> dict[str, Any]:
    return {
        "dim": len(codes.offset), "offset": _numbers(codes.offset), "scale": _numbers(codes.scale),
        "color": _numbers(codes.color),
    }  # fmt: skip


def _numbers(values: NDArray[np.float32]) -> list[float]:
    return [float(f"{value:.7g}") for value in values.ravel().tolist()]


def _blocks(explorer: Explorer) -> Iterator[dict[str, Any]]:
    """The heavy part of each image, as base64."""
    for i, picture in enumerate(explorer.images):
        features = [base64.b64encode(codes.codes[i].tobytes()).decode() for codes in explorer.codes]
        yield {"picture": base64.b64encode(picture.jpeg).decode(), "features": features}


def _errors(explorer: Explorer) -> list[dict[str, Any]]:
    return [
        {
            "label": source.title, "dim": len(codes.offset), "rms": codes.error_rms, "most": codes.error_max,
        }
        for source, codes in zip(explorer.networks, explorer.codes, strict=True)
    ]  # fmt: skip


def _data_uri(picture: Image.Image, kind: str = "PNG") -> str:
    file = io.BytesIO()
    picture.save(file, kind, quality=_QUALITY)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
