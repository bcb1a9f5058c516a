"""`plrc visualize`: one page that shows what was learned. Layer 6: brings initial weights and pictures together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from plrc.cli.options import about, parse, written
from plrc.cli.progress import progress
from plrc.config import Config
from plrc.errors import PlrcError

if TYPE_CHECKING:
    from plrc.model import Backbone
    from plrc.visualize.explorer import ExplorerNetwork


@dataclass(frozen=True)
class Visualize:
    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Run folder with checkpoints."""
    images: tuple[str, ...] = ()
    """A source of images, as for pre-training; or image files."""
    out: Path = Path("page.html")
    """Page to write."""
    others: Annotated[tuple[str, ...], tyro.conf.arg(name="with")] = ()
    """Networks to show beside the run's: random (where the run started), run folders, weight files."""
    stride: int = 8
    """One feature every so many pixels of the image as the networks see it: 2, 4, 8, 16 or 32."""
    size: int = 0
    """Longer side of that image in pixels. 0: twice the run's views."""
    width: int = 128
    """Components that are kept of a feature."""
    steps: int = 5
    """Checkpoints of the run on the slider, evenly spread; it has as many as the run kept."""
    limit: int = 50
    """Most images, evenly spread over all."""
    samples: int = 3
    """Samples of the run whose regions and views are drawn. 0: none."""
    megabytes: float = 25.0
    """Largest page; where it would be larger, features are made coarser."""
    png: Path | None = None
    """Folder for every picture as PNG as well."""
    points: tuple[tuple[float, float], ...] = ((0.5, 0.5),)
    """With --png: points X Y whose affinities are drawn, as shares of an image's width and height."""
    backbone: str = ""
    """A run with a backbone of your own: its function once more, as package.module:function or file.py:function."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def visualize(arguments: Sequence[str]) -> int:
    """Show what was learned in one HTML file that works offline: affinity of any point, correspondence, regions, views.

    examples:
      plrc visualize runs/first --images photos/ --out page.html
      plrc visualize runs/first --images a.jpg b.jpg --with random theirs.pth
      plrc visualize runs/first --images photos/ --limit 12 --png figures/ --points 0.3 0.5
    """
    names = [n for n in Visualize.__dataclass_fields__ if n not in ("run", "others")]
    written(arguments, [*names, "with"])
    given = parse("visualize", Visualize, arguments, about(visualize))
    for name, least in (("limit", 1), ("samples", 0), ("size", 0)):
        if getattr(given, name) < least:
            raise PlrcError(f"--{name} is {getattr(given, name)}; write {least} or more")
    if not given.run.is_dir() or not (given.run / "config.toml").exists():
        raise PlrcError(f"{given.run} is not the folder of a run (no config.toml); make one with: plrc pretrain")
    if given.out.is_dir():
        raise PlrcError(f"--out is {given.out}, a folder; name the page to write, such as {given.out / 'page.html'}")
    if given.png and given.png.exists() and not given.png.is_dir():
        raise PlrcError(f"--png is {given.png}, a file; name a folder for the pictures")
    for x, y in given.points:
        if not (0 <= x <= 1 and 0 <= y <= 1):
            raise PlrcError(f"--points has {x:g} {y:g}; write shares of an image's width and height, 0 to 1")
    config = Config.load(given.run / "config.toml")
    from plrc.runtime import choose_device
    from plrc.visualize import explorer as exploring
    from plrc.visualize.explorer_page import write_explorer_page
    from plrc.visualize.samples import run_samples

    budget = exploring.ExplorerConfig(
        given.size or 2 * config.views.size, given.stride, given.width, given.steps, given.megabytes
    )
    sources = exploring.run_networks(given.run, given.steps, given.backbone)
    sources += _others(given.others, config, given.backbone)
    images, positions = exploring.named_images(given.images, given.limit)
    if len(positions) < len(images):
        print(f"{len(positions)} of {len(images)} images, evenly spread (--limit)")
    with progress("images x networks") as tell:
        found = exploring.build_explorer(
            images, positions, config.data, sources, budget, choose_device(given.device), tell
        )
    for note in found.notes:
        print(note)
    samples = run_samples(given.run, config, given.samples)
    if samples.note:
        print(samples.note)
    size = write_explorer_page(given.out, found, given.run, samples)
    print(f"{len(found.images)} images, {len(found.networks)} networks, {size / 1e6:.1f} MB: {given.out}")
    if given.png:
        from plrc.visualize.explorer_figures import save_explorer_figures

        print(f"{save_explorer_figures(given.png, found, samples, given.points)} pictures: {given.png}")
    return 0


def _others(given: Sequence[str], config: Config, named: str) -> list[ExplorerNetwork]:
    """The networks of --with, loaded once now so that a mistake is told before anything is computed."""
    from plrc.visualize.explorer import ExplorerNetwork

    sources = []
    for init in given:
        loaded = _network(init, config, named)
        label = init if len(init) <= 40 else f"…{init[-39:]}"
        sources.append(ExplorerNetwork(label, None, partial(lambda network: network, loaded)))
    if twice := {one for one in given if given.count(one) > 1}:
        raise PlrcError(f"--with names {min(twice)} twice; name each network once")
    return sources


def _network(init: str, config: Config, named: str) -> tuple[Backbone, int]:
    """A network and its level: those of its own run where `init` is one, else those of the run that is shown."""
    from plrc.model.user_code import is_user_code, trusted_backbone
    from plrc.transfer.initial import initial_backbone

    own = Path(init) / "config.toml"
    model = Config.load(own).model if own.exists() else config.model
    own_code = own.exists() and is_user_code(model.backbone)
    name = trusted_backbone(model.backbone, named, "--backbone {}") if init == "random" or own_code else ""
    backbone, _ = initial_backbone(init, name, layer4_stride=model.layer4_stride, seed=config.seed)
    return backbone, model.stride
