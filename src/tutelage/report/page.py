"""One HTML file about runs, and its figures beside it; everything in it is read from the files of those runs.

The file loads nothing: styles, script, figures and answers are inside. It may be replaced, since it can be made again,
but only where a mark in its head says that it was made here.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tutelage.errors import DataError, OutputExistsError
from tutelage.files import write_whole, written_whole
from tutelage.report.answers import side_by_side
from tutelage.report.figures import draw_figures
from tutelage.report.inline_svg import for_page
from tutelage.report.plain import in_page, script_json
from tutelage.report.sources import ReportedRun, grouped, is_finished, read_sources, settled, steps_done
from tutelage.report.tables import (
    MAX_PROBLEMS_LISTED,
    Cell,
    Change,
    Table,
    compared,
    configuration_differences,
    problem_changes,
    run_table,
    summary,
)
from tutelage.report.thinning import MAX_STRETCHES

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["Report", "default_path", "watch_report", "write_report"]

MARK = '<meta name="generator" content="tutelage report">'
MARK_WITHIN = 1000  # bytes from the start
FIGURES_MARK = ".made-by-tutelage-report"
MAX_RUNS_WITH_PROBLEMS = 8
MAX_METHODS_DRAWN = 12  # more lines cannot be told apart
MIN_RUNS_LISTED = 3
MAX_NAMES_IN_TITLE = 4
MAX_LEFT_OUT = 20  # sentences about what could not be read
MAX_PICTURE_BYTES = 5_000_000


@dataclass(frozen=True)
class Report:
    """What was written: the page, its figures, whether all of its runs were finished, what was left out."""

    path: Path
    figures: Sequence[Path]
    is_complete: bool
    left_out: Sequence[str] = ()

    def as_dict(self) -> dict[str, Any]:
        """The same as JSON has it."""
        figures, left_out = [str(figure) for figure in self.figures], list(self.left_out)
        return {"path": str(self.path), "figures": figures, "is_complete": self.is_complete, "left_out": left_out}


def default_path(sources: Sequence[Path]) -> Path:
    """`NAME.report.html` beside the folder; `report.html` beside the first of several."""
    first = sources[0].resolve()
    return first.parent / (f"{first.name}.report.html" if len(sources) == 1 else "report.html")


def write_report(sources: Sequence[Path], path: Path | None = None, *, refresh: int = 0) -> Report:
    """Write the page and, into a folder `<stem>-figures` beside it, every figure as SVG and PNG.

    Args:
      sources: folders of runs, comparisons and sweeps, or folders that hold some.
      path: the page; None = `default_path`.
      refresh: seconds after which an open page reloads while runs are in progress; 0 = never.
    Raises:
      OutputExistsError: the page or the folder of figures is there and was not made here.
      DataError: a source is no folder of a run, or none has begun.
    """
    path = default_path(sources) if path is None else path
    folder = path.with_name(f"{path.stem}-figures")
    _check_replaceable(path, folder)
    left_out: list[str] = []
    runs, comparisons = read_sources(sources, left_out)
    tables = [compared(it) for it in comparisons]
    methods = list(grouped(runs))
    drawn = [run for run in runs if run.method in methods[:MAX_METHODS_DRAWN]]
    figures = list(draw_figures({name: [run.records for run in group] for name, group in settled(drawn).items()}))
    is_complete = all(map(is_finished, runs)) and not any(it.record.get("missing", ["?"]) for it in comparisons)
    left_out += [sentence for run in runs for sentence in run.records.left_out]
    changes = [change for run in runs[:MAX_RUNS_WITH_PROBLEMS] for change in problem_changes(run, left_out)]
    sweeps = [(it.folder.name, uri) for it in comparisons if (uri := _data_uri(it.sweep_figure, left_out))]
    answers = side_by_side(drawn, left_out)
    left_out = left_out[:MAX_LEFT_OUT] + [f"And {len(left_out) - MAX_LEFT_OUT} more."] * (len(left_out) > MAX_LEFT_OUT)

    from markupsafe import Markup

    text = _page_template().render(
        mark=Markup(MARK),
        css=Markup(_template("report.css")),
        js=Markup(_template("report.js")),
        title=_title(runs),
        progress=_progress_words(runs),
        refresh=0 if is_complete else refresh,
        summary=summary(runs),
        runs=run_table(runs) if len(runs) >= MIN_RUNS_LISTED else None,
        undrawn=len(methods) - MAX_METHODS_DRAWN,
        most_drawn=MAX_METHODS_DRAWN,
        comparisons=tables,
        figures=[(figure, Markup(for_page(figure))) for figure in figures],
        sweeps=sweeps,
        answers=answers,
        changes=changes,
        change_table=_change_table(changes),
        listed=[change for change in changes if change.gained or change.lost],
        most=MAX_PROBLEMS_LISTED,
        differences=configuration_differences(drawn),
        left_out=left_out,
        stretches=MAX_STRETCHES if any(len(run.records.metrics) > MAX_STRETCHES for run in runs) else 0,
        footer=f"Read from {', '.join(str(source) for source in sources)}.",
    )
    written = _write_figures(folder, [(f"{it.name}.{kind}", data) for it in figures for kind, data in
                                      (("svg", it.svg.encode()), ("png", it.png))])  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text)
    return Report(path, written, is_complete, left_out)


def watch_report(
    sources: Sequence[Path], path: Path | None = None, *, every: int, on_report: Callable[[Report], None]
) -> Report:
    """Write the report again every few seconds until all runs are finished; waits for the first to begin."""
    is_first_failure = True
    while True:
        try:
            report = write_report(sources, path, refresh=every)
        except DataError:
            # A file may be read while its first line is being written: only what stays unreadable is an error.
            if not all(source.exists() for source in sources) or (_has_begun(sources) and not is_first_failure):
                raise
            is_first_failure = not _has_begun(sources)
            time.sleep(every)
            continue
        is_first_failure = True
        on_report(report)
        if report.is_complete:
            return report
        time.sleep(every)


def _has_begun(sources: Sequence[Path]) -> bool:
    return any(file.stat().st_size for source in sources for file in source.rglob("metrics.jsonl"))


def _check_replaceable(path: Path, folder: Path) -> None:
    if path.exists() and (not path.is_file() or MARK.encode() not in path.read_bytes()[:MARK_WITHIN]):
        raise OutputExistsError(
            f"{path} already exists and was not made by tutelage report; it stays as it is. Choose another --output."
        )
    if folder.exists() and not (folder / FIGURES_MARK).is_file():
        raise OutputExistsError(
            f"{folder} already exists and was not made by tutelage report; it stays as it is. Choose another --output."
        )


def _write_figures(folder: Path, files: Sequence[tuple[str, bytes]]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FIGURES_MARK).touch()
    for name, data in files:
        with written_whole(folder / name) as partial:
            partial.write_bytes(data)
    return [folder / name for name, _ in files]


def _page_template() -> Template:
    """The page's template, in which every text is made plain and escaped where it is put in, and nowhere else."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    environment = Environment(
        loader=FunctionLoader(_template), autoescape=True, undefined=StrictUndefined, trim_blocks=True, finalize=in_page
    )
    environment.policies["json.dumps_function"] = script_json
    return environment.get_template("report.html.jinja")


def _template(name: str) -> str:
    return (resources.files("tutelage.report") / "templates" / name).read_text(encoding="utf-8")


def _title(runs: Sequence[ReportedRun]) -> str:
    names = list(grouped(runs))
    if len(names) > MAX_NAMES_IN_TITLE:
        return f"{len(names)} methods, {names[0]} first"
    return " against ".join(names) if len(names) < 3 else f"{', '.join(names[:-1])} and {names[-1]}"


def _progress_words(runs: Sequence[ReportedRun]) -> str:
    going = [run for run in runs if not is_finished(run)]
    words = f"{len(runs)} run{'s' * (len(runs) != 1)}"
    if not going:
        return f"{words}, all finished."
    last = [f"{run.label} at step {steps_done(run)}" for run in going[:5]]
    return f"{words}, {len(going)} not finished: {'; '.join(last)}{'; …' * (len(going) > 5)}. " + (
        "Means leave them out where others of their method are finished."
    )


def _change_table(changes: Sequence[Change]) -> Table:
    rows: list[list[Cell]] = [
        [
            (change.label, change.label),
            (change.problems, change.problems),
            (f"{change.before} → {change.after}", change.before * 1_000_000 + change.after),
            (f"+{len(change.gained)}" if change.gained else "0", len(change.gained)),
            (f"−{len(change.lost)}" if change.lost else "0", len(change.lost)),
            (f"{len(change.gained) - len(change.lost):+d}", len(change.gained) - len(change.lost)),
        ]
        for change in changes
    ]
    return Table("problems", ("run", "problems", "steps", "gained", "lost", "net"), rows)


def _data_uri(path: Path | None, left_out: list[str]) -> str:
    if path is None:
        return ""
    if path.stat().st_size > MAX_PICTURE_BYTES:
        left_out.append(f"{path}: a picture of more than {MAX_PICTURE_BYTES // 1_000_000} MB.")
        return ""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
