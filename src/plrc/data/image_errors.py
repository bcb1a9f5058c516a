"""What is raised for an image that cannot be used."""

from __future__ import annotations

from plrc.errors import DataError
from plrc.text import printable


class ImageError(DataError):
    """An image that cannot be used.

    Attributes:
        reason: What is wrong with it, without its name.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class DecodeError(ImageError):
    """A file that cannot be used as an image.

    Attributes:
        reason: What is wrong with the file.
        path: The file; empty if the bytes came from memory.
    """

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(reason)
        self.path = path
        self.args = (reason, path)  # what a loader process sends is built anew from `args`

    def __str__(self) -> str:
        return f"{printable(self.path)}: {self.reason}" if self.path else self.reason
