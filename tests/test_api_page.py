"""docs/API.md is what `python docs/make_api.py` writes, and every public function has what the page promises."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "docs" / "make_api.py"
spec = importlib.util.spec_from_file_location("make_api", SCRIPT)
assert spec is not None and spec.loader is not None
make_api = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_api)

FUNCTIONS = [member for members in make_api.SECTIONS.values() for member in members if inspect.isfunction(member)]


def test_the_page_is_up_to_date() -> None:
    assert make_api.PAGE.read_text(encoding="utf-8") == make_api.page()


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__qualname__)
def test_a_public_function_documents_arguments_and_result_and_has_an_example(function: object) -> None:
    text = inspect.getdoc(function) or ""
    for part in ("Args:", "Returns:", "Example:"):
        assert f"\n{part}\n" in text


@pytest.mark.parametrize("module", ["plrc.geometry", "plrc.settings"])
def test_examples_give_what_they_show(module: str) -> None:
    results = doctest.testmod(importlib.import_module(module))
    assert results.attempted > 0 and results.failed == 0
