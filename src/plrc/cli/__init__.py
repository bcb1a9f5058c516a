"""The command line: thin verbs over the library. Layer 6.

A mistake that the user can mend ends in one sentence on standard error and exit status 2; a run that was asked to stop
(SIGTERM, Ctrl-C) saves and ends with status 75: the same command with --resume goes on. PyTorch is imported by the verb
that needs it, after its options are known to be right.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from plrc.cli.benching import bench
from plrc.cli.options import about
from plrc.cli.pretraining import FIRST_TO_FAIL, pretrain
from plrc.cli.regions import regions
from plrc.cli.studying import study
from plrc.cli.transferring import compare, transfer
from plrc.cli.verbs import demo, doctor, export, scan, shard
from plrc.cli.visualizing import visualize
from plrc.errors import PlrcError
from plrc.machine import plrc_version
from plrc.text import nearest, printable_lines

MISTAKE, INTERRUPTED = 2, 130

VERBS: dict[str, Callable[[Sequence[str]], int]] = {
    "demo": demo,
    "doctor": doctor,
    "scan": scan,
    "shard": shard,
    "regions": regions,
    "pretrain": pretrain,
    "export": export,
    "transfer": transfer,
    "compare": compare,
    "study": study,
    "visualize": visualize,
    "bench": bench,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the command `plrc`; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # Threads that wait by spinning stall each other wherever a core is shared, by a loader process for instance: one
    # such process made a step on two cores twenty times slower. Must be set before PyTorch starts its threads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            verbs = [f"  {name:<10}{about(verb).splitlines()[0]}" for name, verb in VERBS.items()]
            print("usage: plrc VERB ...\n\nSelf-supervised pre-training for object detectors.\n", *verbs, sep="\n")
            print("\nEach verb explains itself: plrc VERB --help")
            return 0
        if arguments[0] == "--version":
            print(f"plrc {plrc_version()}")
            return 0
        if arguments[0] not in VERBS:
            raise PlrcError(f"there is no verb {arguments[0]!r}; did you mean plrc {nearest(arguments[0], VERBS)}?")
        return VERBS[arguments[0]](arguments[1:])
    except SystemExit as end:  # --help of a verb
        return int(end.code or 0)
    except PlrcError as error:
        return _fail(MISTAKE, str(error))
    except OSError as error:
        reason = f"cannot use {error.filename}: {error.strerror}" if error.filename else str(error)
        return _fail(MISTAKE, reason)
    except KeyboardInterrupt:
        return _fail(INTERRUPTED, "interrupted")


def _fail(status: int, sentence: str) -> int:
    """Tell the user; of the processes of one `--devices` run only the first to fail does."""
    if FIRST_TO_FAIL in os.environ:
        try:
            Path(os.environ[FIRST_TO_FAIL]).touch(exist_ok=False)
        except FileExistsError:
            return status
    print(f"plrc: {printable_lines(sentence)}", file=sys.stderr)
    return status
