"""Ctrl-C during imports. This module imports almost nothing, so that it can be used first."""

from __future__ import annotations

import _thread
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType

REPEAT_SECONDS = 0.05


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, but not inside of an import: then the signal is sent again a little later.

    An import that is broken off may leave a module that cannot be imported again, and libraries turn the interrupt into
    other errors. This is a handler for SIGINT; others may call it.

    Args:
        number: The number of the signal.
        frame: The frame that was interrupted.
    """
    if _is_importing(frame):
        _Waiting.signals += 1
        _thread.start_new_thread(_repeat, ())
        return
    raise KeyboardInterrupt


def raise_waiting() -> None:
    """Raise KeyboardInterrupt if a signal waits for the end of an import. Call this after imports, before the work."""
    if _Waiting.signals:
        raise KeyboardInterrupt


class _Waiting:
    """The number of signals that wait."""

    signals = 0


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a frame belongs to an import that a function of plrc, or nobody, started."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib._bootstrap"):
            return True
        name = frame.f_globals.get("__name__", "")
        if name.startswith("plrc.") and frame.f_code.co_name != "<module>":
            return False
        frame = frame.f_back
    return False


def _repeat() -> None:
    time.sleep(REPEAT_SECONDS)
    if signal.getsignal(signal.SIGINT) not in (signal.default_int_handler, signal.SIG_DFL):
        _thread.interrupt_main()
    _Waiting.signals -= 1
