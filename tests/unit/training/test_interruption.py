"""Signals, at once or once what is protected is done."""

from __future__ import annotations

import os
import signal

import pytest

from tutelage.errors import RunInterrupted
from tutelage.training.interruption import Interruption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_at_once_and_waits_for_what_is_protected(number) -> None:
    reached = []
    before = signal.getsignal(number)
    with pytest.raises(RunInterrupted, match=signal.Signals(number).name), Interruption() as interruption:
        with interruption.protected():
            os.kill(os.getpid(), number)
            reached.append("inside")
        reached.append("after")
    assert reached == ["inside"]
    with pytest.raises(RunInterrupted), Interruption():
        os.kill(os.getpid(), number)
        reached.append("unprotected")
    assert reached == ["inside"]
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_is_not_held_back() -> None:
    with pytest.raises(KeyboardInterrupt), Interruption() as interruption, interruption.protected():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_a_handler_that_could_not_be_given_back_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another program has set it, as an interpreter that is embedded has it, Python gives None for it."""
    monkeypatch.setattr(signal, "getsignal", lambda number: None)
    monkeypatch.setattr(signal, "signal", lambda *_: pytest.fail("a handler was changed"))
    with Interruption() as interruption, interruption.protected():
        pass
