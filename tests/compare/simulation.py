"""Comparisons whose scores come from a declared normal model instead of a detector; all else is the real thing.

The model: AP = 20 + gain of the weights + 10 * fraction - 3 * |log2(lr / best lr of the weights)| + a normal draw of
the seed with standard deviation 0.5 that all weights share + one of their own with standard deviation 0.1.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from plrc import rng
from plrc.compare.plan import ComparisonPlan
from plrc.compare.run import run_comparison
from plrc.files import write_json
from plrc.progress import OnProgress
from plrc.runtime import StopRequest
from plrc.transfer.presets import protocol
from plrc.transfer.protocols import TransferConfig

GAIN = {"random": 0.0, "good": 5.0, "bad": -5.0}
BEST_LR = {"random": 0.01, "good": 0.04, "bad": 0.02}
OWN_LINE = "a line of the detector itself"


def simulated(config: TransferConfig, on_progress: OnProgress) -> bool:
    """A run: result.json from the model above, a line in OUT/ran.txt, progress, and a line of the log."""
    out, init = Path(config.run.out), Path(config.init).stem.rstrip("012")
    shared = rng.generator(config.seed, "probe").normal(0, 0.5)
    own = rng.generator(config.seed, "probe", index=list(GAIN).index(init) + 1).normal(0, 0.1)
    off = 3 * abs(math.log2(config.optim.lr / BEST_LR[init]))
    score = 20 + GAIN[init] + 10 * config.data.fraction - off + shared + own
    metrics = {"AP": score, "AP50": 2 * score, "APs": math.nan}
    content = {
        "metrics": metrics,
        "val": metrics,
        "curve": [{"step": 10, "AP": score / 2}, {"step": 20, "AP": score}],
        "diverged": 0,
        "train_images": round(100 * config.data.fraction),
        "seconds": 36.0,
        "notes": ["a note"],
        "reading": {"sentences": ["a note"]},
        "labels": "",
        "versions": {"plrc": "0", "torch": "2"},
    }
    write_json(out / "result.json", content)
    with (out.parent.parent / "ran.txt").open("a") as file:
        file.write(f"{out.name} {config.init} {config.data.fraction} {config.optim.lr} {config.seed}\n")
    logging.getLogger("plrc.transfer.finetune").info(OWN_LINE)
    on_progress(20, 20, "20/20  loss 0.1")
    return True


def until_stopped(config: TransferConfig, on_progress: OnProgress) -> bool | None:
    """A run that continues until it is asked to stop."""
    stop = StopRequest()
    (Path(config.run.out) / "begun").touch()
    while not stop.requested:
        time.sleep(0.05)
    stop.restore()
    (Path(config.run.out) / "saved").touch()
    return None


def simulated_comparison(folder: Path, **changes: Any) -> ComparisonPlan:
    """Random, good and bad weights at two fractions with two seeds."""
    for name in ("good", "bad", "good0", "good1"):
        (folder / f"{name}.pt").write_bytes(name.encode())
    base = protocol("small_detection", "detection").with_values({"data.source": "labels", "evaluations": 2})
    inits = {"random": ("random",), "good": (f"{folder}/good.pt",), "bad": (f"{folder}/bad.pt",)}
    plain = ComparisonPlan(base, inits, (1.0, 0.1), (), 2, (0.01, 0.02, 0.04), folder / "out")
    return replace(plain, **changes)


def compared(comparison: ComparisonPlan, runner: Any = simulated) -> dict[str, Any]:
    """The content of comparison.json after all runs."""
    result = run_comparison(comparison, runner)
    assert result.finished
    return dict(result.content)


def ran(out: Path) -> list[str]:
    """The lines of OUT/ran.txt, one per executed run."""
    return (out / "ran.txt").read_text().splitlines()
