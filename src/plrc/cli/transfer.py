"""`plrc transfer`: fine-tune a detector, or fit a linear probe."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from plrc.cli.options import CommandParser, about, choose_task, read_options
from plrc.cli.output import STOPPED, progress
from plrc.errors import ConfigError
from plrc.settings import read_toml, setting
from plrc.transfer.presets import PROTOCOLS, protocol
from plrc.transfer.protocols import LabelledConfig, Layout, TransferConfig

DEFAULT_PROTOCOLS = {
    "detection": "small_detection",
    "instances": "small_instances",
    "semantic": "small_semantic",
}
TASKS = (*DEFAULT_PROTOCOLS, "probe")


@dataclass(frozen=True)
class StartOptions:
    preset: str = setting("", metavar="NAME")
    """A protocol from the list above. Empty: the small protocol of the task and detector."""
    config: str = setting("", metavar="FILE")
    """TOML file with settings that replace those of the protocol. Options replace both."""


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    data: str
    """Folder with labels: masks, or boxes if it has no masks."""
    init: tuple[str, ...] = ("random",)
    """Initial weights, one or several: random, pretrained (its library's own), a run folder or a file."""
    out: Path | None = None
    """Folder for result.json, or a file that ends with .json: every score, means and intervals over the seeds."""
    backbone: str = ""
    """torchvision ResNet. Empty: that of the weights, else resnet50."""
    layout: Layout = "auto"
    """How to read the folder; auto looks at it."""
    train: str = ""
    """Split that the probe is fitted on. Empty: chosen by name."""
    test: str = ""
    """Split that it is scored on. Empty: chosen by name (test, else val) among the splits that have labels."""
    test_fraction: float = 0.0
    """Share of the training images that is taken out to score on, for a folder without a test split."""
    unlabelled: Literal["auto", "background", "leave_out"] = "auto"
    """What an image without a label file is (YOLO, VOC): background or left out; auto: background in YOLO only."""
    four_point_polygons: bool = False
    """YOLO: labels of four points are polygons."""
    group: str = setting("", metavar="folder|PATTERN")
    """Images that belong together, for warnings about splits that part them: those of a folder, or those in whose path
    the first group of a regular expression is the same."""
    fraction: float = 1.0
    """Share of the training images whose labels are used."""
    size: int = 224
    """Longer side of the images in pixels."""
    images: int = 1000
    """Largest number of images that are read, of each split."""
    seeds: tuple[int, ...] = (0,)
    """One or several seeds of the subset, of random weights, and of the pixels that the probe is fitted on. Several
    give intervals."""
    channels: int = 3
    """Channels of an image, as data.channels of the pre-training. 3: RGB."""
    rescale_percentiles: tuple[float, float] = (0.5, 99.5)
    """How images of more than 8 bits per channel are rescaled, as data.rescale_percentiles of the pre-training."""
    max_megapixels: float = 200.0
    """Largest image that is read."""
    mean: tuple[float, ...] = ()
    """Mean of red, green and blue, on the scale 0 to 1, that pixels are normalized with. Empty: what the weights were
    trained with."""
    std: tuple[float, ...] = ()
    """Standard deviation of red, green and blue, on the scale 0 to 1; set it together with `mean`."""


def run(arguments: Sequence[str]) -> int:
    """Fine-tune a detector from given weights and score it, or fit a linear probe to frozen features.

    usage: plrc transfer detection|instances|semantic|probe --data DIR --init random|pretrained|RUN|FILE --out DIR

    examples:
      plrc transfer probe --data camvid/ --init runs/first
      plrc transfer detection --data voc/ --init runs/first --out transfer/first
      plrc transfer detection --detector d_fine --data voc/ --init runs/first --out d-fine
      plrc transfer semantic --data camvid/ --init random --optim.lr 0.05 --out random
      plrc transfer instances --preset coco_fpn_1x --schedule 2x --data coco/ --out coco-2x
      plrc transfer detection --preset voc_c4_24k --data VOC/ --init its.pth --out its

    protocols:
    """
    task = choose_task("transfer", arguments, TASKS, lambda: with_protocols(run))
    if task is None:
        return 0
    if task == "probe":
        return probe(arguments[1:])
    config = parse_transfer(task, arguments[1:])
    config.check_named()
    from plrc.transfer.finetune import transfer

    with progress("steps") as on_progress:
        result = transfer(config, on_progress)
    if result is None:
        return STOPPED
    print(f"the result is {Path(config.run.out) / 'result.json'}")
    return 0


def parse_transfer(task: str, arguments: Sequence[str]) -> TransferConfig:
    """Return the settings of `plrc transfer TASK`: protocol, then the TOML file, then the options."""
    parser = CommandParser(f"transfer {task}", with_protocols(run))
    parser.add_fields(StartOptions)
    parser.add_fields(TransferConfig)
    values = parser.parse(arguments, compute_defaults=lambda given: starting_point(task, given).flat())
    chosen = {name: value for name, value in values.items() if name not in ("preset", "config")}
    return starting_point(task, values).with_values(chosen)


def starting_point(task: str, values: dict[str, Any]) -> TransferConfig:
    """Return the settings below the options, of which "preset" and "config" count: protocol and TOML file."""
    table = read_toml(values["config"]) if values.get("config") else {}
    detector = values.get("model.detector") or table.get("model", {}).get("detector")
    default = (
        f"small_{detector}" if task == "detection" and f"small_{detector}" in PROTOCOLS else DEFAULT_PROTOCOLS[task]
    )
    name = values.get("preset") or table.get("preset") or default
    return TransferConfig.from_dict(table | {"task": task, "preset": name}, protocol(name, task))


def probe(arguments: Sequence[str]) -> int:
    """Fit a linear classifier of pixels to frozen features: minutes on a CPU.

    Random weights are scored too, once for each seed. With several seeds, means have 95 % intervals. mIoU and accuracy
    are in percent; the level of stride 32 is layer4, read at stride 16. Classes come from masks, or from boxes if there
    are no masks. Grouping AUC: how well the affinity of two points predicts whether they lie on one object, with pairs
    matched for distance (0.5 is chance).

    examples:
      plrc transfer probe --data camvid/ --init runs/first
      plrc transfer probe --data voc/ --init random --backbone resnet18
      plrc transfer probe --data camvid/ --init runs/first runs/second pretrained --seeds 0 1 2 --out probes/
    """
    options = read_options("transfer probe", ProbeOptions, arguments, about(probe))
    data = LabelledConfig(
        source=options.data,
        layout=options.layout,
        train=options.train,
        test=options.test,
        test_fraction=options.test_fraction,
        unlabelled=options.unlabelled,
        four_point_polygons=options.four_point_polygons,
        group=options.group,
        fraction=options.fraction,
        channels=options.channels,
        rescale_percentiles=options.rescale_percentiles,
        max_megapixels=options.max_megapixels,
        mean=options.mean,
        std=options.std,
    )
    from plrc.compare.probes import probe_table, summarize_probes
    from plrc.files import write_json
    from plrc.transfer.dense import RANDOM, probe_seeds

    inits = list(dict.fromkeys([*options.init, RANDOM]))
    out = options.out
    if out is not None and out.suffix != ".json":
        out = out / "result.json"
    with progress("probes") as on_progress:
        results = probe_seeds(
            data, inits, options.backbone, options.size, options.images, options.seeds, on_progress=on_progress
        )
    settings = dataclasses.asdict(options) | {"out": str(out or "")}
    summary = summarize_probes(results, settings)
    if len(options.seeds) == 1:
        for number, result in enumerate(results):
            print(result.table(notes=number == 0))
    else:
        print("\n".join(results[0].notes))
        print(probe_table(summary))
    if out is not None:
        try:
            write_json(out, summary)
        except OSError as error:
            raise ConfigError(f"cannot write {out} ({error.strerror}); name another --out") from error
        print(f"the result is {out}")
    return 0


def with_protocols(command: Callable[..., object]) -> str:
    """Return what a command does, followed by the list of protocols."""
    lines = [f"  {name:<22}{about(build).splitlines()[0]}" for name, build in PROTOCOLS.items()]
    return "\n".join([about(command), *lines])
