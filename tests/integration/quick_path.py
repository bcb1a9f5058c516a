"""The quick path of a user in one process: scan, pretrain with a loader process, export, visualize, transfer."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.tiny import TINY

import plrc
from plrc import cli
from plrc.scenes import write_scenes


def main(folder: Path) -> None:
    """Run all commands in `folder`, each of which must end with status 0."""
    write_scenes(folder / "scenes", {"train": 16, "test": 2}, seed=0, size=64)
    images = str(folder / "scenes" / "train" / "images")
    run = str(folder / "run")
    assert cli.main(["scan", images, "--workers", "1"]) == 0
    settings = {"data.source": images, "run.out": run, "run.workers": 1, "run.loggers": (), "data.held_out": 2}
    config = plrc.preset("debug_cpu").with_values({**TINY, "optim.steps": 2, "model.strides": (8,), **settings})
    result = plrc.pretrain(config)
    assert result.finished
    for package in ("tensorboard", "wandb", "mlflow"):
        assert package not in sys.modules, f"{package} was imported although no logger was asked for"
    assert cli.main(["export", run, "--to", "timm"]) == 0
    page = str(folder / "page.html")
    assert cli.main(["visualize", run, "--images", images, "--limit", "1", "--samples", "1", "--out", page]) == 0
    transfer = ["transfer", "semantic", "--data", str(folder / "scenes"), "--data.train", "train", "--data.val", "none"]
    transfer += ["--data.test", "test", "--init", run, "--out", str(folder / "transfer"), "--optim.steps", "1"]
    transfer += ["--optim.batch-size", "2", "--input.crop", "32", "32", "--run.workers", "1", "--model.width", "8"]
    assert cli.main(transfer) == 0


if __name__ == "__main__":
    assert not hasattr(os, "fork"), "sitecustomize.py is not in effect"
    main(Path(sys.argv[1]))
    print("the quick path works")
