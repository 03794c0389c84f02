"""The terminal: every command prints through here, so that text is shown as text whatever it says.

Names, paths, models' answers and the words of servers and templates may hold square brackets, which rich would take for
markup, and escape sequences, which a terminal would obey. Both are shown. What cannot be written in the terminal's
encoding is escaped, too, and never an error.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.status import Status
from rich.text import Text

from tutelage.errors import RunInterrupted, printable

__all__ = ["TextConsole", "WatchedConsole", "in_notebook", "write_in_any_encoding"]


class TextConsole(Console):
    """A console on which a string is text: no markup, no emoji codes, no control characters."""

    def __init__(self, **settings: Any) -> None:
        if in_notebook():  # lines of text, of which rich would make blocks of HTML; a spinner would leave its frames
            settings = {"force_jupyter": False, "force_terminal": False, **settings}
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """As rich does, with control characters written out before the text is measured."""
        return super().render_str(printable(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """As rich does; a last look at what reached us as `Text`, such as the cells of a table."""
        for segment in super().render(renderable, options):
            is_text = not segment.control  # else rich's own, such as the movements of a live display
            yield Segment(printable(segment.text), segment.style) if is_text else segment

    def say(self, text: str | Text) -> None:
        """Print lines that a terminal may wrap and we do not: paths stay whole when they are copied."""
        self.print(text, soft_wrap=True)

    def status(self, status: RenderableType, **settings: Any) -> Status:
        """As rich's, whose strings would be markup, and whose dots not every encoding has."""
        settings.setdefault("spinner", "line" if self.options.ascii_only else "dots")
        return super().status(self.render_str(status) if isinstance(status, str) else status, **settings)


class WatchedConsole(TextConsole):
    """A console whose reader may go away (`tutelage train ... | head`): the run is then saved, as after Ctrl-C."""

    def on_broken_pipe(self) -> None:
        try:
            super().on_broken_pipe()  # prints nothing from here on
        except SystemExit:
            raise RunInterrupted("stopped because its output was closed") from None


def in_notebook() -> bool:
    """Whether this is the kernel of a notebook, whose outputs can be drawn anew."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def write_in_any_encoding() -> None:
    """Let the standard streams escape what their encoding does not have, in place of failing on it."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not where something else was put in its place
            stream.reconfigure(errors="backslashreplace")
