"""What one process hears of another, through a store of this process."""

from __future__ import annotations

import time

import pytest
import torch.distributed as dist

from tutelage.errors import ConfigurationError, WorkerLostError
from tutelage.runtime import heartbeat, joined, runtime_for
from tutelage.runtime.processes import Processes


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "SECONDS_PER_BEAT", 0.02)
    monkeypatch.setattr(heartbeat, "FAREWELL_SECONDS", 0.02)


def pair() -> tuple[heartbeat.Heartbeat, heartbeat.Heartbeat]:
    store = dist.HashStore()
    first, second = (heartbeat.Heartbeat(lambda: store, rank, 2) for rank in range(2))
    first.start()
    second.start()
    return first, second


def until(is_so) -> None:
    patience = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < patience
        time.sleep(0.01)


def test_a_wish_to_stop_reaches_the_others() -> None:
    first, second = pair()
    rung: list[str | None] = []
    second.on_news = lambda: rung.append(second.stop_asked)
    first.tell_stop("stopped by SIGINT")
    until(lambda: rung)
    assert rung == ["stopped by SIGINT"] and second.is_stop_asked and second.lost is None
    first.close("")
    second.close("")


def test_a_wish_to_stop_belongs_to_its_run() -> None:
    """One that is heard late stops no later run; one that comes early waits until its run has begun here."""
    first, second = pair()
    rung: list[str | None] = []
    first.tell_stop("of the run before")
    second.begin_run(lambda: rung.append(second.stop_asked))
    time.sleep(0.2)
    assert not rung and not second.is_stop_asked
    first.begin_run(lambda: None)
    assert not first.is_stop_asked
    first.begin_run(lambda: None)
    first.tell_stop("of the run after")
    time.sleep(0.2)
    assert not rung
    second.begin_run(lambda: rung.append(second.stop_asked))
    until(lambda: rung)
    assert rung == ["of the run after"]
    first.close("")
    second.close("")


def test_an_end_is_told_with_its_reason_and_a_good_end_is_no_loss() -> None:
    first, second = pair()
    second.close("")
    time.sleep(0.1)
    assert first.lost is None
    first.close("")
    first, second = pair()
    second.close("the disk is full")
    assert first.verdict() == "rank 1 of 2 has ended: the disk is full"
    first.close("")


def test_silence_is_a_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "LOST_AFTER_SECONDS", 0.3)
    first, second = pair()
    second._closing.set()  # as if it had been killed
    until(lambda: first.lost)
    assert first.lost is not None and first.lost.startswith("rank 1 of 2 has given no sign of life")
    first.close("")


def test_a_broken_connection_names_who_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.HashStore()
    first, second = (Processes(rank, 2, rank, store, lambda: store) for rank in range(2))
    second.heartbeat.close("out of memory")
    with pytest.raises(WorkerLostError, match="rank 1 of 2 has ended: out of memory.*--resume"), first.waiting():
        raise RuntimeError("[gloo/transport/tcp/pair.cc] Connection reset by peer")
    with pytest.raises(RuntimeError, match="shapes"), first.waiting():
        raise RuntimeError("shapes do not agree")
    first.heartbeat.lost = None  # or this process would end with an exit code of its own
    first.close(None)


def test_a_message_is_said_once() -> None:
    store = dist.HashStore()
    processes = [Processes(rank, 2, rank, store, lambda: store) for rank in range(2)]
    problems = [ConfigurationError("no such file") for _ in processes]
    for process, problem in zip(processes, problems, strict=True):
        process.close(problem)
    assert [problem.is_said for problem in problems] == [False, True]
    for process in processes:
        process.heartbeat.lost = None


def test_half_an_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigurationError, match="does not say which process.*RANK.*torchrun"), joined():
        pass


def test_alone_nothing_is_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined() as processes:
        assert processes is None
    with pytest.warns(UserWarning, match="runtime.strategy has no effect in a single process"):
        runtime = runtime_for(None, device="cpu", strategy="fsdp2", shard_teacher=False, timeout_seconds=1.0)
    assert runtime.is_alone and runtime.share(5) == slice(0, 5)
