"""What a terminal gets: text as text, in any encoding."""

from __future__ import annotations

import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from tests.support.results import RESULT
from tutelage.cli.checkup import print_finding
from tutelage.display import progress
from tutelage.display.console import TextConsole, WatchedConsole, write_in_any_encoding
from tutelage.errors import RunInterrupted
from tutelage.evaluation import rich_table
from tutelage.preflight import Finding, Verdict
from tutelage.types import StepResult

NAMES = ["[/b]", "[red]x[/red]", "[link=x]y[/link]", ":smile:", "a[0]", "\\[b]"]
HOSTILE = "\x1b[31m\x1b]0;owned\x07 \x9b2J \u202eevil\r\x08"
SHOWN = r"\x1b[31m\x1b]0;owned\x07 \x9b2J \u202eevil\r\x08"


def console(**settings: object) -> TextConsole:
    return TextConsole(file=io.StringIO(), width=160, **settings)


def written(screen: TextConsole) -> str:
    return screen.file.getvalue()  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("name", NAMES)
def test_brackets_are_brackets(name: str) -> None:
    screen = console()
    table = Table(f"column {name}", title=f"title {name}")
    table.add_row(f"cell {name}")
    screen.say(f"say {name}")
    screen.print(f"print {name}")
    screen.print(table)
    for where in ("say", "print", "column", "cell", "title"):
        assert f"{where} {name}" in written(screen)


def test_what_a_terminal_would_obey_is_shown() -> None:
    screen = console(force_terminal=True, color_system="truecolor")
    table = Table("text", "cell")
    table.add_row(Text(HOSTILE), HOSTILE)
    screen.print(table)
    screen.say(HOSTILE)
    screen.say(Text.assemble(("error:", "red"), " ", HOSTILE))
    assert written(screen).count(r"\x1b]0;owned") == 4 and written(screen).count(SHOWN) == 2, "rich drops some of Text"
    assert not set(written(screen)) & {"\x07", "\x08", "\r", "\x9b", "\u202e"} and "\x1b]" not in written(screen)
    assert "\x1b[31merror:" in written(screen), "our own colours stay"


@pytest.mark.parametrize("name", [*NAMES, HOSTILE])
def test_a_live_display_shows_names_as_they_are(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    screen = WatchedConsole(file=io.StringIO(), width=160, height=30, force_terminal=True, color_system=None)
    with progress.LiveObserver(name, screen) as observer:
        observer.on_start(0, 10)
        observer.on_evaluation(0, replace(RESULT, name=name))
        observer.on_step(StepResult(0, {"loss": 1.0}, []))
        observer.on_checkpoint(1, Path(f"runs/{name}"))
        observer.on_message(f"the template says {name}")
        screen.print(observer.live.get_renderable())
    shown = SHOWN if name == HOSTILE else name
    assert f"evaluation at step 0: {shown} pass@1" in written(screen)
    assert f"checkpoint runs/{shown}" in written(screen) and f"the template says {shown}" in written(screen)
    assert not set(written(screen)) & {"\x07", "\x9b", "\u202e"} and f"\n{shown[:10]}" in written(screen)


@pytest.mark.parametrize("name", NAMES)
def test_tables_and_findings_show_names_as_they_are(name: str) -> None:
    screen = console()
    screen.print(rich_table([replace(RESULT, name=name)]))
    print_finding(screen, Finding(Verdict.error, f"text {name}", f"remedy {name}", [f"detail {name}"], f"check {name}"))
    assert written(screen).count(name) == 5


def test_a_status_is_text() -> None:
    with console(force_terminal=True).status(f"[red]{HOSTILE}") as status:
        assert str(status.status) == "[red]" + SHOWN


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "cp1252", "utf-8"])
def test_no_encoding_makes_printing_fail(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    write_in_any_encoding()
    screen = TextConsole(width=80)
    table = Table("größe", "学")
    table.add_row("─ β", "👩‍🚀")
    screen.print(table)
    screen.say("läufe/学习 \udcff")
    sys.stdout.flush()
    assert "läufe/学习".encode(encoding, "backslashreplace") + rb" \udcff" in raw.getvalue()


def test_a_reader_that_goes_away_ends_a_run_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    class NobodyReads(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with monkeypatch.context() as patch, pytest.raises(RunInterrupted, match="its output was closed"):
        patch.setattr("os.dup2", lambda *_: None)  # rich would silence this process's own standard output
        WatchedConsole(file=NobodyReads()).say("x")
