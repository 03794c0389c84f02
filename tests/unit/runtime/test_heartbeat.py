"""What one process learns of another, through a store of this process."""

from __future__ import annotations

import threading
import time

import pytest
import torch.distributed as dist

from tutelage.errors import ConfigurationError, WorkerLostError
from tutelage.runtime import heartbeat, joined, processes, runtime_for
from tutelage.runtime.processes import Processes


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "SECONDS_PER_BEAT", 0.02)
    monkeypatch.setattr(heartbeat, "SECONDS_PER_LOOK", 0.02)
    monkeypatch.setattr(processes, "GOODBYE_SECONDS", 0.2)


def pair() -> tuple[heartbeat.Heartbeat, heartbeat.Heartbeat]:
    store = dist.HashStore()
    first, second = (heartbeat.Heartbeat(store, rank, 2) for rank in range(2))
    return first, second


def part(*beats: heartbeat.Heartbeat) -> None:
    """All say goodbye, rank 0 at last: it waits for the others."""
    for beat in reversed(beats):
        beat.stop("")


def until(is_so) -> None:
    patience = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < patience
        time.sleep(0.01)


def test_a_wish_to_stop_reaches_the_others() -> None:
    first, second = pair()
    rung: list[str | None] = []
    second.on_stop_request = lambda: rung.append(second.stop_reason)
    first.request_stop("stopped by SIGINT")
    until(lambda: rung)
    assert set(rung) == {"stopped by SIGINT"} and second.stop_reason is not None and second.lost is None
    part(first, second)


def test_a_wish_to_stop_belongs_to_its_run() -> None:
    """One that arrives late stops no later run; one that arrives early waits until its run has begun here."""
    first, second = pair()
    rung: list[str | None] = []
    first.request_stop("of the run before")
    second.begin_run(lambda: rung.append(second.stop_reason))
    time.sleep(0.2)
    assert not rung and second.stop_reason is None
    first.begin_run(lambda: None)
    assert first.stop_reason is None
    first.begin_run(lambda: None)
    first.request_stop("of the run after")
    time.sleep(0.2)
    assert not rung
    second.begin_run(lambda: rung.append(second.stop_reason))
    until(lambda: rung)
    assert set(rung) == {"of the run after"}
    part(first, second)


def test_an_end_is_told_with_its_reason_and_a_good_end_is_no_loss() -> None:
    first, second = pair()
    second.stop("")
    time.sleep(0.1)
    assert first.lost is None
    first.stop("")
    first, second = pair()
    second.stop("the disk is full")
    assert first.verdict() == "rank 1 of 2 has ended: the disk is full"
    first.stop("")


def test_silence_is_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "LOST_AFTER_SECONDS", 0.3)
    first, second = pair()
    second._stopping.set()  # as if it had been killed
    until(lambda: first.lost)
    assert first.lost is not None and first.lost.startswith("rank 1 of 2 has given no sign of life")
    first.stop("")  # and waits for no process that is gone


def test_a_store_that_does_not_answer_is_a_loss_and_keeps_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's client waits for a server that was stopped, whatever its timeout is."""
    monkeypatch.setattr(heartbeat, "LOST_AFTER_SECONDS", 0.3)
    store, answers = StoppedStore(), threading.Event()
    store.answers = answers
    alone = Processes(store, 1, 2, 1)
    rung: list[str | None] = []
    alone.heartbeat.on_stop_request = lambda: rung.append(alone.heartbeat.lost)
    lost = "rank 0, or the launcher on its node, cannot be reached any more"
    until(lambda: rung)  # on a busy machine later than the 0.3 seconds that a verdict waits for
    assert set(rung) == {lost} and alone.heartbeat.verdict() == lost
    alone.close(WorkerLostError(lost))
    answers.set()
    alone.heartbeat.lost = None


class StoppedStore:
    """A store whose server answers nothing that must be answered before `answers` is set."""

    answers: threading.Event

    def clone(self) -> StoppedStore:
        return self

    def set(self, *_: str) -> None:
        """What is written waits in the socket."""

    def check(self, _keys: list[str]) -> bool:
        return not self.answers.wait()

    def add(self, *_: object) -> int:
        return int(self.answers.wait())


def test_a_broken_connection_names_who_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.HashStore()
    first, second = (Processes(store, rank, 2, rank) for rank in range(2))
    second.heartbeat.stop("out of memory")
    with pytest.raises(WorkerLostError, match="rank 1 of 2 has ended: out of memory.*--resume"), first.waiting():
        raise RuntimeError("[gloo/transport/tcp/pair.cc] Connection reset by peer")
    with pytest.raises(RuntimeError, match="shapes"), first.waiting():
        raise RuntimeError("shapes do not agree")
    first.heartbeat.lost = None  # or this process would end with an exit code of its own
    first.close(None)


def test_a_message_is_reported_once() -> None:
    store = dist.HashStore()
    both = [Processes(store, rank, 2, rank) for rank in range(2)]
    problems = [ConfigurationError("no such file") for _ in both]
    for process, problem in zip(both, problems, strict=True):
        process.close(problem)
    until(lambda: problems[1].is_reported)
    assert [problem.is_reported for problem in problems] == [False, True]
    for process in both:
        process.heartbeat.lost = None


def test_half_an_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigurationError, match="does not say which process.*RANK.*torchrun"), joined():
        pass


def test_alone_nothing_is_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as found:
        assert found is None
    with pytest.warns(UserWarning, match="runtime.strategy has no effect in a single process"):
        runtime = runtime_for(None, device="cpu", strategy="fsdp2", shard_teacher=False, timeout_seconds=1.0)
    assert runtime.is_alone and runtime.share(5) == slice(0, 5)
