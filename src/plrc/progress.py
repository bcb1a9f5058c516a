"""How long jobs report their progress: one kind of callback for all of them."""

from __future__ import annotations

from typing import Protocol


class OnProgress(Protocol):
    """Called by a long job now and then.

    Args:
        done: Units of work (steps, images, runs) that are finished.
        total: Units of work in all.
        line: A short description of where the job stands; may be empty.
    """

    def __call__(self, done: int, total: int, line: str = "") -> None: ...


def ignore_progress(done: int, total: int, line: str = "") -> None:
    """The callback of a caller who does not want any."""
