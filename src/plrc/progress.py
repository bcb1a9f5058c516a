"""The progress callback of long jobs."""

from __future__ import annotations

from typing import Protocol


class OnProgress(Protocol):
    """Called by a long job at intervals.

    Args:
        done: Number of finished units of work (steps, images, runs).
        total: Number of all units of work.
        line: A short description of the current state; may be empty.
    """

    def __call__(self, done: int, total: int, line: str = "") -> None: ...


def ignore_progress(done: int, total: int, line: str = "") -> None:
    """Do nothing: the default progress callback."""
