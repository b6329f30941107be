"""Signals: the first one stops, the second hurries, and those of one moment are one."""

import signal

import pytest

from staffa import clock
from staffa.signals import MOMENT, StopSignals


async def test_signals_that_come_within_a_moment_are_one__case_57(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = 0.0  # as right after the machine's start
    hurried: list[float] = []
    monkeypatch.setattr(clock, "monotonic", lambda: moment)

    with StopSignals(15, lambda: hurried.append(moment)) as signals:
        assert not signals.stopping.is_set()
        signals._hear(signal.SIGINT)
        assert signals.stopping.is_set()
        signals._hear(signal.SIGTERM)  # at once: a wrapper passes on what the terminal has sent already
        moment += MOMENT / 2
        signals._hear(signal.SIGINT)
        assert hurried == []

        moment += MOMENT
        signals._hear(signal.SIGINT)

    assert hurried == [moment]
