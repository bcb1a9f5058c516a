"""kill -9 at random moments of a run, while it starts, trains and saves; its end must be that of a run left alone.

    python tests/soak/kill_resume.py --kills 50 [--seed 0] [--out DIR]

The run is `plrc pretrain ... --resume`, repeated after every kill. Kills come in turn in the start, in training, while
a checkpoint is written, and after that (its name, deleting old ones, the export), each after a random delay; the last
comes right after the last checkpoint. Every tenth start is a new interpreter, killed anywhere from its imports on; the
others are forks of this process, which has imported plrc and PyTorch and computed nothing. Ends with status 0 if, after
all kills, each part of the last checkpoint, the metrics and the exported file equal those of the run that was left
alone, bit for bit, and nothing half written is left. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from plrc.cli import main as plrc
from plrc.engine import pretrain  # noqa: F401 - so that a fork need not
from plrc.engine.checkpoint import KEYS, checkpoints, load_checkpoint
from plrc.files import PARTIAL
from plrc.scenes import write_scenes

MOMENTS = ("starting", "saving", "training", "after a save")
LAST = "after the last save"
SETTINGS = """
    --preset debug_cpu --seed 3 --run.device cpu --run.workers 1 --run.threads 1 --data.held-out 4 --views.size 32
    --optim.batch-size 8 --model.strides 8 --model.bn-groups 2 --model.contrast-hidden 16 --model.distill-hidden 16
    --objectives.points 16 --objectives.distill-points 16 --objectives.queue 24 --run.log-every-steps 1
    --run.health-every-steps 10 --run.keep-checkpoints 3 --resume
""".split()
PATIENCE = 120.0  # seconds without the awaited moment, after which a kill comes anyhow


class Start:
    """One start of the run in a process group of its own: forked, or a new interpreter."""

    def __init__(self, command: list[str], log: Path, fork: bool) -> None:
        self.status: int | None = None
        with log.open("ab") as out:
            self.pid = os.fork()
            if self.pid == 0:
                os.setsid()
                os.dup2(out.fileno(), 1)
                os.dup2(out.fileno(), 2)
                if not fork:
                    os.execv(sys.executable, [sys.executable, "-m", "plrc", *command])
                status = plrc(command)
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)

    def ended(self) -> bool:
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status is not None

    def kill(self) -> None:
        """SIGKILL for the main process alone: its loader process must notice by itself."""
        os.kill(self.pid, signal.SIGKILL)
        self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def wait(self) -> int:
        while not self.ended():
            time.sleep(0.05)
        assert self.status is not None
        return self.status


def lines(run: Path) -> list[str]:
    """The whole lines of metrics.jsonl."""
    path = run / "metrics.jsonl"
    return path.read_text().split("\n")[:-1] if path.exists() else []


def saving(run: Path) -> bool:
    """Whether a checkpoint is being written just now."""
    folder = run / "checkpoints"
    return folder.exists() and any(PARTIAL.fullmatch(name) and ".pt." in name for name in os.listdir(folder))


def wait_for(moment: str, run: Path, start: Start, draw: random.Random, startup: float, steps: int) -> bool:
    """Whether the moment to kill has come before the run ended."""
    before, known, since = len(lines(run)), checkpoints(run)[-1:], time.monotonic()

    def came() -> bool:
        if moment == "starting":
            return True
        if moment == LAST:
            return [path.name for path in checkpoints(run)[-1:]] == [f"step_{steps:08d}.pt"]
        if moment == "training":
            return len(lines(run)) != before
        return saving(run) if moment == "saving" else checkpoints(run)[-1:] != known

    while not came() and (moment == LAST or time.monotonic() < since + PATIENCE):
        if start.ended():
            return False
        time.sleep(0.0005 if moment != "training" else 0.02)
    longest = {"starting": startup, "training": 1.0, "saving": 0.25, "after a save": 0.25, LAST: 0.0}[moment]
    end = time.monotonic() + draw.uniform(0, longest)
    while time.monotonic() < end:
        if moment == "starting" and len(lines(run)) != before:
            break  # the first line of metrics ends the start, however fast the machine is
        time.sleep(0.01)
    return not start.ended()


def differences(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two nested contents differ, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return [] if isinstance(b, torch.Tensor) and torch.equal(a, b) else [where]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [found for key in a for found in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return [found for i, (x, y) in enumerate(zip(a, b, strict=True)) for found in differences(x, y, f"{where}/{i}")]
    return [] if a == b else [where]


def curve(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without measured times, and without the starts, of which a kill makes more."""
    timed = ("images_per_second", "data_wait_share", "seconds")
    found = [json.loads(line) for line in lines(run)]
    return [{k: v for k, v in line.items() if k not in timed} for line in found if line["kind"] != "start"]


def compare(alone: Path, killed: Path) -> list[str]:
    a, b = (load_checkpoint(checkpoints(run)[-1]) for run in (alone, killed))
    found = [where for key in KEYS if key != "config" for where in differences(a[key], b[key], key)]
    found += [] if curve(alone) == curve(killed) else ["metrics.jsonl"]
    x, y = (load_file(run / "exported" / "backbone.safetensors") for run in (alone, killed))
    return found + differences(x, y, "exported")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps-a-kill", type=int, default=4, help="length of the run, in steps for each kill")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return soak(given.out or Path(folder), given.kills, given.seed, given.steps_a_kill)


def soak(out: Path, kills: int, seed: int, steps_a_kill: int) -> int:
    write_scenes(out / "scenes", {"train": 48}, seed=3, size=64)
    settings = [*SETTINGS, "--data", str(out / "scenes" / "train" / "images")]
    steps = max(16, kills * steps_a_kill)
    settings += ["--optim.steps", str(steps), "--run.checkpoint-every-steps", "4"]
    command = {name: ["pretrain", *settings, "--out", str(out / name)] for name in ("alone", "killed")}
    began = time.monotonic()
    if Start(command["alone"], out / "alone.txt", fork=True).wait():
        print((out / "alone.txt").read_text(), file=sys.stderr)
        return 1
    alone = time.monotonic() - began

    draw, done, starts = random.Random(seed), Counter[str](), 0
    run = out / "killed"
    while True:
        new = sum(done.values()) % 10 == 0
        moment = "starting" if new else MOMENTS[sum(done.values()) % len(MOMENTS)]
        moment = LAST if sum(done.values()) == kills - 1 else moment
        start = Start(command["killed"], out / "killed.txt", fork=not new)
        starts += 1
        if sum(done.values()) < kills and wait_for(moment, run, start, draw, 8.0 if new else 1.5, steps):
            hit = "saving" if saving(run) else "starting in a new interpreter" if new else moment
            hit = LAST if moment == LAST else hit
            start.kill()
            done[hit] += 1
            print(f"kill {sum(done.values())} of {kills}: {hit}, {len(lines(run))} lines of metrics", flush=True)
        elif status := start.wait():
            print((out / "killed.txt").read_text()[-3000:], file=sys.stderr)
            print(f"start {starts} ended with status {status}", file=sys.stderr)
            return 1
        else:
            break
    found = compare(out / "alone", run)
    result = {
        "kills": sum(done.values()), "moments": dict(sorted(done.items())), "seed": seed, "starts": starts,
        "steps": steps, "seconds_alone": round(alone), "seconds_killed": round(time.monotonic() - began - alone),
        "left_over": [path.name for path in run.rglob(".*") if PARTIAL.fullmatch(path.name)], "different": found,
    }  # fmt: skip
    print(json.dumps(result))
    return 1 if found or result["left_over"] or result["kills"] != kills else 0


if __name__ == "__main__":
    sys.exit(main())
