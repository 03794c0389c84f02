"""The doctor's findings as lines: a word for the verdict, so that nothing depends on colour."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tutelage.preflight import Finding, Verdict

__all__ = ["counted", "print_finding", "print_summary"]

STYLES = {Verdict.ok: "green", Verdict.skipped: "dim", Verdict.warning: "bold yellow", Verdict.error: "bold red"}
WIDTH = max(map(len, Verdict))


def print_finding(console: Console, finding: Finding) -> None:
    """The verdict and what was found; below it the remedy, and further details."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=WIDTH, no_wrap=True)
    grid.add_column(overflow="fold")
    found = Text.assemble((f"{finding.check}: ", "bold"), finding.text)
    grid.add_row(Text(finding.verdict, style=STYLES[finding.verdict]), found)
    if finding.remedy:
        grid.add_row("", Text(f"-> {finding.remedy}"))
    for detail in finding.details:
        grid.add_row("", Text(detail, style="dim"))
    console.print(grid)


def print_summary(console: Console, findings: list[Finding]) -> None:
    """How many of each verdict."""
    console.print(", ".join(f"{count} {verdict}" for verdict, count in counted(findings).items() if count))


def counted(findings: Sequence[Finding]) -> dict[str, int]:
    """Verdict -> how many findings have it."""
    return {str(verdict): sum(finding.verdict == verdict for finding in findings) for verdict in Verdict}
