"""The command line: thin commands over the library.

An error the user can fix ends in one sentence on standard error and exit status 2. A run that was asked to stop
(SIGTERM, Ctrl-C) saves and ends with status 75; the same command with --resume continues it. Ctrl-C before there is
anything to save ends with status 130. A command whose reader closes the pipe (`plrc ... | head -1`) ends without a
message. Everything else is imported by `main`, so that a Ctrl-C during imports is handled, too.
"""

from __future__ import annotations

import signal

from plrc.interrupts import interrupt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command `plrc`.

    Args:
        arguments: The command line without the program's name; by default that of the process, which then ends.

    Returns:
        The exit status.
    """
    previous = signal.getsignal(signal.SIGINT)
    handled = previous is signal.default_int_handler  # otherwise it is ignored, or the caller handles it
    if handled:
        signal.signal(signal.SIGINT, interrupt)
    try:
        from plrc.cli.commands import run

        return run(arguments)
    except KeyboardInterrupt:
        if handled:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end is near
        from plrc.cli.output import INTERRUPTED, fail

        return fail(INTERRUPTED, "interrupted")
    finally:
        if handled:
            signal.signal(signal.SIGINT, signal.SIG_DFL if arguments is None else previous)
