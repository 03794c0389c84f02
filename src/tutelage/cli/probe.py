"""`tutelage probe`: experiments without training. Reads arguments, calls `probes`, shows tables."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.table import Table

from tutelage.api.arguments import MAX_SAMPLES, check_output_file, threads
from tutelage.cli.arguments import given_path
from tutelage.cli.output import AsJson, print_document
from tutelage.display.console import TextConsole
from tutelage.errors import ConfigurationError

if TYPE_CHECKING:
    from tutelage.config import RunConfig

__all__ = ["probe_app"]

Number = TypeVar("Number", int, float)
INTERVAL = "_interval"

probe_app = typer.Typer(help="Small experiments on a run's policy, without training.", no_args_is_help=True)

RunFile = Annotated[Path, typer.Argument(help="A run file, or the folder of a run.", callback=given_path)]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Override one field: key.path=value.")]
Samples = Annotated[int, typer.Option(help="Answers per prompt.", min=1, max=MAX_SAMPLES)]
Limit = Annotated[int | None, typer.Option(help="Only the first prompts.", min=1)]
Student = Annotated[
    str | None, typer.Option(help="A checkpoint in place of the run's initial student.", callback=given_path)
]
Output = Annotated[Path | None, typer.Option(help="A JSON file to write.", callback=given_path)]
Figure = Annotated[Path | None, typer.Option(help="A figure to draw: FILE.svg, .png or .pdf.", callback=given_path)]


@probe_app.command()
def continuation(
    run_file: RunFile,
    lengths: Annotated[str, typer.Option(help="Tokens kept of each answer, such as 8,16,32.")] = "8,16,32",
    step: Annotated[int, typer.Option(help="Step whose schedule values the policy takes.", min=0)] = 0,
    samples: Samples = 4,
    limit: Limit = 64,
    student: Student = None,
    output: Output = None,
    figure: Figure = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Are the policy's prefixes better starting points than the student's own? Teacher and student continue both."""
    from tutelage.config import RunAssembly
    from tutelage.probes import ProbeParts, probe_continuation
    from tutelage.report import plot_continuation

    kept = _numbers(lengths, "--lengths", int)
    config = _config(run_file, overrides, output, figure)
    with threads(config.runtime.threads), TextConsole(quiet=as_json).status("probing"):
        run = RunAssembly.for_sampling(config, student)
        policy = run.policy_at(step)
        parts = ProbeParts.of(run, limit=limit)
        gains = probe_continuation(parts, policy, kept, num_samples=samples, step=step)
    _show([asdict(gain) for gain in gains], output, figure, plot_continuation, as_json)


@probe_app.command()
def budget(
    run_file: RunFile,
    radii: Annotated[str, typer.Option(help="KL budgets, such as 0,0.001,0.01.")] = "0,0.001,0.005,0.01,0.02,0.05",
    samples: Samples = 4,
    limit: Limit = 64,
    student: Student = None,
    output: Output = None,
    figure: Figure = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """What does a KL budget buy? Teacher support, reward and AUROC of a trust region's rollouts at each budget."""
    from tutelage.config import RunAssembly
    from tutelage.probes import ProbeParts, probe_budget
    from tutelage.report import plot_budget

    budgets = _numbers(radii, "--radii", float)
    config = _config(run_file, overrides, output, figure)
    with threads(config.runtime.threads), TextConsole(quiet=as_json).status("probing"):
        run = RunAssembly.for_sampling(config, student)
        points = probe_budget(ProbeParts.of(run, limit=limit), budgets, num_samples=samples)
    _show([asdict(point) for point in points], output, figure, plot_budget, as_json)


def _config(run_file: Path, overrides: list[str] | None, output: Path | None, figure: Path | None) -> RunConfig:
    from tutelage.config import load_config
    from tutelage.report import check_figure_format

    for file in (output, figure):
        if file is not None:
            check_output_file(file)
    if figure is not None:
        check_figure_format(figure)
    return load_config(run_file / "config.toml" if run_file.is_dir() else run_file, overrides or [])


def _numbers(text: str, option: str, kind: Callable[[str], Number]) -> list[Number]:
    try:
        numbers = [kind(each) for each in text.split(",")]
        if all(map(math.isfinite, numbers)):
            return numbers
        raise ValueError
    except (ValueError, OverflowError):
        example = "8,16,32" if kind is int else "0,0.001,0.01"
        raise ConfigurationError(
            f"{option} is {text!r}; expected finite numbers with commas between. Use {option} {example}."
        ) from None


def _show(
    records: Sequence[dict[str, Any]],
    output: Path | None,
    figure: Path | None,
    plot: Callable[[Sequence[dict[str, Any]], Path], Path],
    as_json: bool,
) -> None:
    from tutelage.files import write_whole

    names = [name for name in records[0] if not name.endswith(INTERVAL)]
    table = Table(*(name.replace("_", " ") for name in names))
    for record in records:
        table.add_row(*(_cell(record[name], record.get(name + INTERVAL)) for name in names))
    console = TextConsole(quiet=as_json)
    console.print(table)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(output, json.dumps(records, indent=2) + "\n")
    if figure is not None:
        plot(records, figure)
    written = [str(file) for file in (output, figure) if file is not None]
    for file in written:
        console.say(f"written   {file}")
    if as_json:
        print_document({"points": list(records), "files": written})


def _cell(value: Any, interval: tuple[float, float] | None) -> str:
    """A number, its interval below it."""
    shown = "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
    return shown if interval is None else f"{shown}\n[{interval[0]:.2g}, {interval[1]:.2g}]"
