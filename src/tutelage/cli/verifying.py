"""`tutelage verify`: a line per checkpoint and, below it, a line for each thing that is not what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli.arguments import given_path
from tutelage.cli.output import AsJson, print_document
from tutelage.display.console import TextConsole

__all__ = ["verify"]


def verify(
    run: Annotated[Path, typer.Argument(help="A run's folder, or one of its checkpoints.", callback=given_path)],
    accept: Annotated[
        list[str] | None,
        typer.Option("--accept", help="What may differ, such as versions. May be given several times."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Take the digests of a run's files and inputs again: exit code 1 if a checkpoint is not what it says."""
    from tutelage.api.checking import verify as verdicts_of

    console = TextConsole(quiet=as_json)
    with console.status("taking digests"):
        verdicts = verdicts_of(run, accept=accept or [])
    for verdict in verdicts:
        if not verdict.is_recorded:
            found = "does not say what it was made from (an earlier version wrote it)"
        elif verdict.differences:
            found = f"differs in {len(verdict.differences)}"
        else:
            found = "as it says"
        console.say(f"{verdict.path.name}  {found}")
        for line in verdict.differences:
            console.say(f"  {line}")
        for line in verdict.accepted:
            console.say(f"  accepted: {line}")
    is_verified = all(verdict.is_verified for verdict in verdicts)
    if as_json:
        print_document({"is_verified": is_verified, "checkpoints": [verdict.as_dict() for verdict in verdicts]})
    if not is_verified:
        raise typer.Exit(1)
