"""`plrc visualize`: one page that shows what was learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from plrc.cli.options import about, positional, read_options
from plrc.cli.output import progress
from plrc.config import Config
from plrc.errors import ConfigError
from plrc.files import write_text
from plrc.pixels import IMAGENET, RGB_CHANNELS

if TYPE_CHECKING:
    from plrc.model import Backbone
    from plrc.visualize.explorer_inputs import ExplorerNetwork

LABEL_LENGTH = 40  # characters


@dataclass(frozen=True, kw_only=True)
class VisualizeOptions:
    run: Path = positional("RUN")
    """Run folder with checkpoints."""
    images: tuple[str, ...] = ()
    """A source of images, as for pre-training; or image files."""
    out: Path = Path("page.html")
    """Page to write."""
    with_: tuple[str, ...] = ()
    """Networks to show in addition to the run's: random (the run's initial weights), run folders, weight files."""
    stride: int = 8
    """Pixels between two features, in the image as the networks see it: 2, 4, 8, 16 or 32."""
    size: int = 0
    """Longer side of that image in pixels. 0: twice the run's views."""
    width: int = 128
    """Components that are kept of a feature."""
    steps: int = 5
    """Largest number of the run's checkpoints on the slider, evenly spread."""
    limit: int = 50
    """Largest number of images, evenly spread over all."""
    samples: int = 3
    """Samples of the run whose regions and views are drawn. 0: none."""
    megabytes: float = 25.0
    """Largest size of the page; features are made coarser to fit."""
    png: Path | None = None
    """Folder for every picture as PNG as well."""
    points: tuple[float, ...] = (0.5, 0.5)
    """With --png: points X Y whose affinities are drawn, as shares of an image's width and height."""
    backbone: str = ""
    """A run with a backbone of your own: its function once more, as package.module:function or file.py:function. A run
    of transformers:FOLDER whose folder has moved: transformers:FOLDER."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def check(self) -> None:
        """Raise ConfigError for options that cannot be used."""
        for name, least in (("limit", 1), ("samples", 0), ("size", 0)):
            value = getattr(self, name)
            if value < least:
                raise ConfigError(f"--{name} must be >= {least}, got {value}")
        if not (self.run / "config.toml").is_file():
            raise ConfigError(f"{self.run} is not a run folder (no config.toml); make one with: plrc pretrain")
        if self.out.is_dir():
            raise ConfigError(
                f"--out is {self.out}, a folder; name the page to write, such as {self.out / 'page.html'}"
            )
        if self.png and self.png.exists() and not self.png.is_dir():
            raise ConfigError(f"--png is {self.png}, a file; name a folder for the pictures")
        if len(self.points) % 2:
            raise ConfigError(f"--points needs pairs X Y, got {len(self.points)} numbers")
        for x, y in self.pairs():
            if not (0 <= x <= 1 and 0 <= y <= 1):
                raise ConfigError(f"--points has {x:g} {y:g}; write shares of an image's width and height, 0 to 1")
        for init in self.with_:
            if self.with_.count(init) > 1:
                raise ConfigError(f"--with names {init} twice; name each network once")

    def pairs(self) -> tuple[tuple[float, float], ...]:
        """The points as (x, y)."""
        return tuple(zip(self.points[::2], self.points[1::2], strict=True))


def run(arguments: Sequence[str]) -> int:
    """Show what was learned in one HTML file that works offline: affinity of any point, correspondence, regions, views.

    examples:
      plrc visualize runs/first --images photos/ --out page.html
      plrc visualize runs/first --images a.jpg b.jpg --with random theirs.pth
      plrc visualize runs/first --images photos/ --limit 12 --png figures/ --points 0.3 0.5
    """
    options = read_options("visualize", VisualizeOptions, arguments, about(run))
    options.check()
    config = Config.load(options.run / "config.toml")
    from plrc.runtime import choose_device
    from plrc.visualize import explorer_inputs as inputs
    from plrc.visualize.explorer import build_explorer
    from plrc.visualize.explorer_page import explorer_page
    from plrc.visualize.samples import run_samples

    size = options.size or 2 * config.views.size
    limits = inputs.ExplorerConfig(size, options.stride, options.width, options.steps, options.megabytes)
    networks = inputs.run_networks(options.run, options.steps, options.backbone)
    networks += _other_networks(options.with_, config, options.backbone)
    images, positions = inputs.named_images(options.images, options.limit, config.data.channels)
    if len(positions) < len(images):
        print(f"{len(positions)} of {len(images)} images, evenly spread (--limit)")
    device = choose_device(options.device)
    with progress("images x networks") as on_progress:
        explorer = build_explorer(images, positions, config.data, networks, limits, device, on_progress)
    for note in explorer.notes:
        print(note)
    samples = run_samples(options.run, config, options.samples)
    if samples.note:
        print(samples.note)
    write_text(options.out, explorer_page(explorer, options.run, samples))
    megabytes = options.out.stat().st_size / 1e6
    print(f"{len(explorer.images)} images, {len(explorer.networks)} networks, {megabytes:.1f} MB: {options.out}")
    if options.png:
        from plrc.visualize.explorer_figures import save_explorer_figures

        number = save_explorer_figures(options.png, explorer, samples, options.pairs())
        print(f"{number} pictures: {options.png}")
    return 0


def _other_networks(inits: Sequence[str], config: Config, named: str) -> list[ExplorerNetwork]:
    """The networks of --with, loaded at once so that an error is reported before anything is computed."""
    from plrc.visualize.explorer_inputs import ExplorerNetwork

    networks = []
    for init in inits:
        network = _load_network(init, config, named)
        label = init if len(init) <= LABEL_LENGTH else f"…{init[1 - LABEL_LENGTH :]}"
        networks.append(ExplorerNetwork(label, None, partial(_same, network)))
    return networks


def _same(network: tuple[Backbone, int]) -> tuple[Backbone, int]:
    return network


def _load_network(init: str, config: Config, named: str) -> tuple[Backbone, int]:
    """A network and the stride of its features: those of its own run, else those of the run that is shown.

    A file that does not name its network has that of the shown run, unless its tensors are those of a ResNet.
    """
    from plrc.model.user_code import is_user_code, trusted_backbone
    from plrc.model.weights import Weights, stored_function, stored_name
    from plrc.transfer.initial import initial_backbone, read_initial, recognize_resnet

    own_config = Path(init) / "config.toml"
    model = Config.load(own_config).model if own_config.exists() else config.model
    name = config.model.backbone
    start: str | Weights = init
    if init != "random":
        start = read_initial(init)
        name = stored_name(start.metadata) or stored_function(start.metadata)
        if not name:
            name = recognize_resnet(start, config.data.channels) or config.model.backbone
    if name == config.model.backbone or is_user_code(name):
        name = trusted_backbone(name, named, "--backbone {}")
    usual = IMAGENET if config.data.channels == RGB_CHANNELS else config.data.pixels
    backbone, _ = initial_backbone(start, name, layer4_stride=model.layer4_stride, seed=config.seed, usual=usual)
    return backbone, model.largest_stride
