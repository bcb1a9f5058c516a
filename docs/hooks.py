"""MkDocs hook: files at the root of the repository belong to the site, and links work there and on a code host."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ROOT_FILES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CITATION.cff", "Dockerfile", "LICENSE")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files at the root of the repository next to those in docs/."""
    for name in ROOT_FILES:
        files.append(File.generated(config, name, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Take `docs/` and `../` from the start of links, because all pages of the site lie in one folder."""
    return re.sub(r'(\]\(|src=")(?:docs|\.\.)/', r"\1", markdown)
