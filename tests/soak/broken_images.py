"""The proof that plrc survives broken image files, and images that change or vanish while it trains.

    python -m tests.soak.broken_images --files 2000 --json broken.json

Every file of `broken_files` is decoded three times in one process (memory and handles are compared), then `plrc scan`
and `plrc pretrain` meet the folder, and at last a training whose images another process overwrites and removes. Each
file must give pixels or one sentence; nothing may crash, hang or leak. Linux only. Status 0: all of that held; 1: not.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.report import machine
from tests.soak.broken_files import no_files, write_folder
from tests.soak.processes import use

from plrc.data.decode import decode
from plrc.data.image_errors import DecodeError
from plrc.files import write_json
from plrc.scenes import write_scenes
from plrc.text import printable

SECONDS = 20.0  # of processor time for one file
HANG = 1800.0  # seconds for a command, on a machine that others use too
SENTENCE = 400  # characters
GROWTH_MB = 16.0  # between the second and the third time that all files are decoded
PASSES = 3


def decode_all(folder: Path) -> dict[str, Any]:
    """Decode every entry of a folder PASSES times, in this process; `faults` says what must not be."""
    faults: list[str] = []
    outcomes: Counter[str] = Counter()
    slowest = (0.0, "")
    names = sorted(os.listdir(folder))
    uses = [use(os.getpid())]
    for turn in range(PASSES):
        for name in names:
            before = time.process_time()
            try:
                pixels = decode(folder / name)
                outcome = "pixels"
                if pixels.ndim != 3 or pixels.shape[0] != 3 or pixels.numel() == 0:
                    faults.append(f"{name!r} became {tuple(pixels.shape)}")
            except DecodeError as error:
                outcome = re.sub(r"\d[\d.e+]*", "N", error.reason)
                if not error.reason or len(error.reason) > SENTENCE or error.reason != printable(error.reason):
                    faults.append(f"{name!r} has no sentence: {error.reason!r}")
            except BaseException as error:
                faults.append(f"{name!r} raised {error!r}")
                continue
            slowest = max(slowest, (time.process_time() - before, name))
            if turn == 0:
                outcomes[outcome] += 1
        uses.append(use(os.getpid()))
    rss, handles = ([getattr(found, field) for found in uses if found] for field in ("rss_mb", "handles"))
    if slowest[0] > SECONDS:
        faults.append(f"{slowest[1]} took {slowest[0]:.1f} s")
    if rss[-1] - rss[-2] > GROWTH_MB:
        faults.append(f"memory grew: {rss} MB")
    if handles[-1] != handles[1]:
        faults.append(f"handles: {handles}")
    return {
        "files": len(names), "outcomes": dict(outcomes.most_common()), "slowest": slowest, "rss_mb": rss,
        "handles": handles, "faults": faults,
    }  # fmt: skip


def plrc(arguments: list[object]) -> subprocess.Popen[str]:
    """A command of ours, started."""
    words = [sys.executable, "-m", "plrc", *map(str, arguments)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="backslashreplace")


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Status, time and last words of a command; status "hangs" when it does not end."""
    started = time.monotonic()
    try:
        out, err = process.communicate(timeout=HANG)
    except subprocess.TimeoutExpired:
        process.kill()
        return {"status": "hangs", "out": process.communicate()[0][-2000:], "err": ""}
    return {"status": process.returncode, "seconds": time.monotonic() - started, "out": out, "err": err.strip()}


def training(images: Path, out: Path, steps: int, limit: float) -> list[object]:
    """The arguments of a training of a small network."""
    return [
        "pretrain", "--preset", "debug_cpu", "--data", images, "--out", out, "--data.max-unreadable-fraction", limit,
        "--optim.steps", steps, "--optim.batch-size", 32, "--views.size", 32, "--run.workers", 2, "--run.threads", 1,
        "--run.device", "cpu", "--run.log-every-steps", 5, "--objectives.queue", 64, "--model.bn-groups", 2,
        "--run.no-stop-on-collapse", "--data.held-out", 8,
    ]  # fmt: skip


def named(out: Path) -> int:
    """How many images the log of a run names as unreadable."""
    log = (out / "log.txt").read_text(encoding="utf-8")
    return len(re.findall(r"warning: cannot read (?!the held-out)", log))


def scan_and_train(folder: Path, work: Path) -> dict[str, Any]:
    """`plrc pretrain` without and with a limit that the folder exceeds, then `plrc scan`."""
    images = sum(path.is_file() for path in folder.iterdir())
    long = ended(plrc(training(folder, work / "long", images // 32, 1.0)))
    short = ended(plrc(training(folder, work / "short", images // 32, 0.1)))
    scan = ended(plrc(["scan", folder]))
    faults = [
        *([f"pretrain: {long['status']}: {long['err']}"] if long["status"] != 0 else []),
        *(
            []
            if short["status"] == 2 and "more than data.max_unreadable_fraction (10%)" in short["err"]
            else [f"limit: {short}"]
        ),
        *([f"scan: {scan['status']}: {scan['err']}"] if scan["status"] != 0 else []),
    ]
    counted = re.search(r"^files .*$", scan["out"], re.MULTILINE)
    return {
        "images": images,
        "pretrain": {"status": long["status"], "seconds": long.get("seconds"), "named": named(work / "long")},
        "pretrain_with_limit": {"status": short["status"], "said": short["err"]},
        "scan": {"status": scan["status"], "seconds": scan.get("seconds"), "said": counted and counted[0]},
        "faults": faults,
    }


def strike(rng: np.random.Generator, path: Path, other: Path) -> None:
    """Something happens to an image: cut, overwritten in place, removed, or replaced by what is no file at all."""
    match int(rng.integers(6)):
        case 0:
            os.truncate(path, path.stat().st_size // 2)
        case 1:
            with path.open("r+b") as file:
                file.write(rng.bytes(400))
        case 2:
            path.unlink()
        case 3:
            path.write_bytes(b"")
        case 4:
            shutil.copy(other, path)  # sound, but another image
        case _:
            things = [thing for thing in other.parent.iterdir() if thing.is_fifo() or thing.is_symlink()]
            thing = things[rng.integers(len(things))]
            path.unlink()
            if thing.is_fifo():
                os.mkfifo(path)
            else:
                path.symlink_to(os.readlink(thing))


def change_while_training(work: Path, images: int, steps: int, limit: float, seed: int) -> dict[str, Any]:
    """Train on `images` scenes, all of which are struck, one after another, while the training runs."""
    write_scenes(work / "scenes", {"train": images}, seed=seed, size=64)
    paths = sorted((work / "scenes" / "train" / "images").iterdir())
    (work / "things").mkdir()
    no_files(work / "things")
    other = work / "things" / "other.jpg"
    shutil.copy(paths[0], other)
    rng = np.random.default_rng(seed)
    process = plrc(training(paths[0].parent, work / "run", steps, limit))
    metrics = work / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and '"train"' in metrics.read_text()):
        time.sleep(0.05)
    struck = 0
    for at in rng.permutation(len(paths))[: images // 2]:
        if process.poll() is not None:
            break
        strike(rng, paths[at], other)
        struck += 1
        time.sleep(0.02)
    found = ended(process)
    return {
        "images": images, "struck": struck, "status": found["status"], "said": found["err"],
        "named": named(work / "run"),
    }  # fmt: skip


def changes(work: Path, images: int, steps: int, seed: int) -> dict[str, Any]:
    """Images that change: with a wide limit training goes on to its end, with a narrow one it stops and says why."""
    (work / "wide").mkdir(parents=True)
    (work / "narrow").mkdir()
    wide = change_while_training(work / "wide", images, steps, 1.0, seed)
    narrow = change_while_training(work / "narrow", images, steps, 0.02, seed)
    faults = [
        *([] if wide["status"] == 0 and wide["named"] > 0 else [f"wide: {wide}"]),
        *([] if narrow["status"] == 2 and "data.max_unreadable_fraction" in narrow["said"] else [f"narrow: {narrow}"]),
    ]
    return {"wide": wide, "narrow": narrow, "faults": faults}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=Path("broken.json"))
    options = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "files": options.files, "seed": options.seed}
    with tempfile.TemporaryDirectory(prefix="plrc-broken-") as name:
        work = Path(name)
        write_folder(work / "images", options.files, options.seed)
        for part, call in {
            "decode": lambda: decode_all(work / "images"),
            "commands": lambda: scan_and_train(work / "images", work),
            "changes": lambda: changes(work / "changes", 400, 60, options.seed),
        }.items():
            found[part] = call()
            print(part, "FAULTS:" if found[part]["faults"] else "ok", *found[part]["faults"], sep="\n  ", flush=True)
            write_json(options.json, found)
    return int(any(found[part]["faults"] for part in ("decode", "commands", "changes")))


if __name__ == "__main__":
    sys.exit(main())
