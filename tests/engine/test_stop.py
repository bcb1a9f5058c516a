"""Requests to stop: real signals to this process."""

from __future__ import annotations

import signal

import pytest

from plrc.runtime import StopRequest


def test_a_signal_asks_and_the_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    stop = StopRequest()
    assert not stop.requested
    signal.raise_signal(signal.SIGTERM)
    assert stop.requested
    stop.restore()
    assert signal.getsignal(signal.SIGTERM) is before


def test_one_inside_another_shares_what_was_asked() -> None:
    outer = StopRequest()
    first = StopRequest()
    signal.raise_signal(signal.SIGTERM)
    assert outer.requested and first.requested
    first.restore()
    later = StopRequest()
    assert later.requested, "what came before it counts too"
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    later.restore()
    outer.restore()
