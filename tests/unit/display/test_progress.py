"""What is shown while a run goes on: in a terminal of any width, and where there is none."""

from __future__ import annotations

import io
import re
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from tests.support.results import RESULT
from tutelage.display import progress
from tutelage.types import StepResult

METRICS = {"loss": 0.5, "reward": 0.25, "blend_mean": 0.1, "seconds_rollout": 3.0, "seconds_update": 1.0}
METRICS |= {"teacher_logprob": -0.75, "response_tokens": 41.0, "tokens_per_second": 900.0}


def watch(observer: progress.PlainObserver, steps: int = 3) -> None:
    observer.on_start(0, 10)
    observer.on_evaluation(0, RESULT)
    for step in range(steps):
        observer.on_step(StepResult(step, METRICS | {"loss": 1 / (step + 1)}, []))


def terminal(width: int, **settings: Any) -> progress.WatchedConsole:
    return progress.WatchedConsole(file=io.StringIO(), width=width, height=30, force_terminal=True, **settings)


def plain(console: Console) -> str:
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


@pytest.mark.parametrize("width", [40, 80, 160])
def test_the_live_display_fits(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    observer = progress.LiveObserver("tiny", terminal(width))
    watch(observer)
    shown = terminal(width, color_system=None)
    shown.print(observer.live.get_renderable())
    rows = plain(shown).splitlines()
    assert max(map(len, rows)) <= width
    assert rows[0].startswith("tiny") and "3/10" in rows[0] and ("left" in rows[0]) == (width >= 80)
    assert [row.split()[0] for row in rows[1:6]] == ["pass@1", "reward", "loss", "beta", "time"]
    assert "█" in rows[3] and "rollout 75%" in rows[5]
    assert rows[6].startswith("teacher -0.75  length 41")


def test_a_terminal_that_changes_its_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    console = terminal(120)
    observer = progress.LiveObserver("tiny", console)
    with observer:
        watch(observer)
        for width in (40, 120, 60):
            console.size = console.size._replace(width=width)  # type: ignore[misc]
            observer.live.refresh()
    last = plain(console).rstrip("\n").split("tiny")[-1]
    assert max(map(len, ("tiny" + last).splitlines())) <= 60 and "3/10" in last


def test_evaluations_scroll_by_as_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    console = terminal(100)
    with progress.LiveObserver("tiny", console) as observer:
        watch(observer)
    assert "evaluation at step 0: sums pass@1 50.0% (95% 25.0 to 75.0)" in plain(console)


def test_no_terminal_and_dumb_ones_get_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (("FORCE_COLOR", None), ("TTY_COMPATIBLE", None), ("TERM", "xterm-256color")):
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    observer = progress.observer_for("tiny")
    assert type(observer) is progress.PlainObserver
    with observer:
        watch(observer, steps=1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[1].startswith("step 1/10  loss 1.000  reward 0.25  pass@1 50.0%  beta 0.10")
    monkeypatch.setattr(progress, "TextConsole", lambda: terminal(80))
    assert type(progress.observer_for("tiny")) is progress.LiveObserver
    monkeypatch.setenv("TERM", "dumb")
    assert type(progress.observer_for("tiny")) is progress.PlainObserver


class Notebook:
    """What stands for IPython: the outputs that a cell has."""

    def __init__(self) -> None:
        self.outputs: list[str] = []

    def get_ipython(self) -> Any:
        return SimpleNamespace(kernel="a kernel")

    def display(self, content: dict[str, str], *, raw: bool, display_id: bool) -> Any:
        assert raw and display_id
        self.outputs.append(content["text/plain"])
        return SimpleNamespace(update=self.update)

    def update(self, content: dict[str, str], *, raw: bool) -> None:
        self.outputs[-1] = content["text/plain"]


def test_a_notebook_has_one_output_that_is_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = Notebook()
    monkeypatch.setitem(sys.modules, "IPython", notebook)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "IPython.display", notebook)  # type: ignore[arg-type]
    monkeypatch.setenv("FORCE_COLOR", "1")  # as kernels do
    with progress.observer_for("tiny") as observer:
        assert type(observer) is progress.NotebookObserver
        watch(observer)
        observer.on_message("a [b] message")
    (shown,) = notebook.outputs
    assert "tiny: step 3/10" in shown and "a [b] message" in shown and "\x1b" not in shown
    assert re.search("^evaluation at step", shown, re.MULTILINE) and re.search("^loss ", shown, re.MULTILINE)


def test_a_console_in_a_notebook_writes_plain_lines(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "IPython", Notebook())  # type: ignore[arg-type]
    monkeypatch.setenv("FORCE_COLOR", "1")
    console = progress.TextConsole()
    with console.status("generating"):
        console.say("a line")
    assert capsys.readouterr().out == "a line\n"
