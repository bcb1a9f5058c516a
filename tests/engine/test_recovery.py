"""Failures of other processes are explained, also if a signal handler raised them in the middle of a save."""

from __future__ import annotations

import pytest

from plrc.engine.recovery import explain

DEATH = "DataLoader worker (pid 7) is killed by signal: Killed."


def interrupted_save() -> None:
    """Fail as `torch.save` does when a loader process dies while it writes: closing the file fails as well."""
    try:
        raise RuntimeError(DEATH)
    finally:
        raise RuntimeError("unexpected pos 35367552 vs 35367448")


def test_a_loader_process_that_dies_during_a_save_is_explained() -> None:
    with pytest.raises(RuntimeError, match="unexpected pos") as caught:
        interrupted_save()
    assert DEATH in explain(caught.value) and "resume with --resume" in explain(caught.value)


def test_other_errors_are_not_explained() -> None:
    assert explain(RuntimeError("shape mismatch")) == ""
