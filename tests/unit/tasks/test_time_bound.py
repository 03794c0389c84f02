from __future__ import annotations

import contextlib
import threading

import pytest

from tutelage.tasks.time_bound import OutOfTime, bounded


def spin() -> None:
    while True:
        pass


def end_of_spinning(seen: list[str]) -> None:
    try:
        with bounded(0.05):
            spin()
    except OutOfTime:
        seen.append("ended")


def test_code_without_an_end_is_ended_in_the_main_thread_and_in_others() -> None:
    seen: list[str] = []
    end_of_spinning(seen)
    thread = threading.Thread(target=end_of_spinning, args=(seen,))
    thread.start()
    thread.join(timeout=30)
    assert seen == ["ended", "ended"]


def test_exceptions_of_the_code_do_not_hide_it() -> None:
    with pytest.raises(OutOfTime), bounded(0.05):
        while True:
            with contextlib.suppress(Exception):
                spin()


def test_steps_are_counted_each_by_itself_and_nothing_is_left_behind() -> None:
    before = threading.active_count()
    with bounded(60) as step:
        for _ in range(1000):
            step()
    assert threading.active_count() == before
