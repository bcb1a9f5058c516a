"""Initial weights of a comparison: what --init names, where weights come from, and a hash of their content."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

from plrc.compare.plan import ComparisonPlan
from plrc.data.manifest import read_manifest
from plrc.engine.checkpoint import checkpoint_of
from plrc.errors import ConfigError, DataError, WeightsError
from plrc.files import file_sha256
from plrc.model.start_pixels import is_of_plrc
from plrc.model.transformers_networks import WEIGHTS_FILE, is_detector_folder
from plrc.model.weights import read_weights
from plrc.pixels import PixelStatistics
from plrc.transfer.data_checks import log_data_warnings
from plrc.transfer.initial import initial_backbone, with_own_backbone
from plrc.transfer.labels.datasets import usual_pixels
from plrc.transfer.labels.splits import LabelledSet, read_labelled
from plrc.transfer.protocols import TransferConfig

Origin = Literal["random", "torchvision", "pretrained", "plrc", "file"]

logger = logging.getLogger(__name__)

WITHOUT_PATH: dict[str, Origin] = {"random": "random", "torchvision": "torchvision", "pretrained": "pretrained"}
MANIFEST = "manifest.json"


def build_comparison(
    base: TransferConfig,
    inits: Sequence[str],
    fractions: tuple[float, ...],
    shots: tuple[int, ...],
    seeds: int,
    lrs: tuple[float, ...],
    processes: int,
) -> ComparisonPlan:
    """Build a comparison from the options of the command line.

    Each weights file is loaded into the backbone once, so that a file that does not fit is refused before anything
    runs. The labels are read once, for their digest.

    Args:
        base: Settings that all runs share; `base.run.out` is the folder of the comparison.
        inits: Initial weights, each random, pretrained, RUN, FILE or NAME=RUN,RUN,... Random is always compared.
        fractions: See `ComparisonPlan`.
        shots: See `ComparisonPlan`.
        seeds: Number of seeds.
        lrs: Learning rates to choose from, in any order.
        processes: Number of runs at the same time.

    Raises:
        PlrcError: Settings, weights or labels that cannot be used.
    """
    base.check_named()
    groups = read_inits(inits)
    if base.data.val == "none":
        if "data.val" in base.pinned:
            logger.info("--data.val none is not used: a comparison chooses learning rates on validation images")
        base = base.with_values({"data.val": ""})
    rates = tuple(sorted(set(lrs)))
    comparison = ComparisonPlan(base, groups, fractions, shots, seeds, rates, Path(base.run.out), processes)
    splits = read_labelled(base.data, base.task)
    usual = usual_pixels(splits.train, base.data.pixels)
    chosen = list(dict.fromkeys(itertools.chain(*groups.values())))
    base = with_own_backbone(base, chosen)
    backbone = _common_backbone(chosen, base, usual)
    _check_test_images_unseen(comparison, splits.test)
    log_data_warnings(splits, base.data, chosen, base)
    return replace(comparison, base=base.with_values({"model.backbone": backbone}), digest=splits.digest())


def read_inits(texts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return name -> values of `TransferConfig.init` for what --init names; random comes first.

    Raises:
        ConfigError: A text that names no weights, or two groups of weights with the same name.
    """
    groups: dict[str, tuple[str, ...]] = {"random": ("random",)}
    for text in texts:
        name, group = _read_init(text)
        if name in groups and (name, group) != ("random", ("random",)):
            files = ",".join(group)
            raise ConfigError(f"two of the initial weights are called {name}; rename one: --init NAME={files}")
        groups[name] = group
    return groups


def _read_init(text: str) -> tuple[str, tuple[str, ...]]:
    """Return the name and the values of one --init, such as NAME=RUN,RUN; a path may contain "=" and "," itself."""
    name, equals, files = text.partition("=")
    group: tuple[str, ...]
    if not equals or Path(text).exists():
        name = text if text in WITHOUT_PATH else Path(os.path.abspath(text)).name
        group = (text,)
    elif Path(files).exists():
        group = (files,)
    else:
        group = tuple(files.split(","))
    if not name or "" in group:
        raise ConfigError(f"--init {text} names no weights; write random, pretrained, RUN, FILE or NAME=RUN,RUN")
    return name, group


def _common_backbone(inits: list[str], base: TransferConfig, usual: PixelStatistics) -> str:
    """Load all initial weights once, so that those that do not fit are refused, and return the backbone of all."""
    backbone = base.model.backbone
    for init in inits:
        if init != "random":
            backbone = initial_backbone(init, backbone, base.partial, usual=usual)[1].backbone
    return backbone


def _check_test_images_unseen(comparison: ComparisonPlan, test: LabelledSet) -> None:
    """Refuse pre-training runs whose manifest lists test images, by file name and size."""
    sizes = {(os.path.basename(image.path), os.stat(image.path).st_size) for image in test.images}
    for init in itertools.chain(*comparison.inits.values()):
        path = Path(init) / MANIFEST
        if not path.is_file():
            continue
        manifest = read_manifest(path)
        names = manifest["train"] | manifest["held_out"]
        trained = {(os.path.basename(name), size) for name, size in names.items()}
        seen = sorted(sizes & trained)
        if seen:
            raise DataError(
                f"{init} was pre-trained on {len(seen)} of the {len(test.images)} test images, such as {seen[0][0]}: "
                "pre-train without them (--data.exclude), or name another split with --data.test"
            )


def fingerprint(init: str) -> str:
    """Return the SHA-256 of a weights file, of a detector's, or of a run's newest checkpoint; else `init` itself.

    Raises:
        WeightsError: A path without weights.
    """
    if init in WITHOUT_PATH:
        return init
    file = checkpoint_of(Path(init))
    if not file.is_file():
        raise WeightsError(
            f"{init} is neither a weights file nor a run folder with a checkpoint, and no detector's folder; name one "
            "of these"
        )
    status = file.stat()
    return _sha256(file, status.st_size, status.st_mtime_ns)


@lru_cache
def _sha256(file: Path, size: int, modified: int) -> str:
    """Hash a file; size and time of the last change are only keys of the cache."""
    return file_sha256(file)


def weights_origin(init: str) -> Origin:
    """Return where weights come from: random, torchvision, pretrained, plrc (a run, or a file of one), or file."""
    if init in WITHOUT_PATH:
        return WITHOUT_PATH[init]
    path = Path(init)
    if is_detector_folder(path):
        path = path / WEIGHTS_FILE
    if path.is_dir():
        return "plrc"
    status = path.stat()
    return "plrc" if _is_file_of_plrc(path, status.st_size, status.st_mtime_ns) else "file"


@lru_cache
def _is_file_of_plrc(file: Path, size: int, modified: int) -> bool:
    """Whether plrc wrote a file; size and time of the last change are only keys of the cache."""
    try:
        metadata = read_weights(file).metadata
    except WeightsError:  # it was refused before the first run
        return False
    return is_of_plrc(metadata, str(file))
