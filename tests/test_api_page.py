"""docs/API.md names every public function and class, and each function has what the page promises."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pydoc
import re
from pathlib import Path

import pytest

import plrc

PAGE = Path(__file__).parents[1] / "docs" / "API.md"
NAMES = re.findall(r"^::: (plrc\S+)$", PAGE.read_text(encoding="utf-8"), re.M)


def test_the_page_names_everything_public() -> None:
    assert {f"plrc.{name}" for name in plrc.__all__} - {"plrc.objectives"} <= set(NAMES)
    assert {"plrc.objectives.image_contrast", "plrc.geometry.sample"} <= set(NAMES)
    assert len(NAMES) == len(set(NAMES))


@pytest.mark.parametrize("name", [*NAMES, "plrc.Config.with_values"])
def test_a_public_function_documents_arguments_and_result_and_has_an_example(name: str) -> None:
    member = pydoc.locate(name)
    text = inspect.getdoc(member) or ""
    assert text
    if inspect.isfunction(member):
        for part in ("Args:", "Returns:", "Examples:"):
            assert f"\n{part}\n" in text


@pytest.mark.parametrize("module", ["plrc.geometry", "plrc.settings"])
def test_examples_give_what_they_show(module: str) -> None:
    results = doctest.testmod(importlib.import_module(module))
    assert results.attempted > 0 and results.failed == 0
