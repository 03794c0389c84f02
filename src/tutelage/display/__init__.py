"""How is something shown to a person?  One console for all text; a run in progress in a terminal, a notebook, a log."""

from tutelage.display.console import TextConsole, WatchedConsole, in_notebook, write_in_any_encoding

__all__ = ["TextConsole", "WatchedConsole", "in_notebook", "write_in_any_encoding"]
