"""Templates -> HTML: the one look of all pages. Layer 5, imports nothing of ours.

A page is one file that asks for nothing from outside, fits a phone, and follows the reader's choice of light or dark.
Whatever comes from a file system or a configuration is escaped. `pages/base.html` has the look; each page extends it.
"""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined


def render(template: str, **content: object) -> str:
    """The HTML of a template in `pages/`; a name that it uses and that is not given is an error. Bytes of file names
    that are no text become question marks."""
    return _pages().get_template(template).render(**content).encode("utf-8", "replace").decode()


@cache
def _pages() -> Environment:
    return Environment(
        loader=PackageLoader("plrc.visualize", "pages"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
