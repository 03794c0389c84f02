"""The commands. Each one reads its arguments, calls the library and shows the result; no logic of its own.

What goes wrong travels up to `cli.entry`. Heavy imports wait until a command needs them, so that `--help` answers at
once.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tutelage import __version__
from tutelage.api.arguments import MAX_COUNT, MAX_NEW_TOKENS, MAX_PROCESSES, MAX_SAMPLES, MAX_SEED
from tutelage.cli.arguments import (
    MAX_PROBLEMS,
    Accept,
    CheckpointRule,
    Overrides,
    Precision,
    RunFile,
    finite,
    given_path,
)
from tutelage.cli.comparing import compare, sweep
from tutelage.cli.linearise import linearise
from tutelage.cli.output import AsJson, print_document
from tutelage.cli.probe import probe_app
from tutelage.cli.recipes import recipes_app
from tutelage.cli.starting import init
from tutelage.cli.verifying import verify
from tutelage.display.console import TextConsole
from tutelage.errors import ConfigurationError

if TYPE_CHECKING:
    from tutelage.api.generating import BestOf

__all__ = ["app"]

app = typer.Typer(
    help="Train a small language model on its own rollouts against a stronger one.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(init)


def show_version(is_asked: bool) -> None:
    """Say which version this is and end."""
    if is_asked:
        TextConsole().say(f"tutelage {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """Options that stand before a command."""


@app.command()
def train(
    run_file: RunFile,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in its output folder.")] = False,
    accept: Accept = None,
    as_json: AsJson = False,
) -> None:
    """Distil the student that a run file describes."""
    if "WORLD_SIZE" in os.environ:  # torch prints its stack at a broken connection; our message names the lost process
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from tutelage.api.runs import train as train_run
    from tutelage.runtime import is_first_process

    run = train_run(run_file, overrides, resume=resume, accept=accept or [], progress=not as_json)
    if not is_first_process():
        return
    if as_json:
        print_document(run.as_dict())
    else:
        console = TextConsole()
        console.say(f"run       {run.folder}")
        console.say(f"student   {run.last_checkpoint}")
        console.say(f"curves    {run.folder / 'curves.png'}")


@app.command()
def doctor(
    run_file: RunFile,
    overrides: Overrides = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only what needs no weights.")] = False,
    processes: Annotated[
        int,
        typer.Option(
            help="How many are to share the run (torchrun); memory and time of one of them.", min=1, max=MAX_PROCESSES
        ),
    ] = 1,
    as_json: AsJson = False,
) -> None:
    """Examine a run file before it costs anything: a verdict per line, exit code 1 if the run cannot work."""
    from tutelage.api.checking import doctor as examine
    from tutelage.cli.checkup import counted, print_finding, print_summary
    from tutelage.preflight import Verdict

    console = TextConsole(quiet=as_json)
    findings = examine(
        run_file, overrides, quick=quick, processes=processes, on_finding=partial(print_finding, console)
    )
    if as_json:
        print_document({"findings": [finding.as_dict() for finding in findings], "verdicts": counted(findings)})
    print_summary(console, findings)
    if any(finding.verdict == Verdict.error for finding in findings):
        raise typer.Exit(1)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Model directory or hub id.", callback=given_path)],
    task: Annotated[
        list[str],
        typer.Option(
            "--task",
            help="Problems: FILE.jsonl, FILE.parquet, a hub data set, or one of gsm8k, math500, aime24.",
            callback=given_path,
        ),
    ],
    samples: Annotated[int, typer.Option(help="Samples per problem.", min=1, max=MAX_SAMPLES)] = 4,
    temperature: Annotated[float, typer.Option(help="0 = greedy.", min=0, callback=finite)] = 1.0,
    max_new_tokens: Annotated[
        int, typer.Option(help="Answers are cut after this many.", min=1, max=MAX_NEW_TOKENS)
    ] = 1024,
    limit: Annotated[int | None, typer.Option(help="Only the first problems.", min=1)] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the results as JSON and every sample as JSONL.", callback=given_path),
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same answers.", min=0, max=MAX_SEED)] = 0,
    verifier: Annotated[str, typer.Option(help="math, exact, or module:function.")] = "math",
    prompt_column: Annotated[str, typer.Option(help="Column with the question.")] = "problem",
    answer_column: Annotated[str, typer.Option(help="Column with the right answer.")] = "answer",
    run: Annotated[
        Path | None,
        typer.Option(
            help="Put the problems as this run file does: system prompt, chat template, limit.", callback=given_path
        ),
    ] = None,
    system_prompt: Annotated[str | None, typer.Option(help="Put in front of every problem.")] = None,
    max_prompt_tokens: Annotated[int, typer.Option(help="Longer problems are left out, with a warning.", min=1)] = 1024,
    dtype: Annotated[Precision, typer.Option(help="Type of the weights.")] = Precision.float32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    rows: Annotated[int, typer.Option(help="Most answers decoded at once.", min=1)] = 256,
    select: Annotated[
        str, typer.Option(help="Rules that keep one of several samples, such as majority,surprisal,reward.")
    ] = "",
    forecast: Annotated[
        int | None, typer.Option(help="Forecast pass@k and best-of-n up to so many samples.", min=2, max=MAX_COUNT)
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(help="A model that reads the answers: KL, log-probability, overlap.", callback=given_path),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Judge a model on problem sets: pass@1 with a 95% interval, pass@k, truncation, length."""
    from tutelage.api.evaluating import evaluate as judge
    from tutelage.evaluation import forecast_table, reading_table, rich_table, selection_table

    found = judge(
        model,
        task,
        run=run,
        output=output,
        progress=not as_json,
        samples=samples,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        limit=limit,
        seed=seed,
        verifier=verifier,
        prompt_column=prompt_column,
        answer_column=answer_column,
        system_prompt=system_prompt,
        max_prompt_tokens=max_prompt_tokens,
        dtype=dtype.value,
        device=device,
        rows=rows,
        select=[name.strip() for name in select.split(",") if name.strip()],
        forecast=forecast,
        teacher=teacher,
    )
    if as_json:
        print_document(found.as_dict())
        return
    console, results = TextConsole(), list(found.results)
    console.print(rich_table(results))
    for table in (reading_table(results), *map(selection_table, results), forecast_table(results)):
        if table.row_count:
            console.print(table)


@app.command()
def export(
    model: Annotated[
        str,
        typer.Argument(help="A run's folder, one of its checkpoints, or any model or adapter.", callback=given_path),
    ],
    output: Annotated[Path, typer.Option(help="A new folder for the model.", callback=given_path)],
    checkpoint: Annotated[CheckpointRule, typer.Option(help="Which checkpoint of a run.")] = CheckpointRule.last,
    dtype: Annotated[Precision, typer.Option(help="Type of the written weights.")] = Precision.float32,
    push: Annotated[str | None, typer.Option(help="Put it on the Hugging Face hub too, as OWNER/NAME.")] = None,
    private: Annotated[bool, typer.Option("--private/--public", help="Who sees it there.")] = True,
    as_json: AsJson = False,
) -> None:
    """Write a trained student as a plain model directory; an adapter is merged into its base."""
    from tutelage.api.exporting import export as write_model

    exported = write_model(model, output, checkpoint=checkpoint.value, dtype=dtype.value, push=push, private=private)
    if as_json:
        print_document(exported.as_dict())
    else:
        shown = f"exported  {exported.source}\nto        {exported.folder}"
        TextConsole().say(shown if exported.url is None else f"{shown}\nand       {exported.url}")


@app.command()
def generate(
    run_file: RunFile,
    output: Annotated[Path, typer.Argument(help="JSONL file to write.", callback=given_path)],
    overrides: Overrides = None,
    step: Annotated[int, typer.Option(help="Step whose schedule values the policy takes.", min=0)] = 0,
    samples: Annotated[
        int | None,
        typer.Option(help="Samples per prompt; default: 1, or as --best-of says.", min=1, max=MAX_SAMPLES),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first prompts.", min=1)] = None,
    best_of: Annotated[
        int | None, typer.Option("--best-of", help="Keep one of every so many samples.", min=1, max=MAX_SAMPLES)
    ] = None,
    by: Annotated[str | None, typer.Option(help="Which one: reward, surprisal, majority, ...")] = None,
    keep_all: Annotated[bool, typer.Option("--keep-all", help="Write the others too, marked.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write answers of a run file's policy (--set policy=teacher for the teacher's own) as JSONL."""
    from tutelage.api.generating import generate as draw

    selection = _best_of(best_of, by, keep_all)
    console = TextConsole(quiet=as_json)
    with console.status("generating"):
        drawn = draw(run_file, overrides, output=output, step=step, samples=samples, limit=limit, best_of=selection)
    if as_json:
        print_document(drawn.as_dict())
    verdict = "" if drawn.num_correct is None else f", {drawn.num_correct} of them correct"
    console.say(f"{len(drawn.records)} samples written to {output}{verdict}")


def _best_of(size: int | None, rule: str | None, keeps_all: bool) -> BestOf | None:
    """What the options --best-of, --by and --keep-all say together; None = every answer is written."""
    from tutelage.api.generating import BestOf

    if size is None and rule is None and not keeps_all:
        return None
    if size is None or rule is None:
        raise ConfigurationError(
            f"--best-of is {size}, --by is {rule} and --keep-all is {keeps_all}; expected a number and a rule. Give "
            "--best-of 8 --by majority, for example."
        )
    return BestOf(size, rule, keeps_all)


@app.command()
def score(
    run_file: RunFile,
    answers: Annotated[
        Path,
        typer.Option(help="JSONL or Parquet file of answers, such as `generate` writes.", callback=given_path),
    ],
    output: Annotated[
        Path,
        typer.Option(help="Folder for the scores; data.scores of runs that learn from them.", callback=given_path),
    ],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue in the output folder.")] = False,
    shard: Annotated[int, typer.Option(help="Answers per shard.", min=1)] = 256,
    as_json: AsJson = False,
) -> None:
    """Let a run file's teacher score existing answers once, and keep the scores for off-policy training."""
    from tutelage.api.scoring import score as write_scores

    console = TextConsole(quiet=as_json)
    scored = write_scores(run_file, answers, output, overrides, shard=shard, resume=resume, on_message=console.say)
    if as_json:
        print_document(scored.as_dict())
    console.say(f"{scored.num_answers} answers scored in {scored.folder}")


@app.command()
def demo(
    output: Annotated[
        Path | None, typer.Option(help="A new folder; default: demo-runs/1, 2, ...", callback=given_path)
    ] = None,
    steps: Annotated[int, typer.Option(help="Training steps of each run.", min=1, max=MAX_COUNT)] = 60,
    problems: Annotated[int, typer.Option(help="Fresh problems to evaluate on.", min=4, max=MAX_PROBLEMS)] = 250,
    seed: Annotated[int, typer.Option(help="Picks the problems and the random numbers.", min=0, max=MAX_SEED)] = 0,
    as_json: AsJson = False,
) -> None:
    """Plain OPD against TRB on the embedded tiny pair: the whole library in minutes, on a CPU."""
    from tutelage.demo.compare import run_demo

    seen = run_demo(output, TextConsole(quiet=as_json), steps=steps, num_problems=problems, seed=seed)
    if as_json:
        print_document(seen.as_dict())


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Folders of runs, comparisons or sweeps, or of several of them.", callback=given_path),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            help="The page; default: NAME.report.html beside the folder, report.html for several.", callback=given_path
        ),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Write it again until all runs are at their end.")] = False,
    every: Annotated[int, typer.Option(help="Seconds between two writings of --watch.", min=1, max=86_400)] = 15,
    as_json: AsJson = False,
) -> None:
    """Write one HTML page about runs, and its figures as SVG and PNG; nothing is loaded from a network."""
    from tutelage.report import watch_report, write_report

    console = TextConsole(quiet=as_json)
    if watch:
        console.say("watching; Ctrl-C ends it")
        written = watch_report(runs, output, every=every, on_report=lambda made: console.say(f"written   {made.path}"))
    else:
        written = write_report(runs, output)
        console.say(f"report    {written.path}")
    if as_json:
        print_document(written.as_dict())
    if written.figures:
        console.say(f"figures   {written.figures[0].parent}")
    for sentence in written.left_out:
        console.say(f"left out  {sentence}")


app.command()(compare)
app.command()(sweep)
app.command()(linearise)
app.command()(verify)
app.add_typer(probe_app, name="probe")
app.add_typer(recipes_app, name="recipes")
