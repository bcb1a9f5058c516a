"""From a configuration to everything a run needs: folder, device, images, adapted settings.

Layer 4. Start-up order, written down: run folder (empty, or resumed) -> images (of a resumed run: those of its
manifest) -> adapted settings (of a resumed run: the stored ones) -> for a resumed run the same settings and images as
stored, or a refusal that shows the difference -> the lock on the run folder -> the newest checkpoint that is whole.
"""

from __future__ import annotations

import errno
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from plrc import distributed
from plrc.config import Config, RegionConfig
from plrc.data import cache
from plrc.data.manifest import build_manifest, compare_manifests, images_from_manifest, read_manifest, write_manifest
from plrc.data.regions import Regions
from plrc.data.sampler import split_held_out
from plrc.data.sources import ImageList, find_images
from plrc.engine.adapt import Change, adapt, check_batch, steps_per_epoch, total_steps
from plrc.engine.checkpoint import newest_checkpoint, set_damaged_aside
from plrc.errors import PlrcError
from plrc.files import LOCK, FolderLock, remove_partial
from plrc.model import feature_side
from plrc.runtime import choose_device, choose_precision, choose_workers

LISTING = ("source", "layout", "split", "exclude", "held_out")  # settings of `data` that decide which images there are
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # what a file system without locks answers


@dataclass(frozen=True)
class Plan:
    """All that is decided before the first step."""

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


def prepare(config: Config, lock: FolderLock | None = None) -> Plan:
    """Check everything that can be checked before training; writes config.toml and manifest.json of a fresh run.

    With `lock`, the main process takes it on the run folder before anything is written there.
    """
    if not config.data.source:
        raise PlrcError("no images named: write --data FOLDER (or a glob, a .txt list, a COCO .json, a VOC folder)")
    if not config.run.out:
        raise PlrcError("no run folder named: write --out FOLDER")
    out = Path(config.run.out)
    stored = Config.load(out / "config.toml") if _is_resumed(config, out) else None
    device = choose_device(config.run.device)
    distributed.start(device, config.run.stall_seconds)
    if config.run.threads:
        torch.set_num_threads(config.run.threads)

    images, train, held_out = _images(config, stored, out / "manifest.json")
    if distributed.world_size() > 1:
        _check_alike(config, images)
    config, changes = _fit(config, stored, len(train), device)
    remarks = [
        f"{len(images.names)} images ({images.layout}): {len(train)} to train on, {len(held_out)} held out for health"
        + (f", {images.excluded} excluded" if images.excluded else "")
    ]
    remarks += images.notes
    remarks += [f"adapted {change}" for change in changes]
    if config.regions != RegionConfig() and (config.objectives.pixels or config.objectives.point_weight == 0):
        remarks.append("no term that is trained looks at regions: the settings regions.* change nothing")
    if config.run.cache and images.shards:
        raise PlrcError("run.cache keeps images of folders only; leave it out, or write --data simplecache::ADDRESS")
    if config.run.cache:
        remarks.append(f"decoded images are kept in {Path(config.run.cache).resolve()}")
    several = distributed.world_size() > 1
    if several and config.model.sync_bn and device.type == "cpu":
        raise PlrcError("model.sync_bn is set, but PyTorch shares BatchNorm statistics on GPUs only; leave it out")
    if config.model.bn_groups == 1 and (config.model.sync_bn or not several):
        remarks.append("BatchNorm sees the whole batch at once: samples may be recognised by their company (a leak)")
    part = config.optim.batch_size // config.optim.gradient_accumulation_steps // distributed.world_size()
    if part < 2 * config.model.bn_groups and part > 1:
        remarks.append("BatchNorm groups of one image: statistics come from its positions alone")
    if part < config.model.bn_groups:
        raise PlrcError(f"model.bn_groups is {config.model.bn_groups}, a part has {part} images; write {part} or less")
    if part // config.model.bn_groups * feature_side(config.model, config.views.size) ** 2 < 2:
        raise PlrcError(
            "BatchNorm would see a single value (one image, one position) and make it 0: "
            "write a larger optim.batch_size or views.size, or a smaller model.bn_groups"
        )

    Regions(config, images)  # both refuse what cannot be used, in every process and while nothing is written yet
    if config.run.cache:
        cache.require_writable(config.run.cache)
    if stored:
        _check_same(config, stored, out, images, train, held_out)
    distributed.barrier()
    if distributed.is_main():
        try:
            remarks += _own(config, out, stored is None, lock)
            fresh = {"run.resume": False, "run.allow_changes": False}
            config.with_values(fresh, pin=False).save(out / "config.toml")
            if config.run.allow_changes or not (out / "manifest.json").exists():
                write_manifest(out / "manifest.json", images, train.tolist(), held_out.tolist())
        except OSError as error:
            advice = "make it writable, or name another --out"
            raise PlrcError(f"cannot use {error.filename or out}: {error.strerror}; {advice}") from error
    distributed.barrier()
    return Plan(
        config, out, device, images, train, held_out,
        steps=total_steps(config, len(train)),
        steps_per_epoch=steps_per_epoch(len(train), config.optim.batch_size),
        workers=choose_workers(config.run.workers, device),
        checkpoint=newest_checkpoint(out) if stored else None,
        remarks=tuple(remarks),
    )  # fmt: skip


def _is_resumed(config: Config, out: Path) -> bool:
    if out.exists() and not out.is_dir():
        raise PlrcError(f"{out} is a file; --out names a folder")
    if not out.exists() or all(entry.name == LOCK for entry in out.iterdir()):
        return False
    if not config.run.resume:
        raise PlrcError(f"the run folder {out} is not empty; add --resume to go on with it, or name another --out")
    if not (out / "config.toml").exists():
        raise PlrcError(f"{out} is not empty and holds no plrc run (no config.toml); name another --out")
    return True


def _check_alike(config: Config, images: ImageList) -> None:
    """Raises PlrcError, in every process, where they do not all list the same images."""
    listed = hashlib.sha256("\n".join(images.names).encode(errors="surrogateescape")).hexdigest()
    if len(set(distributed.gather_words({str(distributed.rank()): listed}).values())) > 1:
        raise PlrcError(
            f"the processes find different images in {config.data.source}; let all hosts see the same files"
        )


def _own(config: Config, out: Path, fresh: bool, lock: FolderLock | None) -> list[str]:
    """Make the run folder this process's own, and put right what a killed process or the disk did to it; remarks."""
    remarks: list[str] = []
    if lock is not None:
        try:
            if not lock.take(out):
                raise PlrcError(f"another run is at work in {out}; wait for its end, or name another --out")
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            remarks.append(f"the file system of {out} has no locks: nothing keeps a second run out of the folder")
        if fresh and _is_resumed(config, out):
            raise PlrcError(f"another run has been at work in {out} just now; repeat the command to go on with it")
        remove_partial(out)
    return remarks if fresh else remarks + set_damaged_aside(out)


def _images(config: Config, stored: Config | None, manifest: Path) -> tuple[ImageList, np.ndarray, np.ndarray]:
    """(images, train, held out). A resumed run keeps those of its manifest, so that a scan or new files in between
    change nothing, unless the settings that decide on them are changed."""
    kept = stored and all(getattr(config.data, name) == getattr(stored.data, name) for name in LISTING)
    if kept and manifest.exists():
        return images_from_manifest(read_manifest(manifest))
    images = find_images(config.data)
    return images, *split_held_out(len(images), config.data.held_out, config.seed)


def _fit(config: Config, stored: Config | None, images: int, device: torch.device) -> tuple[Config, list[Change]]:
    """Adapted settings and the precision that `auto` stands for; a resumed run takes both as they are stored."""
    _, changes = adapt(config, images, distributed.world_size())
    chosen = {change.name: change.new for change in changes}
    if config.optim.precision == "auto":
        chosen["optim.precision"] = str(choose_precision(config.optim.precision, device)).removeprefix("torch.")
    if stored:
        chosen, changes = {name: stored.flat()[name] for name in chosen}, []
    config = config.with_values(chosen, pin=False)
    check_batch(config, images, distributed.world_size())
    return config, changes


def _check_same(
    config: Config, stored: Config, out: Path, images: ImageList, train: np.ndarray, held_out: np.ndarray
) -> None:
    """A resumed run must compute what the stored one would have; otherwise show the difference and refuse."""
    found = list(config.changes(stored).values())
    if (out / "manifest.json").exists():
        now = build_manifest(images, train.tolist(), held_out.tolist())
        found += compare_manifests(read_manifest(out / "manifest.json"), now)
        gone = list(now["train"].values()).count(-1)
        if gone > config.data.max_unreadable_fraction * len(train):
            raise PlrcError(
                f"{gone} of the {len(train)} images of {out}/manifest.json are gone from {images.root}, more than "
                f"data.max_unreadable_fraction ({config.data.max_unreadable_fraction:.0%}); put them back"
            )
    if found and not config.run.allow_changes:
        raise PlrcError(
            f"{out} was started with other settings or images ({'; '.join(found)}): "
            "resume without changing them, or add --run.allow-changes"
        )
