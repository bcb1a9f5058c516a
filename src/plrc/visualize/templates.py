"""The templates of the pages. Layer 5; needs the extra `report`."""

from __future__ import annotations

from jinja2 import Environment, PackageLoader, StrictUndefined


def environment() -> Environment:
    """Templates of `pages/`: all that is put into them is escaped, and a missing name is an error."""
    return Environment(
        loader=PackageLoader("plrc.visualize", "pages"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
