"""The command line: thin commands over the library.

An error the user can fix ends in one sentence on standard error and exit status 2. A run that was asked to stop
(SIGTERM, Ctrl-C) saves and ends with status 75; the same command with --resume continues it. PyTorch is imported by the
command that needs it, after its options were checked.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from plrc.cli import (
    compare,
    demo,
    doctor,
    export,
    pretrain,
    regions,
    scan,
    shard,
    study,
    transfer,
    verify,
    visualize,
)
from plrc.cli.options import about
from plrc.cli.output import FIRST_FAILURE, INTERRUPTED, USER_ERROR, screen
from plrc.errors import ConfigError, PlrcError
from plrc.machine import plrc_version
from plrc.text import nearest, printable_lines

COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "demo": demo.run,
    "doctor": doctor.run,
    "scan": scan.run,
    "shard": shard.run,
    "regions": regions.run,
    "pretrain": pretrain.run,
    "export": export.run,
    "verify": verify.run,
    "transfer": transfer.run,
    "compare": compare.run,
    "study": study.run,
    "visualize": visualize.run,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command `plrc`.

    Args:
        arguments: The command line without the program's name; by default that of the process.

    Returns:
        The exit status.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # Threads that wait by spinning stall each other on a shared core, such as that of a loader process. Must be set
    # before PyTorch starts its threads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    name = arguments[0] if arguments else "--help"
    try:
        if name in ("-h", "--help"):
            _show_overview()
            return 0
        if name == "--version":
            print(f"plrc {plrc_version()}")
            return 0
        if name not in COMMANDS:
            raise ConfigError(f"there is no command {name!r}; did you mean plrc {nearest(name, COMMANDS)}?")
        with screen():
            return COMMANDS[name](arguments[1:])
    except SystemExit as end:  # --help of a command
        return int(end.code or 0)
    except PlrcError as error:
        return _fail(USER_ERROR, str(error))
    except OSError as error:
        reason = f"cannot use {error.filename}: {error.strerror}" if error.filename else str(error)
        return _fail(USER_ERROR, reason)
    except KeyboardInterrupt:
        return _fail(INTERRUPTED, "interrupted")


def _show_overview() -> None:
    print("usage: plrc COMMAND ...\n\nSelf-supervised pre-training for object detectors.\n")
    for name, command in COMMANDS.items():
        print(f"  {name:<10}{about(command).splitlines()[0]}")
    print("\nHelp for a command: plrc COMMAND --help")


def _fail(status: int, sentence: str) -> int:
    """Report an error; of the processes of one `--devices` run only the first that fails does."""
    if FIRST_FAILURE in os.environ:
        try:
            Path(os.environ[FIRST_FAILURE]).touch(exist_ok=False)
        except FileExistsError:
            return status
    print(f"plrc: {printable_lines(sentence)}", file=sys.stderr)
    return status
