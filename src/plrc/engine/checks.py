"""Checks before the first step. They return remarks (sentences for the log), or raise an error that says what to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from plrc.config import Config, RegionConfig
from plrc.engine.loggers import check_loggers
from plrc.errors import ConfigError, DataError, RunError
from plrc.model import feature_side
from plrc.model.timm_networks import names_weights
from plrc.pixels import RGB_CHANNELS
from plrc.settings import require


def check_settings(config: Config, processes: int, device_type: str, sharded: bool) -> list[str]:
    """Run the checks of teacher, loggers, regions, cache and BatchNorm.

    Args:
        config: The adapted settings.
        processes: How many processes share a batch.
        device_type: "cpu", "cuda" or "mps".
        sharded: Whether the images come from shards.

    Returns:
        Remarks for the log.

    Raises:
        ConfigError: If the settings cannot be used.
        MissingPackageError: If the package of a logger is not installed.
    """
    check_teacher(config)
    check_loggers(config.run.loggers)
    check_precision(config, device_type)
    return [
        *describe_random_start(config),
        *describe_colors(config),
        *check_regions(config),
        *check_cache(config, sharded),
        *check_batch_norm(config, processes, device_type),
    ]


def check_teacher(config: Config) -> None:
    """Raise ConfigError if the settings name a teacher that would not be used."""
    names_teacher = bool(config.teacher.backbone or config.teacher.init)
    require(
        config.distills_frozen_teacher or not names_teacher,
        "teacher.backbone and teacher.init name a frozen teacher, which is used only with teacher.kind frozen and "
        "objectives.frozen_weight > 0; set these, or name no teacher",
    )
    require(
        config.data.channels == RGB_CHANNELS or config.teacher.pixels is None,
        f"teacher.mean and teacher.std are for RGB, but data.channels is {config.data.channels}; leave them out",
    )


def describe_random_start(config: Config) -> list[str]:
    """Return a remark if the name of the backbone names trained weights, and training starts from random ones."""
    if config.model.init or not names_weights(config.model.backbone):
        return []
    name = config.model.backbone
    remark = f"training starts from random weights, though model.backbone {name} names trained ones"
    return [f"{remark}; write --model.init pretrained to start from them"]


def describe_colors(config: Config) -> list[str]:
    """Return a remark on the augmentation of images that are not RGB."""
    channels = config.data.channels
    if channels == RGB_CHANNELS:
        return []
    name = "gray images" if channels == 1 else f"images of {channels} channels"
    remark = f"{name}: brightness and contrast are changed channel by channel, and views are blurred"
    return [f"{remark}; views.saturation, views.hue and views.gray_prob are for RGB and change nothing"]


def check_precision(config: Config, device_type: str) -> None:
    """Raise ConfigError if the device cannot train in the precision."""
    unusable = device_type == "mps" and config.optim.precision == "float16"  # PyTorch scales the loss in float64
    require(not unusable, "optim.precision float16 does not work on mps; write --optim.precision float32")


def check_required(config: Config) -> None:
    """Raise ConfigError if the settings name no images or no run folder."""
    require(
        config.data.source != "",
        "no images named: write --data FOLDER (or a glob, a .txt list, a COCO .json, a VOC folder)",
    )
    require(config.run.out != "", "no run folder named: write --out FOLDER")


def check_batch(config: Config, images: int, processes: int) -> None:
    """Check that there are enough images for a batch, and that a batch can be divided among processes.

    Args:
        config: The settings.
        images: Number of training images.
        processes: How many processes share a batch.

    Raises:
        DataError: If there are fewer than two images and `optim.batch_size` is not 1.
        ConfigError: If there are fewer images than `optim.batch_size`, or if the batch cannot be divided equally among
            processes and micro-batches.
    """
    batch = config.optim.batch_size
    accumulation = config.optim.gradient_accumulation_steps
    if images < min(batch, 2):
        raise DataError(f"{images} training image is too few: a batch needs at least two; add images")
    if images < batch:
        fitting = max(2, images // 2)  # two batches per epoch
        advice = f"add images or write --optim.batch-size {fitting}"
        if fitting < config.model.bn_groups:
            advice += f" --model.bn-groups {fitting // 2}"
        raise ConfigError(f"{images} training images are fewer than one batch of {batch}: {advice}")
    if batch % (accumulation * processes):
        raise ConfigError(
            f"optim.batch_size {batch} cannot be shared equally by {processes} processes x {accumulation} "
            f"micro-batches; write a multiple of {processes * accumulation}"
        )


def check_regions(config: Config) -> list[str]:
    """Return a remark if the section `regions` was changed although no term of the loss uses regions."""
    unused = config.objectives.contrasts_pixels or config.objectives.point_weight == 0
    if unused and config.regions != RegionConfig():
        return ["no term of the loss uses regions: the settings regions.* change nothing"]
    return []


def check_cache(config: Config, sharded: bool) -> list[str]:
    """Check that the cache of decoded images can be used, and return a remark with its folder."""
    if not config.run.cache:
        return []
    advice = "leave run.cache out, or let fsspec cache the shards: --data simplecache::ADDRESS"
    require(not sharded, f"run.cache keeps images of folders only; {advice}")
    return [f"decoded images are kept in {Path(config.run.cache).resolve()}"]


def check_batch_norm(config: Config, processes: int, device_type: str) -> list[str]:
    """Check that each BatchNorm group has at least two values; return remarks on groups that are too large or small."""
    groups = config.model.bn_groups
    if processes > 1 and config.model.sync_bn and device_type == "cpu":
        raise ConfigError("model.sync_bn is set, but PyTorch shares BatchNorm statistics on GPUs only; leave it out")
    images = config.optim.batch_size // config.optim.gradient_accumulation_steps // processes  # in one forward pass
    require(images >= groups, f"model.bn_groups must be <= {images}, the micro-batch of a process, got {groups}")
    positions = feature_side(config.model, config.views.size, config.model.largest_stride) ** 2
    values_per_channel = images // groups * positions
    require(
        values_per_channel >= 2,
        "BatchNorm would normalize a single value (one image, one position) to 0: "
        "write a larger optim.batch_size or views.size, or a smaller model.bn_groups",
    )
    remarks: list[str] = []
    if groups == 1 and (config.model.sync_bn or processes == 1):
        remarks.append("BatchNorm sees the whole batch at once: its statistics may leak which views belong together")
    if 1 < images < 2 * groups:  # images // groups is 1
        remarks.append("BatchNorm groups hold one image: their statistics come from its positions alone")
    return remarks


def check_resumed(config: Config, stored: Config, image_differences: Sequence[str], out: Path) -> None:
    """Check that a resumed run continues with the settings and images that it was started with.

    Args:
        config: The settings now, adapted.
        stored: The settings that the run was started with.
        image_differences: How the images differ from those of manifest.json.
        out: The run folder, for the message.

    Raises:
        RunError: If something differs and `run.allow_changes` is not set.
    """
    changes = [*config.describe_differences(stored).values(), *image_differences]
    if changes and not config.run.allow_changes:
        raise RunError(
            f"{out} was started with other settings or images ({'; '.join(changes)}): "
            "resume without changing them, or add --run.allow-changes"
        )


def check_missing_images(config: Config, sizes: Mapping[str, int], root: str, out: Path) -> None:
    """Check that not too many training images of a resumed run are missing.

    Args:
        config: The settings.
        sizes: The file size of each training image by name; -1 for a missing file.
        root: The folder of the images, for the message.
        out: The run folder, for the message.

    Raises:
        DataError: If more are missing than `data.max_unreadable_fraction` allows.
    """
    missing = list(sizes.values()).count(-1)
    limit = config.data.max_unreadable_fraction
    if missing > limit * len(sizes):
        raise DataError(
            f"{missing} of the {len(sizes)} images of {out}/manifest.json are missing from {root}, more than "
            f"data.max_unreadable_fraction ({limit:.0%}); restore them"
        )
