"""The commands. Each one reads its arguments, calls the library and shows the result; no logic of its own.

What goes wrong travels up to `cli.entry`. Heavy imports wait until a command needs them, so that `--help` answers at
once.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Annotated

import typer

from tutelage.cli.arguments import (
    MAX_COUNT,
    MAX_NEW_TOKENS,
    MAX_SAMPLES,
    MAX_SEED,
    Accept,
    CheckpointRule,
    Overrides,
    Precision,
    RunFile,
    finite,
    given_path,
)
from tutelage.cli.checks import check_output_file, set_threads
from tutelage.cli.comparing import compare, sweep
from tutelage.cli.console import TextConsole
from tutelage.cli.linearise import linearise
from tutelage.cli.probe import probe_app
from tutelage.cli.recipes import recipes_app
from tutelage.cli.starting import init
from tutelage.errors import OutputExistsError
from tutelage.paths import check_file_name

__all__ = ["app"]

app = typer.Typer(
    help="Train a small language model on its own rollouts against a stronger one.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(init)
app.command()(compare)
app.command()(sweep)
app.command()(linearise)
app.add_typer(probe_app, name="probe")
app.add_typer(recipes_app, name="recipes")


@app.command()
def train(
    run_file: RunFile,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in its output folder.")] = False,
    accept: Accept = None,
) -> None:
    """Distil the student that a run file describes."""
    if "WORLD_SIZE" in os.environ:  # torch prints its stack at a broken connection; our message names the lost process
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from tutelage.cli.progress import observer_for
    from tutelage.config import build_run, load_config
    from tutelage.doctor import early_warnings
    from tutelage.report import plot_run
    from tutelage.runtime import joined
    from tutelage.training import Observer, named_checkpoints
    from tutelage.training import train as run_training

    with joined() as processes:
        is_first = processes is None or processes.rank == 0
        if not is_first:
            warnings.showwarning = lambda *_: None  # rank 0 prints it
        config = load_config(run_file, overrides or [])
        set_threads(config.runtime.threads)
        run = build_run(config, resume=resume, accept=accept or [], processes=processes)
        if not is_first:
            run_training(run, Observer())
            return
        with observer_for(config.name) as observer:
            for message in run.messages:
                observer.on_message(message)
            for message in early_warnings(config):
                observer.on_message(f"warning: {message} (tutelage doctor shows more)")
            run_training(run, observer)
    console = TextConsole()
    console.say(f"run       {run.folder.path}")
    console.say(f"student   {named_checkpoints(run.folder.checkpoints)['last']}")
    console.say(f"curves    {plot_run(run.folder.path)}")


@app.command()
def doctor(
    run_file: RunFile,
    overrides: Overrides = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only what needs no weights.")] = False,
    processes: Annotated[
        int,
        typer.Option(
            help="How many are to share the run (torchrun); memory and time of one of them.", min=1, max=65_536
        ),
    ] = 1,
) -> None:
    """Examine a run file before it costs anything: a verdict per line, exit code 1 if the run cannot work."""
    from tutelage.cli.checkup import print_finding, print_summary
    from tutelage.config import load_config
    from tutelage.doctor import Verdict, examine

    config = load_config(run_file, overrides or [])
    set_threads(config.runtime.threads)
    console, findings = TextConsole(), []
    for finding in examine(config, quick=quick, processes=processes):
        print_finding(console, finding)
        findings.append(finding)
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
) -> None:
    """Judge a model on problem sets: pass@1 with a 95% interval, pass@k, truncation, length."""
    from tutelage.config import (
        DataConfig,
        EvaluationAssembly,
        EvaluationConfig,
        EvaluationSetConfig,
        ModelConfig,
        check_writable,
        load_config,
    )
    from tutelage.evaluation import check_forecast, forecast_table, mark, rich_table, selection_table, write_evaluation
    from tutelage.rollout import Limits
    from tutelage.runtime import LocalRuntime
    from tutelage.tasks import check_verifier, short_name

    check_verifier(verifier)
    if output is not None and output.exists():
        raise OutputExistsError(f"the output folder {output} already exists; nothing is overwritten. Choose another.")
    if output is not None:
        check_writable(output)
        for path in task:
            check_file_name(short_name(path), "the name of a problem set", "math500")
    check_forecast(forecast, samples, temperature)
    run_config = None if run is None else load_config(run)
    data = DataConfig(path="none", max_prompt_tokens=max_prompt_tokens) if run_config is None else run_config.data
    asked = {"verifier": verifier} | ({} if system_prompt is None else {"system_prompt": system_prompt})
    items = [
        EvaluationSetConfig(path=path, prompt_column=prompt_column, answer_column=answer_column, limit=limit)
        for path in task
    ]
    parts = EvaluationAssembly(
        ModelConfig.model_validate({"path": model, "dtype": dtype.value}),
        data.model_copy(update=asked),
        EvaluationConfig(sets=items, num_samples=samples, temperature=temperature),
        max_new_tokens,
    )
    jobs = parts.plan.jobs(seed)
    runtime = LocalRuntime(device)
    selector = parts.selector([name.strip() for name in select.split(",") if name.strip()], run_config, runtime.device)
    engine = parts.engine(runtime.device, Limits(max_rows=rows))
    console = TextConsole()
    if parts.clock.was_asked:
        console.say(f"date      {parts.clock.moment.isoformat()}, which the chat template asks for")
    results = []
    for problems, policy, drawing in jobs:
        with console.status(f"{problems.name}: {len(problems.prompts)} problems x {samples} samples"):
            marked = mark(engine, problems, policy, drawing, verify=parts.verify)
            results.append(parts.with_selection(marked, selector, forecast or 0))
        if output is not None:
            console.say(f"written   {write_evaluation(output, results[-1], marked.samples(parts.decode))}")
    console.print(rich_table(results))
    for table in (*map(selection_table, results), forecast_table(results)):
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
) -> None:
    """Write a trained student as a plain model directory; an adapter is merged into its base."""
    from tutelage.cli.export import write_model
    from tutelage.config import check_writable

    if output.exists():
        raise OutputExistsError(f"the output folder {output} already exists; nothing is overwritten. Choose another.")
    check_writable(output)
    exported = write_model(model, output, checkpoint.value, dtype.value)
    TextConsole().say(f"exported  {exported}\nto        {output}")


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
) -> None:
    """Write answers of a run file's policy (--set policy=teacher for the teacher's own) as JSONL."""
    from tutelage.cli.generation import best_of as selection_of
    from tutelage.cli.generation import write_samples
    from tutelage.config import load_config

    selection = selection_of(best_of, by, samples, keeps_all=keep_all)
    num_samples = samples or (1 if selection is None else selection.size)
    config = load_config(run_file, overrides or [])
    set_threads(config.runtime.threads)
    check_output_file(output)
    console = TextConsole()
    with console.status("generating"):
        count, correct = write_samples(
            config, output, step=step, num_samples=num_samples, limit=limit, best_of=selection
        )
    verdict = "" if correct is None else f", {correct} of them correct"
    console.say(f"{count} samples written to {output}{verdict}")


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
) -> None:
    """Let a run file's teacher score existing answers once, and keep the scores for off-policy training."""
    from tutelage.cli.scoring import write_scores
    from tutelage.config import load_config

    config = load_config(run_file, overrides or [])
    set_threads(config.runtime.threads)
    console = TextConsole()
    count = write_scores(config, answers, output, answers_per_shard=shard, resume=resume, on_message=console.say)
    console.say(f"{count} answers scored in {output}")


@app.command()
def demo(
    output: Annotated[
        Path | None, typer.Option(help="A new folder; default: demo-runs/1, 2, ...", callback=given_path)
    ] = None,
    steps: Annotated[int, typer.Option(help="Training steps of each run.", min=1, max=MAX_COUNT)] = 60,
    problems: Annotated[int, typer.Option(help="Fresh problems to evaluate on.", min=4, max=10**6)] = 250,
    seed: Annotated[int, typer.Option(help="Picks the problems and the random numbers.", min=0, max=MAX_SEED)] = 0,
) -> None:
    """Plain OPD against TRB on the embedded tiny pair: the whole library in minutes, on a CPU."""
    from tutelage.demo.compare import run_demo

    run_demo(output, TextConsole(), steps=steps, num_problems=problems, seed=seed)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, comparisons or sweeps.", callback=given_path)],
    output: Annotated[
        Path | None,
        typer.Option(
            help="The page; default: NAME.report.html beside the folder, report.html for several.", callback=given_path
        ),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Write it again until all runs are at their end.")] = False,
    every: Annotated[int, typer.Option(help="Seconds between two writings of --watch.", min=1, max=86_400)] = 15,
) -> None:
    """Write one HTML page about runs, and its figures as SVG and PNG; nothing is loaded from a network."""
    from tutelage.report import watch_report, write_report

    console = TextConsole()
    if watch:
        console.say("watching; Ctrl-C ends it")
        written = watch_report(runs, output, every=every, on_report=lambda made: console.say(f"written   {made.path}"))
    else:
        written = write_report(runs, output)
        console.say(f"report    {written.path}")
    if written.figures:
        console.say(f"figures   {written.figures[0].parent}")
    for sentence in written.left_out:
        console.say(f"left out  {sentence}")
