"""Errors that a user can fix. Each message is one sentence: what is wrong and what to do."""

from __future__ import annotations


class PlrcError(Exception):
    """An error the user can fix.

    The command line prints the message on standard error and exits with status 2. A wrong call of a function (an array
    of the wrong shape, an argument of the wrong type) raises ValueError or TypeError instead.
    """


class ConfigError(PlrcError):
    """A setting that cannot be used, or that does not exist."""


class DataError(PlrcError):
    """Images, region maps or labels that cannot be used."""


class LayoutError(DataError):
    """A folder or file that does not have the requested layout (VOC, COCO, ...)."""


class WeightsError(PlrcError):
    """Weights that cannot be read, or that do not fit the network."""


class RunError(PlrcError):
    """A run that cannot start, resume or continue: its folder, its processes, its memory or its numbers."""


class ExportError(PlrcError):
    """Weights that cannot be exported, or an exported file that failed its verification."""


class MissingPackageError(PlrcError):
    """An optional package that is needed and not installed.

    Args:
        purpose: What needs it, in the plural, such as "superpixels".
        packages: Names under which pip installs what is missing.
    """

    def __init__(self, purpose: str, *packages: str) -> None:
        super().__init__(f"{purpose} need {' and '.join(packages)}; install with: pip install {' '.join(packages)}")
