"""What to warn of before labelled images are used.

Splits that overlap in all but name, objects too small, and deep images that the pre-training saw rescaled otherwise.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from plrc.transfer.labels.leaks import leak_warnings
from plrc.transfer.labels.object_sizes import detector_warnings, pretraining_size_warnings, run_config
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
    warnings += rescaling_warnings(data, inits)
    for warning in warnings:
        logger.warning(warning)
    return warnings


def rescaling_warnings(data: LabelledConfig, inits: Sequence[str]) -> list[str]:
    """Describe the runs whose images of more than 8 bits were rescaled otherwise.

    Args:
        data: The labelled images.
        inits: Initial weights; those that are no run folders say nothing about it.
    """
    warnings: list[str] = []
    for init in dict.fromkeys(inits):
        config = run_config(init)
        if config is None or config.data.rescale_percentiles == data.rescale_percentiles:
            continue
        trained = " ".join(f"{value:g}" for value in config.data.rescale_percentiles)
        now = " ".join(f"{value:g}" for value in data.rescale_percentiles)
        warnings.append(
            f"data.rescale_percentiles is {now}, and {init} was pre-trained with {trained}: its images of more than 8 "
            f"bits were rescaled otherwise; write --data.rescale-percentiles {trained} (plrc transfer probe: "
            "--rescale-percentiles)"
        )
    return warnings
