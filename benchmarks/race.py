"""Methods of pre-training after the same CPU time, scored by the same frozen probe and few-label detection.

All methods start from the same random weights of a seed, see the same images, and have the same network, batch,
optimizer and schedule, which ends when the time ends (`optim.hours`, `optim.clock cpu`). Each time is a run of its own.
One process trains and scores one run after another with one thread.

OUT/lines.jsonl has a line for each finished run, which is not repeated. A stopped run continues from its checkpoint.
"""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.lightly_run import pretrain_lightly
from benchmarks.race_curves import Line, draw_curves, summarize
from benchmarks.report import Bench
from plrc.config import Config, Method
from plrc.engine.pretrain import Run, pretrain
from plrc.errors import ConfigError
from plrc.files import parse_json, read_json_lines, write_json
from plrc.presets import preset
from plrc.runtime import StopRequest
from plrc.settings import read_toml
from plrc.study.plan import RANDOM, digest
from plrc.study.run import append_line
from plrc.transfer.dense import probe_seeds
from plrc.transfer.finetune import transfer
from plrc.transfer.initial import initial_backbone
from plrc.transfer.presets import protocol
from plrc.transfer.protocols import LabelledConfig

LIGHTLY = {"lightly-moco": False, "lightly-densecl": True}  # value: whether the method is dense
METHODS = (*get_args(Method), *LIGHTLY)
NEVER = 10**9  # steps between two health checks or checkpoints

logger = logging.getLogger("plrc.benchmarks.race")


def run(
    *,
    data: str = "",
    labelled: str = "",
    train: str = "",
    test: str = "",
    out: str = "race",
    methods: tuple[str, ...] = METHODS,
    cpu_minutes: tuple[float, ...] = (4.0, 16.0),
    seeds: tuple[int, ...] = (0,),
    probe_seeds: tuple[int, ...] = (0, 1, 2),
    backbone: str = "resnet18",
    size: int = 96,
    batch: int = 32,
    probe_size: int = 128,
    probe_images: int = 200,
    detection_fraction: float = 0.1,
    detection_steps: int = 300,
    show: bool = False,
    figure: str = "",
    figure_score: str = "miou_16",
) -> Bench:
    """Compare methods of pre-training after the same CPU time.

    A method is one of image, pixel, region, points, plrc (all with the preset small_r18), lightly-moco,
    lightly-densecl, or a TOML file with settings as for `plrc pretrain --config`, which replace those of the race.
    Random weights are always scored.

    Args:
        data: Images to pre-train on, as for `plrc pretrain --data`: training images only.
        labelled: Labelled images for the scores, as for `plrc transfer --data`.
        train: Split of the labelled images that probe and detector are trained on; empty: chosen by name.
        test: Split that is scored; empty: chosen by name.
        out: Folder of the race.
        methods: The methods.
        cpu_minutes: CPU times; each is a run of its own.
        seeds: Seeds of pre-training.
        probe_seeds: Seeds of the probe.
        backbone: The network.
        size: Side of a view, pixels.
        batch: Images per step.
        probe_size: Longer side of the images of the probe, pixels.
        probe_images: Largest number of images of the probe, for each split.
        detection_fraction: Share of the labels that the detector is trained with.
        detection_steps: Steps of the detector (protocol small_detection); 0: no detection.
        show: Run nothing; collect what is finished.
        figure: Image file for the curves; empty: none.
        figure_score: The score of the figure.

    The figure `missing` counts runs that are not finished yet. Rows have the mean of a score and its 95 % interval over
    seeds of pre-training, or over seeds of the probe if there is a single seed. `cpu_minutes_used` includes what comes
    before the first step, such as the features of a frozen teacher.

    Raises:
        ConfigError: A setting that cannot be used.
    """
    if not data or not labelled:
        raise ConfigError("a race needs --data IMAGES to pre-train on, and --labelled FOLDER to score")
    scoring = Scoring(
        LabelledConfig(source=labelled, train=train, val="none", test=test),
        probe_seeds,
        probe_size,
        probe_images,
        detection_fraction,
        detection_steps,
    )
    shared = {"data.source": data, "model.backbone": backbone, "views.size": size, "optim.batch_size": batch}
    entries = [Entry(RANDOM, seed, 0, pretrain_config(RANDOM, seed, 0, shared)) for seed in seeds]
    for minutes in cpu_minutes:
        for seed in seeds:
            for method in methods:
                config = pretrain_config(method, seed, minutes, shared)
                entries.append(Entry(Path(method).stem, seed, minutes, config))
    torch.set_num_threads(1)
    folder = Path(out)
    if not show:
        run_entries(entries, scoring, folder)
    lines = _finished(folder, entries, scoring)
    bench = Bench(
        kind="race",
        settings=shared | asdict(scoring) | {"seeds": list(seeds)},
        figures={"missing": len(entries) - len(lines)},
        rows=summarize(list(lines.values())),
    )
    if figure:
        draw_curves(bench.rows, figure_score, Path(figure))
    return bench


@dataclass(frozen=True)
class Scoring:
    """How weights are scored; the attributes are described at `run`."""

    labelled: LabelledConfig
    probe_seeds: tuple[int, ...]
    probe_size: int
    probe_images: int
    detection_fraction: float
    detection_steps: int


@dataclass(frozen=True)
class Entry:
    """A run of the race.

    Attributes:
        method: Name of the method.
        seed: Seed of pre-training.
        cpu_minutes: Time of pre-training; 0: none.
        config: The settings of pre-training.
    """

    method: str
    seed: int
    cpu_minutes: float
    config: Config

    @cached_property
    def name(self) -> str:
        """Name of the run's folder: two entries with the same weights have the same name."""
        settings = {"method": self.method, **self.config.result_settings()}
        return f"{self.method}-seed{self.seed}-{self.cpu_minutes:g}min-{digest(settings)[:8]}"

    def key(self, scoring: Scoring) -> str:
        """Identify weights and scores."""
        return digest({"name": self.name, **asdict(scoring)})


def pretrain_config(method: str, seed: int, cpu_minutes: float, shared: dict[str, Any]) -> Config:
    """Return the settings of a run.

    Args:
        method: Name or TOML file.
        seed: The seed.
        cpu_minutes: The time budget.
        shared: Settings of all methods, by dotted name.

    Raises:
        ConfigError: An unknown method, or a file that cannot be used.
    """
    table: dict[str, Any] = {}
    if method.endswith(".toml"):
        table = read_toml(method)
    elif method not in (*METHODS, RANDOM):
        raise ConfigError(f"there is no method {method!r}; write some of {' '.join(METHODS)}, or a FILE.toml")
    loss_terms = method if method in get_args(Method) else table.get("method", "plrc")
    config = preset(table.get("preset", "small_r18"), loss_terms).with_values(shared)
    return Config.from_dict(table, config).with_values(
        {
            "seed": seed,
            "data.held_out": 0,
            "optim.hours": cpu_minutes / 60,
            "optim.clock": "cpu",
            "run.resume": True,
            "run.device": "cpu",
            "run.workers": 0,
            "run.threads": 1,
            "run.health_every_steps": NEVER,
            "run.checkpoint_every_steps": NEVER,
        }
    )


def run_entries(entries: list[Entry], scoring: Scoring, folder: Path) -> None:
    """Train and score the entries that have no line yet, until the process is asked to stop."""
    stop = StopRequest()
    try:
        for number, entry in enumerate(entries, start=1):
            if entry.key(scoring) in _finished(folder, [entry], scoring):
                continue
            own = folder / "runs" / entry.name
            logger.info("run %d of %d: %s", number, len(entries), entry.name)
            training = train(entry, own)
            scores = None
            if training["finished"] and not stop.requested:
                scores = score(entry, own / training["weights"], scoring, own)
            if scores is None:
                logger.info("stopped; repeat the command to continue")
                return
            line = {
                "key": entry.key(scoring),
                "method": entry.method,
                "seed": entry.seed,
                "cpu_minutes": entry.cpu_minutes,
                "cpu_minutes_used": training["cpu_seconds"] / 60,
                "steps": training["steps"],
                "images": training["steps"] * entry.config.optim.batch_size,
                "scores": scores,
                "pretrain": entry.config.result_settings(),
                "scoring": asdict(scoring),
            }
            append_line(folder / "lines.jsonl", line)
            logger.info("scores: %s", scores)
    finally:
        stop.restore()


def train(entry: Entry, folder: Path) -> dict[str, Any]:
    """Pre-train, or continue a stopped run; a finished one is not repeated.

    Args:
        entry: The run.
        folder: Its folder.

    Returns:
        The content of FOLDER/training.json: weights (relative to the folder), steps, finished, and cpu_seconds, all of
        the time that was used.
    """
    file = folder / "training.json"
    stored: dict[str, Any] = {"finished": False, "cpu_seconds": 0.0}
    if file.exists():
        stored = parse_json(file.read_text(encoding="utf-8"))
    if stored["finished"]:
        return stored
    started = time.process_time()
    config = entry.config.with_values({"run.out": str(folder / "pretrain")})
    if entry.method == RANDOM:
        trained = _random_weights(entry, folder / "random.pt")
    elif entry.method in LIGHTLY:
        trained = pretrain_lightly(config, dense=LIGHTLY[entry.method])
    else:
        trained = pretrain(config)
    training = {
        "weights": str(trained.path.relative_to(folder)),
        "steps": trained.step,
        "finished": trained.finished,
        "cpu_seconds": stored["cpu_seconds"] + time.process_time() - started,
    }
    write_json(file, training)
    return training


def _random_weights(entry: Entry, file: Path) -> Run:
    """Write the weights that all methods start from."""
    backbone, _ = initial_backbone(RANDOM, entry.config.model.backbone, seed=entry.seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(backbone.net.state_dict(), file)
    return Run(file, step=0, finished=True, health=())


def score(entry: Entry, weights: Path, scoring: Scoring, folder: Path) -> dict[str, list[float]] | None:
    """Return score -> values: mIoU at each stride, one for each seed of the probe, and the AP of a detector.

    None if the process was asked to stop.
    """
    backbone = entry.config.model.backbone
    probes = probe_seeds(
        scoring.labelled, [str(weights)], backbone, scoring.probe_size, scoring.probe_images, scoring.probe_seeds
    )
    scores = {f"miou_{stride}": [probe.miou[stride] for probe in probes] for stride in probes[0].miou}
    if scoring.detection_steps:
        labelled = {f"data.{name}": value for name, value in asdict(scoring.labelled).items()}
        config = protocol("small_detection", "detection").with_values(
            labelled
            | {
                "init": str(weights),
                "seed": entry.seed,
                "data.fraction": scoring.detection_fraction,
                "model.backbone": backbone,
                "optim.steps": scoring.detection_steps,
                "run.out": str(folder / f"detection-{entry.key(scoring)}"),
                "run.resume": True,
                "run.device": "cpu",
                "run.workers": 0,
                "run.threads": 1,
                "run.keep_model": False,
            }
        )
        result = transfer(config)
        if result is None:
            return None
        scores["AP"] = [result.metrics["AP"]]
    return scores


def _finished(folder: Path, entries: list[Entry], scoring: Scoring) -> dict[str, Line]:
    """Return key -> line of the finished ones of the entries."""
    stored = {line["key"]: line for line in read_json_lines(folder / "lines.jsonl")}
    keys = [entry.key(scoring) for entry in entries]
    return {key: stored[key] for key in keys if key in stored}
