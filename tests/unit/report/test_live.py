"""The live view fits any width, needs no colour and no unicode, and says what the records say."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from tutelage.report.live import RunView, can_redraw

METRICS = [
    {
        "loss": 1 / (step + 1),
        "reward": step / 40,
        "blend_mean": 0.5,
        "seconds_rollout": 3.0,
        "seconds_score": 0.0,
        "seconds_update": 1.0,
    }
    for step in range(40)
]
EVALUATIONS = [{"name": "sums", "pass_at_1": 0.1}, {"name": "sums", "pass_at_1": 0.425}]


def lines(view: RunView, width: int, **settings: Any) -> list[str]:
    console = Console(**({"file": io.StringIO(), "width": width, "force_terminal": True} | settings))
    console.print(view)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text.splitlines()


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 120, 300])
def test_every_width_has_every_number(width: int) -> None:
    shown = lines(RunView(METRICS, EVALUATIONS), width, no_color=True, color_system=None)
    assert max(map(len, shown)) <= width
    assert [line.split()[:2] for line in shown[:5]] == [
        ["pass@1", "42.5%"],
        ["reward", "0.97"],
        ["loss", "0.025"],
        ["beta", "0.50"],
        ["time", "4.0s"],
    ]
    if width >= 40:
        assert "rollout 75%  update 25%" in shown[4]
        assert "▁" in shown[2] and "█" in shown[2]
    assert ("0.025 to 1.000" in shown[2]) == (width >= 60)


def test_curves_are_those_of_the_records() -> None:
    shown = lines(RunView(METRICS[:8], EVALUATIONS), 60, no_color=True, color_system=None)
    assert shown[1].split()[2] == "▁▂▃▄▅▆▇█"
    assert shown[0].split()[2] == "▁█"


def test_no_colour_leaves_nothing_but_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    shown = "\n".join(lines(RunView(METRICS, EVALUATIONS), 80))
    assert "\x1b[36m" not in shown and "█" in shown
    monkeypatch.delenv("NO_COLOR")
    assert "\x1b[36m" in "\n".join(lines(RunView(METRICS, EVALUATIONS), 80, color_system="standard"))


def test_without_unicode_there_are_numbers() -> None:
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console = Console(file=file, width=80, force_terminal=True)
    console.print(RunView(METRICS, EVALUATIONS))
    file.flush()
    text = file.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
    assert "42.5%" in text and "rollout 75%" in text


def test_what_is_missing_is_left_out() -> None:
    assert lines(RunView(), 80) == []
    only_loss = lines(RunView([{"loss": 1.0}, {"loss": float("nan")}, {"loss": 2.0, "reward": None}]), 80)
    assert len(only_loss) == 1 and only_loss[0].split()[:2] == ["loss", "2.000"]
    two_sets = [*EVALUATIONS, {"name": "a very long name of a set", "pass_at_1": 1.0}]
    assert [line.split("%")[0].split()[-1] for line in lines(RunView([], two_sets), 40)] == ["42.5", "100.0"]


def test_records_that_grow_are_seen() -> None:
    view = RunView()
    assert lines(view, 40) == []
    view.add_step({"loss": 0.5})
    assert lines(view, 40)[0].split()[:2] == ["loss", "0.500"]


def test_where_lines_can_be_redrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not can_redraw(Console(file=io.StringIO()))
    monkeypatch.setenv("TERM", "xterm-256color")
    assert can_redraw(Console(file=io.StringIO(), force_terminal=True))
    monkeypatch.setenv("TERM", "dumb")
    assert not can_redraw(Console(file=io.StringIO(), force_terminal=True))
