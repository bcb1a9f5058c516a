"""The commands: which there are, running one of them, and how errors end it. PyTorch is imported by the command that
needs it, after its options were checked."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from plrc.cli import (
    compare,
    demo,
    doctor,
    export,
    predict,
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
from plrc.cli.output import OUTPUT_CLOSED, USER_ERROR, fail, screen
from plrc.errors import ConfigError, PlrcError
from plrc.machine import plrc_version
from plrc.text import nearest

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
    "predict": predict.run,
    "compare": compare.run,
    "study": study.run,
    "visualize": visualize.run,
}


def run(arguments: Sequence[str] | None) -> int:
    """Run a command.

    Args:
        arguments: The command line without the program's name; None: that of the process.

    Returns:
        The exit status.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    # Threads that wait by spinning stall each other on a shared core, such as that of a loader process. Must be set
    # before PyTorch starts its threads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Operations that PyTorch lacks on an Apple GPU run on the CPU. It reads this when it is imported.
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    try:
        status = _run(arguments)
        sys.stdout.flush()
    except SystemExit as end:  # --help of a command
        return int(end.code or 0)
    except BrokenPipeError:
        _discard_output()
        return OUTPUT_CLOSED
    except PlrcError as error:
        return fail(USER_ERROR, str(error))
    except OSError as error:
        if not _can_flush_output():  # a full disk: Python would try again at its end, and exit with another status
            _discard_output()
        reason = f"cannot use {error.filename}: {error.strerror}" if error.filename else str(error)
        return fail(USER_ERROR, reason)
    return status


def _can_flush_output() -> bool:
    try:
        sys.stdout.flush()
    except OSError:
        return False
    return True


def _run(arguments: list[str]) -> int:
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        _show_overview()
        return 0
    if name == "--version":
        print(f"plrc {plrc_version()}")
        return 0
    if name not in COMMANDS:
        raise ConfigError(f"there is no command {name!r}; did you mean plrc {nearest(name, COMMANDS)}?")
    with screen():
        try:
            return COMMANDS[name](arguments[1:])
        except SystemExit:
            sys.stdout.flush()  # the help of a command, which Python would write after main()
            raise


def _discard_output() -> None:
    """Send what is still buffered to the null device: Python would report the closed pipe again at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _show_overview() -> None:
    print("usage: plrc COMMAND ...\n\nSelf-supervised pre-training for object detectors.\n")
    for name, command in COMMANDS.items():
        print(f"  {name:<10}{about(command).splitlines()[0]}")
    print("\nHelp for a command: plrc COMMAND --help")
