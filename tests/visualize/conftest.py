"""A real browser for pages, and real runs of a few seconds: a healthy one, a ruined one, one that never learnt."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import plrc
from plrc.config import PlrcError
from plrc.presets import preset

CHROMIUM = Path("/usr/bin/chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="the tests of pages need playwright")
    if not CHROMIUM.exists():
        pytest.skip(f"the tests of pages need Chromium at {CHROMIUM}")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        yield started
        started.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A playwright Page. `page.problems`: what its console complains of, errors in its scripts, and every request that
    is not for a file or for data in the page itself."""
    opened = browser.new_page()
    opened.problems = []
    opened.on("console", lambda said: said.type in ("error", "warning") and opened.problems.append(said.text))
    opened.on("pageerror", lambda error: opened.problems.append(str(error)))
    local = ("file:", "data:", "blob:")
    opened.on("request", lambda asked: asked.url.startswith(local) or opened.problems.append(asked.url))
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def runs(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of runs of 70 steps, by name; "ruined" ended before, by its learning rate of 10."""
    root = tmp_path_factory.mktemp("runs")
    shared = {
        "data.source": str(scenes), "data.held_out": 4, "run.workers": 0, "run.device": "cpu", "run.log_every_steps": 2,
        "run.health_every_steps": 10, "run.checkpoint_every_steps": 70, "views.size": 32, "optim.batch_size": 8,
        "optim.steps": 70, "model.stride": 8, "model.bn_groups": 2, "model.contrast_hidden": 16,
        "model.distill_hidden": 16, "objectives.points": 16, "objectives.distill_points": 16, "objectives.queue": 24,
    }  # fmt: skip
    own: dict[str, tuple[str, dict[str, object]]] = {
        "healthy": ("plrc", {"optim.lr": 2e-3}),
        "ruined": ("plrc", {"optim.lr": 10.0, "optim.name": "sgd"}),
        "idle": ("points", {"optim.lr": 1e-7}),
    }
    for name, (method, settings) in own.items():
        config = preset("debug_cpu", method).with_values(shared | settings | {"run.out": str(root / name)})
        with pytest.raises(PlrcError, match="collapsed") if name == "ruined" else contextlib.nullcontext():
            plrc.pretrain(config)
    return {name: root / name for name in own}
