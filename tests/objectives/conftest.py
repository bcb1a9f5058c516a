"""The problems of these tests are small: they must reach the kernels that large ones reach."""

from __future__ import annotations

import pytest

from plrc.objectives import kernels


@pytest.fixture(autouse=True)
def _attention_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_FEW_QUERIES", 0)
