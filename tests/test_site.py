"""The documentation as a site: built without a warning, nothing loaded from elsewhere, valid links and commands."""

from __future__ import annotations

import os
import pydoc
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from plrc.cli.pretrain import parse_config

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
LOADING = {
    "script",
    "link",
    "img",
    "iframe",
    "source",
    "video",
    "audio",
    "object",
    "embed",
}  # tags that fetch something


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


class Addresses(HTMLParser):
    """What a page fetches when it is opened. Links that a reader may follow do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag in LOADING:
            self.fetched += [value for name, value in attributes if name in ("src", "href", "data", "srcset") and value]


def test_every_page_is_part_of_the_site(site: Path) -> None:
    written = {path.stem for path in site.glob("*.html")}
    assert {"index" if path.stem == "README" else path.stem for path in PAGES} == written - {"404"}
    assert (site / "search" / "search_index.js").stat().st_size > 100_000


def test_nothing_is_fetched_from_another_host(site: Path) -> None:
    for path in site.glob("*.html"):
        page = Addresses()
        page.feed(path.read_text(encoding="utf-8"))
        assert len(page.fetched) > 3
        for address in page.fetched:
            assert not re.match(r"(\w+:)?//", address), f"{path.name} fetches {address}"
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", path.read_text(encoding="utf-8")), path


def test_pages_open_from_a_file_and_can_be_searched(site: Path, page: Any) -> None:
    for name in ("index.html", "GALLERY.html", "API.html"):
        page.goto(f"file://{site}/{name}")
        assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")
    assert page.locator("text=load_backbone(").count() > 0
    assert page.locator("blockquote").count() == 0  # ">>>" of an example that was not recognized
    page.click("input.md-search__input")
    page.wait_for_selector(".md-search-result__meta:text('Type to start searching')")
    page.keyboard.type("superpixels")
    page.wait_for_selector(".md-search-result__item a[href*='REGIONS.html']")
    assert page.problems == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_work_on_a_code_host(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)|src=\"([^\"]+)\"", path.read_text(encoding="utf-8"))
    for target in (link or image for link, image in targets):
        assert target.startswith("https://") or (path.parent / target).exists(), target


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))], ids=lambda path: path.name)
def test_imports_of_plrc_work(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S) + re.findall(r"^ {4}(.*)$", text, re.M)
    code = "\n".join(blocks)
    imported = re.findall(r"\bimport (plrc(?:\.\w+)*)", code)
    for module, names in re.findall(r"\bfrom (plrc(?:\.\w+)*) import \(?\s*(\w+(?:,\s*\w+)*)", code):
        imported += [f"{module}.{name}" for name in re.split(r",\s*", names)]
    assert [name for name in imported if pydoc.locate(name) is None] == []


@pytest.mark.parametrize("name", ["FAQ.md", "GALLERY.md", "MIGRATING.md"])
def test_commands_are_valid(name: str) -> None:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8").replace("\\\n", " ")
    commands = [shlex.split(line) for line in re.findall(r"^    plrc pretrain (.*)$", text, re.M)]
    for command in commands:
        assert parse_config(command).run.out.startswith("runs/")
    assert len(commands) == {"MIGRATING.md": 4}.get(name, 0)
