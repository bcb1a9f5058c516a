"""Templates -> HTML pages of one look.

A page is one file that loads nothing from outside, fits a phone, and follows the reader's choice of light or dark.
Names from file systems and configurations are escaped. `pages/base.html` holds the look; each page extends it.
"""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **content: object) -> str:
    """Render a template of `pages/` with the values that it uses; a missing value is an error.

    Bytes of file names that are not text become question marks.
    """
    return _environment().get_template(template).render(**content).encode("utf-8", "replace").decode()


@cache
def _environment() -> Environment:
    loader = PackageLoader("plrc.visualize", "pages")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
