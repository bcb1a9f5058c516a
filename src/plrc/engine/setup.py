"""Prepare everything that a run needs: device, images, adapted settings, run folder.

A resumed run keeps the images of its manifest, its adapted settings and its precision. It is refused if settings or
images differ from those at its start, unless `run.allow_changes` is set.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plrc import distributed
from plrc.config import Config
from plrc.data import cache
from plrc.data.channel_statistics import measure_pixels
from plrc.data.groups import group_names, require_two_groups
from plrc.data.manifest import build_manifest, compare_manifests, images_from_manifest, read_manifest, write_manifest
from plrc.data.regions import Regions
from plrc.data.sampler import split_held_out
from plrc.data.sources import ImageList, find_images, sample_remarks
from plrc.engine.adapt import Change, adapt, steps_per_epoch, total_steps
from plrc.engine.budget import UNLIMITED_STEPS
from plrc.engine.checkpoint import newest_checkpoint, rename_damaged
from plrc.engine.checks import check_batch, check_missing_images, check_required, check_resumed, check_settings
from plrc.engine.image_sizes import describe_view_scale
from plrc.errors import DataError, RunError
from plrc.files import LOCK, NO_LOCK_ERRORS, FolderLock, is_unused, remove_partial
from plrc.model.start_pixels import refuse_other_channels, start_pixels
from plrc.model.starts import PRETRAINED
from plrc.model.transformers_networks import is_detector_folder
from plrc.model.weights import read_weights
from plrc.pixels import IMAGENET, RGB_CHANNELS, PixelStatistics
from plrc.runtime import choose_device, choose_precision, choose_workers

LISTING_SETTINGS = ("source", "layout", "split", "exclude", "pages", "held_out", "group")
"""Settings of the section `data` that decide which images a run has."""
FOLLOW_BATCH = ("optim.lr", "model.bn_groups")
"""Adapted settings that depend on batch size and gradient accumulation: adapted again if these change on resume."""


@dataclass(frozen=True)
class Plan:
    """Everything that is decided before the first step.

    Attributes:
        config: The settings, adapted.
        out: The run folder.
        device: The device of this process.
        images: All images.
        train: Positions of the training images in `images`.
        held_out: Positions of the images that health is measured on.
        steps: Steps of the whole run; UNLIMITED_STEPS with a time budget.
        steps_per_epoch: Steps in which each training image is used once.
        workers: Loader processes.
        checkpoint: Where to resume from; None: a fresh start.
        remarks: Sentences that the run logs at its start.
        warnings: Sentences that it logs as warnings.
    """

    config: Config
    out: Path
    device: torch.device
    images: ImageList
    train: np.ndarray
    held_out: np.ndarray
    steps: int
    steps_per_epoch: int
    workers: int
    checkpoint: Path | None
    remarks: tuple[str, ...]
    warnings: tuple[str, ...]


def prepare(config: Config, lock: FolderLock | None = None) -> Plan:
    """Check everything that can be checked before training, and write config.toml and manifest.json of a fresh run.

    Those of a run that resumes from a checkpoint are written once it is restored: see `write_records`.

    Args:
        config: The settings of the run.
        lock: The main process locks the run folder with it before it writes. None: the folder is not locked.

    Raises:
        PlrcError: If the run cannot start. At most the folder and its lock file were created then.
    """
    check_required(config)
    out = Path(config.run.out)
    stored: Config | None = None  # the settings of the run that is resumed
    if _is_resumed(config, out):
        stored = Config.load(out / "config.toml")
    device = choose_device(config.run.device)
    distributed.start(device, config.run.stall_seconds)
    if config.run.threads:
        torch.set_num_threads(config.run.threads)

    images, train, held_out = _list_images(config, stored, out / "manifest.json")
    _check_same_in_all_processes(config, images)
    config, changes = _adapt(config, stored, len(train), device)
    config, pixel_remarks = _choose_pixels(config, stored, images, train)
    remarks = _describe_images(images, train, held_out) + pixel_remarks
    remarks += [f"adapted {change}" for change in changes]
    remarks += describe_view_scale(config, images)

    check_batch(config, len(train), distributed.world_size())
    remarks += check_settings(config, distributed.world_size(), device.type, images.shards is not None)
    Regions(config, images)  # only to raise an error now if the source of regions cannot be used
    if config.run.cache:
        cache.require_writable(config.run.cache)
    if stored is not None:
        _check_against_stored(config, stored, out, images, train, held_out)

    warnings: list[str] = []
    distributed.barrier()  # all processes have passed the checks; nothing was written before
    if distributed.is_main():
        try:
            warnings = _claim_folder(config, out, fresh=stored is None, lock=lock)
            if stored is None or newest_checkpoint(out) is None:
                _save_settings_and_images(config, out, images, train, held_out)
        except OSError as error:
            advice = "make it writable, or name another --out"
            raise RunError(f"cannot use {error.filename or out}: {error.strerror}; {advice}") from error
    distributed.barrier()
    return Plan(
        config=config,
        out=out,
        device=device,
        images=images,
        train=train,
        held_out=held_out,
        steps=UNLIMITED_STEPS if config.optim.hours else total_steps(config, len(train)),
        steps_per_epoch=steps_per_epoch(len(train), config.optim.batch_size),
        workers=choose_workers(config.run.workers, device),
        checkpoint=newest_checkpoint(out) if stored is not None else None,
        remarks=tuple(remarks),
        warnings=tuple(warnings),
    )


def write_records(plan: Plan) -> None:
    """Write config.toml of a resumed run and, if changes are allowed, manifest.json.

    Before, its checkpoint must be restored: settings that do not fit the checkpoint must not replace those that do.
    """
    _save_settings_and_images(plan.config, plan.out, plan.images, plan.train, plan.held_out)


def _is_resumed(config: Config, out: Path) -> bool:
    """Whether the folder holds a run to resume. Raises RunError if a run can neither be resumed nor started there."""
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file; --out must name a folder")
    if is_unused(out, LOCK):
        return False
    if not config.run.resume:
        raise RunError(f"the run folder {out} is not empty; add --resume to continue it, or name another --out")
    if not (out / "config.toml").exists():
        raise RunError(f"{out} is not empty and holds no plrc run (no config.toml); name another --out")
    return True


def _list_images(config: Config, stored: Config | None, manifest: Path) -> tuple[ImageList, np.ndarray, np.ndarray]:
    """Return (all images, positions of training images, positions of held-out images).

    A resumed run takes the images from its manifest, even if files were added to the folder since its start. If one of
    LISTING_SETTINGS was changed, the images are listed anew.
    """
    if stored is not None and manifest.exists():
        changed = [name for name in LISTING_SETTINGS if getattr(config.data, name) != getattr(stored.data, name)]
        if not changed:
            return images_from_manifest(read_manifest(manifest))
    images = find_images(config.data)
    groups = group_names(images.names, config.data.group, images.reading)
    if config.data.held_out:
        require_two_groups(groups, images.names, config.data.group)
    train, held_out = split_held_out(groups, config.data.held_out, config.seed)
    if config.data.group and config.data.held_out and not held_out.size:
        images.reading.add("no group of data.group is smaller than a tenth of the images: none is held out for health")
    images.reading.add(*sample_remarks(images, config.data))
    return images, train, held_out


def _check_same_in_all_processes(config: Config, images: ImageList) -> None:
    """Raise DataError, in every process, if the processes do not list the same images."""
    if distributed.world_size() == 1:
        return
    digest = hashlib.sha256("\n".join(images.names).encode(errors="surrogateescape")).hexdigest()
    digests = distributed.merge_dicts({str(distributed.rank()): digest})
    if len(set(digests.values())) > 1:
        raise DataError(
            f"the processes find different images in {config.data.source}; let all hosts see the same files"
        )


def _adapt(config: Config, stored: Config | None, num_train: int, device: torch.device) -> tuple[Config, list[Change]]:
    """Adapt settings to the data, and replace the precision "auto" by that of the device.

    A resumed run takes the stored values of these settings instead. Only those that follow the batch (FOLLOW_BATCH) are
    adapted anew if the number of images at a time has changed. Returns (settings, changes made here).
    """
    adapted, changes = adapt(config, num_train, distributed.world_size())
    adapted_values = {change.name: change.new for change in changes}
    if config.optim.precision == "auto":
        dtype = choose_precision(config.optim.precision, device)
        adapted_values["optim.precision"] = str(dtype).removeprefix("torch.")  # such as "float32"
    if stored is None:
        return config.with_values(adapted_values, pin=False), changes
    readapted: list[Change] = []
    if _batch(adapted) != _batch(stored):
        readapted = [change for change in changes if change.name in FOLLOW_BATCH]
    stored_settings = stored.flat()
    values = {name: stored_settings[name] for name in adapted_values}
    values |= {change.name: change.new for change in readapted}
    return config.with_values(values, pin=False), readapted


def _batch(config: Config) -> tuple[int, int]:
    return config.optim.batch_size, config.optim.gradient_accumulation_steps


def _choose_pixels(
    config: Config, stored: Config | None, images: ImageList, train: np.ndarray
) -> tuple[Config, list[str]]:
    """Set the pixel statistics: the user's, or those of the start weights; a resumed run takes the stored ones.

    The settings stay empty for ImageNet's statistics. For images that are not RGB, start weights of another number of
    channels say nothing, and statistics that are not given are measured. Returns (settings, remarks).
    """
    given = bool(config.data.mean)
    if stored is not None:
        if config.data.channels != stored.data.channels:
            raise RunError(
                f"{config.run.out} was started with data.channels {stored.data.channels}, now {config.data.channels}: "
                "resume without changing it, or name another --out"
            )
        if given:
            return config, []  # compared with the stored ones later
        return config.with_values({"data.mean": stored.data.mean, "data.std": stored.data.std}, pin=False), []
    expected: PixelStatistics | None = None  # those of the start weights
    source = "data.mean and data.std"
    if config.model.init:
        expected, origin = start_pixels(config.model.backbone, _start_metadata(config.model.init), config.model.init)
        refuse_other_channels(expected, config.data.channels, config.model.init)
        if expected.channels != config.data.channels:  # weights for RGB, whose first convolution is inflated
            expected = None
        elif not given or config.data.pixels == expected:
            source = origin
        else:
            source = f"as you set; {origin} says {expected}"
    if given:
        pixels = config.data.pixels
    elif expected is not None:
        pixels = expected
    elif config.data.channels == RGB_CHANNELS:
        pixels = IMAGENET
    else:
        pixels, count = measure_pixels(images, train.tolist(), config.data)
        source = f"measured on {count} training images"
    remarks: list[str] = []
    if pixels != IMAGENET or given:
        config = config.with_values({"data.mean": pixels.mean, "data.std": pixels.std}, pin=False)
        remarks.append(f"pixels are normalized with {pixels} ({source})")
    return config, remarks


def _start_metadata(init: str) -> dict[str, Any]:
    """What the file of the start weights holds besides tensors; empty if there is none, which is an error later."""
    path = Path(init)
    is_run = path.is_dir() and not is_detector_folder(path)
    file = newest_checkpoint(path) if is_run else path
    if init == PRETRAINED or file is None or not file.exists():
        return {}
    return read_weights(file).metadata


def _describe_images(images: ImageList, train: np.ndarray, held_out: np.ndarray) -> list[str]:
    counts = f"{len(images)} images ({images.layout}): {len(train)} to train on, {len(held_out)} held out for health"
    if images.excluded:
        counts += f", {images.excluded} excluded"
    return [counts, *images.notes]


def _check_against_stored(
    config: Config, stored: Config, out: Path, images: ImageList, train: np.ndarray, held_out: np.ndarray
) -> None:
    """Raise an error if a resumed run would train on other images or with other settings."""
    image_differences: list[str] = []
    if (out / "manifest.json").exists():
        manifest = build_manifest(images, train.tolist(), held_out.tolist())
        image_differences = compare_manifests(read_manifest(out / "manifest.json"), manifest)
        check_missing_images(config, manifest["train"], images.root, out)
    check_resumed(config, stored, image_differences, out)
    if config.model.init != stored.model.init and newest_checkpoint(out) is not None:
        started_from = stored.model.init or "random weights"
        raise RunError(
            f"{out} has already been trained from {started_from}: resume without changing model.init, or name another "
            "--out"
        )


def _claim_folder(config: Config, out: Path, fresh: bool, lock: FolderLock | None) -> list[str]:
    """Lock the run folder, delete files that a killed process left half written, and set damaged checkpoints aside.

    Returns warnings.
    """
    warnings: list[str] = []
    if lock is not None:
        try:
            if not lock.take(out):
                raise RunError(f"another run is using {out}; wait for its end, or name another --out")
        except OSError as error:
            if error.errno not in NO_LOCK_ERRORS:
                raise
            warnings.append(f"the file system of {out} has no locks: do not start a second run in this folder")
        if fresh and _is_resumed(config, out):  # another process wrote to the folder before it was locked here
            raise RunError(f"another run has just used {out}; repeat the command to continue it")
        remove_partial(out)
    if not fresh:
        warnings += rename_damaged(out)
    return warnings


def _save_settings_and_images(
    config: Config, out: Path, images: ImageList, train: np.ndarray, held_out: np.ndarray
) -> None:
    """Write config.toml and manifest.json. The two settings that belong to a single start are not kept."""
    config.with_values({"run.resume": False, "run.allow_changes": False}, pin=False).save(out / "config.toml")
    if config.run.allow_changes or not (out / "manifest.json").exists():
        write_manifest(out / "manifest.json", images, train.tolist(), held_out.tolist())
