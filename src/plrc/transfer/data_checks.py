"""What to warn of before labelled images are used: splits that overlap in all but name, objects too small."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from plrc.transfer.labels.leaks import leak_warnings
from plrc.transfer.labels.object_sizes import detector_warnings, pretraining_size_warnings
from plrc.transfer.labels.splits import Splits
from plrc.transfer.protocols import LabelledConfig, TransferConfig

logger = logging.getLogger(__name__)


def log_data_warnings(
    splits: Splits, data: LabelledConfig, inits: Sequence[str], config: TransferConfig | None = None
) -> list[str]:
    """Log warnings about the labelled images, and return them for the results.

    Args:
        splits: The labelled images.
        data: Where they are from.
        inits: Initial weights: "random", "pretrained", run folders or files.
        config: The transfer run, or the settings that all runs share; None: no detector is trained.
    """
    warnings = leak_warnings(splits, data, inits)
    images = splits.train.images
    if config is not None and config.task != "semantic":
        warnings += detector_warnings(images, config)
    warnings += pretraining_size_warnings(images, inits)
    for warning in warnings:
        logger.warning(warning)
    return warnings
