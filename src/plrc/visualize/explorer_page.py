"""An `Explorer` and figures of its run -> one self-contained HTML file.

The page runs only its own script, whose hash is in the policy of its head, and loads nothing from any host.
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
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from plrc.errors import PlrcError
from plrc.visualize.dense_features import CompressedFeatures
from plrc.visualize.explorer import Explorer
from plrc.visualize.figures import default_style, heat_colors
from plrc.visualize.page import render
from plrc.visualize.report import run_section
from plrc.visualize.samples import RunSamples

SCRIPTS = ("features.mjs", "explorer.mjs")
_WEBP_QUALITY = 85  # of the samples' figures


def explorer_page(explorer: Explorer, run: Path, samples: RunSamples) -> str:
    """Return the HTML of an explorer.

    Args:
        explorer: Images, networks and features.
        run: The run folder, whose report becomes part of the page.
        samples: Figures of the run's samples.
    """
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
        "explorer.html",
        name=run.resolve().name,
        run=section,
        missing=missing,
        script=Markup(script),
        script_hash=Markup(f"'sha256-{digest}'"),
        data=content,
        blocks=_blocks(explorer),
        images=len(explorer.images),
        steps=len(content["steps"]),
        config=explorer.config,
        notes=explorer.notes,
        key=_color_key(),
        networks=_cosine_errors(explorer),
        regions=samples.regions,
        has_match_view=samples.has_match_view,
        samples_note=samples.note,
        batch=_figure_uri(samples.batch) if samples.batch else "",
        samples=[{"name": name, "source": _figure_uri(figure)} for name, figure in samples.samples],
    )


def _script() -> str:
    """Join the modules to one classic script in a block; it runs before the images that follow it have arrived."""
    pages = files("plrc.visualize") / "pages"
    text = "\n".join((pages / name).read_text(encoding="utf-8") for name in SCRIPTS)
    text = re.sub(r"^import \{.*?\} from .*?;\n", "", text, flags=re.MULTILINE | re.DOTALL)
    return '"use strict";\n{\n' + re.sub(r"^export ", "", text, flags=re.MULTILINE) + "}\n"


def _content(explorer: Explorer) -> dict[str, Any]:
    """Return what explorer.mjs reads besides the images' files and features."""
    images = []
    for image in explorer.images:
        rows, columns = image.grid_size(explorer.config.stride)
        height, width = image.pixels.shape[1:]
        entry = {"name": image.name, "width": width, "height": height, "columns": columns, "rows": rows}
        images.append(entry | {"thumbnail": _base64(image.thumbnail)})
    return {
        "images": images,
        "steps": sorted({network.step for network in explorer.networks if network.step is not None}),
        "panels": _panels(explorer),
        "networks": [_network(features) for features in explorer.features],
        "table": _base64(heat_colors().tobytes()),
    }


def _panels(explorer: Explorer) -> list[dict[str, Any]]:
    """List the panels: one for all steps of a role, one for each network that has no step."""
    panels: dict[tuple[str, int], list[int]] = {}
    for index, network in enumerate(explorer.networks):
        distinct = index if network.step is None else -1
        panels.setdefault((network.label, distinct), []).append(index)
    return [{"label": label, "members": members} for (label, _), members in panels.items()]


def _network(features: CompressedFeatures) -> dict[str, Any]:
    return {
        "dim": len(features.offset),
        "offset": _rounded(features.offset),
        "scale": _rounded(features.scale),
        "color": _rounded(features.color),
    }


def _rounded(values: NDArray[np.float32]) -> list[float]:
    return [float(f"{value:.7g}") for value in values.ravel().tolist()]


def _blocks(explorer: Explorer) -> Iterator[dict[str, Any]]:
    """Yield the file and the features of each image in base64."""
    for index, image in enumerate(explorer.images):
        codes = [_base64(features.codes[index].tobytes()) for features in explorer.features]
        yield {"picture": _base64(image.jpeg), "features": codes}


def _cosine_errors(explorer: Explorer) -> list[dict[str, Any]]:
    rows = []
    for network, features in zip(explorer.networks, explorer.features, strict=True):
        components = len(features.offset)
        rows.append(
            {
                "label": network.title,
                "components": components,
                "rms": features.error_rms,
                "max": features.error_max,
            }
        )
    return rows


def _color_key() -> str:
    file = io.BytesIO()
    Image.fromarray(heat_colors()[None]).save(file, "PNG")
    return f"data:image/png;base64,{_base64(file.getvalue())}"


def _figure_uri(figure: Figure) -> str:
    file = io.BytesIO()
    with default_style():
        figure.savefig(file, format="webp", pil_kwargs={"quality": _WEBP_QUALITY})
    return f"data:image/webp;base64,{_base64(file.getvalue())}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
