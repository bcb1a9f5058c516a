"""The finest features of an explorer whose page stays below a size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from plrc.errors import ConfigError
from plrc.visualize.dense_features import STRIDES
from plrc.visualize.explorer_inputs import MIN_COMPONENTS, ExplorerConfig, ExplorerImage, ExplorerNetwork, spread_evenly

_COMPONENTS = (64, 32, MIN_COMPONENTS)  # tried below what was asked for
_REST = 400_000  # bytes of everything but images and features: text, scripts, figures of the samples


def fit_to_page(
    config: ExplorerConfig, images: Sequence[ExplorerImage], networks: Sequence[ExplorerNetwork]
) -> tuple[ExplorerConfig, list[ExplorerNetwork]]:
    """Choose the finest features that fit into `config.megabytes`.

    A coarser feature grid counts as the largest loss; fewer components or checkpoints count as smaller ones.

    Returns:
        The configuration to use, and the networks to show.

    Raises:
        ConfigError: Not even the coarsest features fit.
    """
    steps = sorted({network.step for network in networks if network.step is not None})
    coarsest = max(config.image_size // 2, config.stride)
    strides = [stride for stride in STRIDES if config.stride <= stride <= coarsest]
    components = [config.components, *(number for number in _COMPONENTS if number < config.components)]
    smallest = math.inf
    least_loss = math.inf
    best: tuple[ExplorerConfig, list[ExplorerNetwork]] | None = None
    for stride in strides:
        for number in components:
            for count in range(len(steps), 0, -1):
                kept_steps = spread_evenly(steps, count)
                kept = [network for network in networks if network.step is None or network.step in kept_steps]
                checkpoints = config.checkpoints if count == len(steps) else count
                candidate = replace(config, stride=stride, components=number, checkpoints=checkpoints)
                size = page_bytes(candidate, images, len(kept))
                smallest = min(smallest, size)
                coarser = (stride / config.stride) ** 3
                loss = coarser * (config.components / number) * (len(steps) / count)
                if size <= config.megabytes * 1e6 and loss < least_loss:
                    least_loss = loss
                    best = (candidate, kept)
    if best is None:
        least = math.ceil(smallest / 1e5) / 10
        raise ConfigError(
            f"--megabytes must be >= {least:g} for {len(images)} images, got {config.megabytes:g}; "
            "write more megabytes, or fewer images with --limit"
        )
    return best


def page_bytes(config: ExplorerConfig, images: Sequence[ExplorerImage], networks: int) -> float:
    """Estimate the size of the page in bytes; base64 needs four characters for three bytes."""
    places = 0
    files = 0
    for image in images:
        rows, columns = image.grid_size(config.stride)
        places += rows * columns
        files += len(image.jpeg) + len(image.thumbnail)
    return (places * config.components * networks + files) * 4 / 3 + _REST


def describe_changes(asked: ExplorerConfig, fitted: ExplorerConfig) -> str:
    """Return what was made coarser, such as "32 components per place instead of 128"."""
    changes = []
    if fitted.stride != asked.stride:
        changes.append(f"a place every {fitted.stride} pixels instead of every {asked.stride}")
    if fitted.components != asked.components:
        changes.append(f"{fitted.components} components per place instead of {asked.components}")
    if fitted.checkpoints != asked.checkpoints:
        plural = "" if fitted.checkpoints == 1 else "s"
        changes.append(f"{fitted.checkpoints} checkpoint{plural} instead of {asked.checkpoints}")
    return ", ".join(changes)
