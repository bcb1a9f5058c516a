"""Write docs/API.md from the docstrings of the public functions and classes: `python docs/make_api.py`."""

from __future__ import annotations

import inspect
from pathlib import Path

import plrc
from plrc import geometry, objectives

PAGE = Path(__file__).with_name("API.md")

INTRODUCTION = """# Python API

The public functions and classes, generated from their docstrings by `python docs/make_api.py`. Settings are explained
by `plrc pretrain --help`; `examples/own_loop.py` is a complete training loop that uses the objectives. METHOD sections
are those of [METHOD.md](METHOD.md).
"""

SECTIONS = {
    "Pre-training": (plrc.pretrain, plrc.preset, plrc.Config, plrc.Config.with_values, plrc.Run),
    "Using the weights": (plrc.load_backbone, plrc.export_backbone),
    "Objectives for your own training loop": (
        objectives.image_contrast,
        objectives.point_region_contrast,
        objectives.affinity_distillation,
    ),
    "Points and features for your own training loop": (geometry.sample, geometry.cell_centers, geometry.look_up),
    "Errors": (
        plrc.PlrcError,
        plrc.ConfigError,
        plrc.DataError,
        plrc.LayoutError,
        plrc.WeightsError,
        plrc.RunError,
        plrc.ExportError,
        plrc.MissingPackageError,
    ),
}


def page() -> str:
    """Return the content of API.md."""
    parts = [INTRODUCTION]
    for title, members in SECTIONS.items():
        parts.append(f"## {title}\n")
        parts += [_entry(member) for member in members]
    return "\n".join(parts)


def _entry(member: object) -> str:
    name = f"{_public_module(member)}.{member.__qualname__}"  # type: ignore[attr-defined]
    heading = name
    if inspect.isfunction(member):
        heading = f"{name}({', '.join(map(_parameter, inspect.signature(member).parameters.values()))})"
    return f"### `{name}`\n\n```text\n{heading}\n\n{inspect.getdoc(member)}\n```\n"


def _parameter(parameter: inspect.Parameter) -> str:
    """Return NAME or NAME=DEFAULT; its docstring explains the type."""
    if parameter.default is inspect.Parameter.empty:
        return parameter.name
    default = parameter.default
    return f"{parameter.name}={default.__name__ if inspect.isfunction(default) else repr(default)}"


def _public_module(member: object) -> str:
    """Return the module that users import the member from."""
    module = inspect.getmodule(member)
    for public in ("plrc.objectives", "plrc.geometry"):
        if module is not None and module.__name__.startswith(public):
            return public
    return "plrc"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
