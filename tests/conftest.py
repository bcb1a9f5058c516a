"""Shared pieces: a folder of real JPEGs of generated scenes, a configuration that trains in seconds, a browser."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny import TINY

from plrc.config import Config
from plrc.presets import preset
from plrc.scenes import write_scenes

CHROMIUM = "/usr/bin/chromium"

torch.set_num_threads(1)  # the tensors are tiny: threads would only wait for each other


@pytest.fixture(scope="session", autouse=True)
def _own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the tests, and the processes that they start, out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 48 generated scenes, 64 x 64 JPEGs; the labels are stored next to it."""
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, {"train": 48}, seed=3, size=64)
    return root / "train" / "images"


@pytest.fixture
def tiny(scenes: Path, tmp_path: Path) -> Callable[..., Config]:
    """tiny(**dotted settings with __ for dots) -> a configuration of a few small steps on the scenes."""

    def build(method: str = "plrc", **settings: object) -> Config:
        values: dict[str, object] = {
            **TINY,
            "data.source": str(scenes),
            "data.held_out": 4,
            "run.out": str(tmp_path / "run"),
            "run.log_every_steps": 1,
            "optim.steps": 4,
            "model.strides": (8,),
        }
        values |= {name.replace("__", "."): value for name, value in settings.items()}
        return preset("debug_cpu", method).with_values(values)

    return build


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets, named by PLRC_DATA."""
    folder = os.environ.get("PLRC_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("PLRC_DATA does not name a folder with the real data sets")
    return Path(folder)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if not Path(CHROMIUM).exists():
        pytest.skip(f"{CHROMIUM} is not there: install Debian's package chromium")
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        yield started
        started.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page with a touch screen; `page.problems`: errors, and requests that leave the file."""
    context = browser.new_context(viewport={"width": 1100, "height": 900}, has_touch=True)
    opened = context.new_page()
    opened.problems = []

    def requested(request: Any) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            opened.problems.append(f"request: {request.url}")

    def log(message: Any) -> None:
        readback = message.text.startswith("Canvas2D")  # the tests read pixels back, the page does not
        if message.type in ("error", "warning") and not readback:
            opened.problems.append(message.text)

    opened.on("request", requested)
    opened.on("pageerror", lambda error: opened.problems.append(f"error: {error}"))
    opened.on("console", log)
    yield opened
    context.close()
