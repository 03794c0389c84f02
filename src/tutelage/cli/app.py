"""The commands. Each one reads its arguments, calls the library and shows the result; no logic of its own.

What a user can mend arrives as one line on stderr and exit code 2 (130 after Ctrl-C), never as a traceback. Heavy
imports wait until a command needs them, so that `--help` answers at once.
"""

from __future__ import annotations

import os
import sys
import warnings
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tutelage.cli.checks import refuse_unusable_file, set_threads
from tutelage.cli.probe import probe_app
from tutelage.errors import ConfigurationError, OutputExistsError, RunInterrupted, TutelageError

if TYPE_CHECKING:
    from tutelage.comparison import World

__all__ = ["app", "main"]

app = typer.Typer(
    help="Train a small language model on its own rollouts against a stronger one.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(probe_app, name="probe")

Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override one field: key.path=value. May be given several times.")
]
RunFile = Annotated[Path, typer.Argument(help="A run file, such as recipes/trb.toml.")]
Seeds = Annotated[int, typer.Option(help="How many seeds every method is run with.", min=1)]
FirstSeed = Annotated[int, typer.Option(help="The first of them.", min=0)]
Output = Annotated[Path | None, typer.Option(help="Folder of the comparison.")]
Workers = Annotated[int | None, typer.Option(help="Runs at once; default: as many as there are cores.", min=1)]
EarlySteps = Annotated[int, typer.Option(help="First steps whose rollouts are judged.", min=1)]
InWorld = Annotated[
    str | None,
    typer.Option(help="Replace models, prompts, problems and sizes: embedded (the packaged pair), or a TOML file."),
]
WorldSteps = Annotated[int | None, typer.Option(help="Steps of a run in the embedded world; default 60.", min=1)]
WorldProblems = Annotated[int | None, typer.Option(help="Problems of the embedded world; default 250.", min=1)]
WorldSeed = Annotated[
    int | None, typer.Option(help="Picks prompts and problems of the embedded world; default 0.", min=0)
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue in the output folder; finished runs stay.")]
AllowOverlap = Annotated[bool, typer.Option("--allow-overlap", help="Evaluate on prompts that are trained on.")]


class Precision(StrEnum):
    """Types that weights can be loaded in."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float64 = "float64"


class CheckpointRule(StrEnum):
    """Which weights of a run a comparison reports."""

    last = "last"
    best = "best"


Rule = Annotated[CheckpointRule, typer.Option("--checkpoint", help="Which weights of a run are reported.")]


def main() -> None:
    """Run the command line; turn our own errors into one line and an exit code."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    warnings.showwarning = lambda message, *_: errors.print(f"[yellow]warning:[/] {_plain(str(message))}")
    try:
        app()
    except RunInterrupted as problem:
        if not problem.is_said:
            errors.print(f"[yellow]{_plain(str(problem))}[/]")
        sys.exit(130)
    except (TutelageError, OSError) as problem:  # an OSError (disk full, permissions) names its file
        if not getattr(problem, "is_said", False):
            errors.print(f"[red]error:[/] {_plain(str(problem))}")
        sys.exit(2)
    except SystemExit as leaving:
        if leaving.code == 130:  # what typer makes of Ctrl-C
            errors.print("[yellow]stopped by Ctrl-C[/]")
        raise


@app.command()
def train(
    run_file: RunFile,
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in its output folder.")] = False,
) -> None:
    """Distil the student that a run file describes."""
    if "WORLD_SIZE" in os.environ:  # of a broken connection torch prints its stack; we say who is gone
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
            warnings.showwarning = lambda *_: None  # rank 0 says it
        config = load_config(run_file, overrides or [])
        set_threads(config.runtime.threads)
        run = build_run(config, resume=resume, processes=processes)
        if not is_first:
            run_training(run, Observer())
            return
        with observer_for(config.name) as observer:
            for message in run.messages:
                observer.on_message(message)
            for message in early_warnings(config):
                observer.on_message(f"warning: {message} (tutelage doctor shows more)")
            run_training(run, observer)
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"run       {run.folder.path}")
    console.print(f"student   {named_checkpoints(run.folder.checkpoints)['last']}")
    console.print(f"curves    {plot_run(run.folder.path)}")


@app.command()
def doctor(
    run_file: RunFile,
    overrides: Overrides = None,
    quick: Annotated[bool, typer.Option("--quick", help="Only what needs no weights.")] = False,
    processes: Annotated[
        int, typer.Option(help="How many are to share the run (torchrun); memory and time of one of them.", min=1)
    ] = 1,
) -> None:
    """Examine a run file before it costs anything: a verdict per line, exit code 1 if the run cannot work."""
    from tutelage.cli.checkup import print_finding, print_summary
    from tutelage.config import load_config
    from tutelage.doctor import Verdict, examine

    config = load_config(run_file, overrides or [])
    set_threads(config.runtime.threads)
    console, findings = Console(highlight=False), []
    for finding in examine(config, quick=quick, processes=processes):
        print_finding(console, finding)
        findings.append(finding)
    print_summary(console, findings)
    if any(finding.verdict == Verdict.error for finding in findings):
        raise typer.Exit(1)


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="Model directory or hub id.")],
    task: Annotated[
        list[str],
        typer.Option(
            "--task", help="Problems: FILE.jsonl, FILE.parquet, a hub data set, or one of gsm8k, math500, aime24."
        ),
    ],
    samples: Annotated[int, typer.Option(help="Samples per problem.", min=1)] = 4,
    temperature: Annotated[float, typer.Option(help="0 = greedy.", min=0)] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="Answers are cut after this many.", min=1)] = 1024,
    limit: Annotated[int | None, typer.Option(help="Only the first problems.", min=1)] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the results as JSON and every sample as JSONL.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same answers.", min=0)] = 0,
    verifier: Annotated[str, typer.Option(help="math, exact, or module:function.")] = "math",
    prompt_column: Annotated[str, typer.Option(help="Column with the question.")] = "problem",
    answer_column: Annotated[str, typer.Option(help="Column with the right answer.")] = "answer",
    run: Annotated[
        Path | None, typer.Option(help="Put the problems as this run file does: system prompt, chat template, limit.")
    ] = None,
    system_prompt: Annotated[str | None, typer.Option(help="Put in front of every problem.")] = None,
    max_prompt_tokens: Annotated[int, typer.Option(help="Longer problems are left out, with a warning.", min=1)] = 1024,
    dtype: Annotated[Precision, typer.Option(help="Type of the weights.")] = Precision.float32,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    rows: Annotated[int, typer.Option(help="Most answers decoded at once.", min=1)] = 256,
) -> None:
    """Judge a model on problem sets: pass@1 with a 95% interval, pass@k, truncation, length."""
    from tutelage.config import (
        DataConfig,
        EvaluationSetConfig,
        ModelConfig,
        build_evaluation_sets,
        decoder_of,
        load_config,
        make_verifier,
        refuse_overlong,
        refuse_unwritable,
    )
    from tutelage.config.clock import date_of_run, template_clock
    from tutelage.evaluation import evaluate as run_evaluation
    from tutelage.evaluation import rich_table, write_evaluation
    from tutelage.models import check_files, load_language_model, load_tokenizer
    from tutelage.policies import Temperature
    from tutelage.rollout import PairedEngine
    from tutelage.runtime import LocalRuntime
    from tutelage.tasks import check_verifier

    check_verifier(verifier)
    if output is not None and output.exists():
        raise OutputExistsError(f"the output folder {output} already exists; nothing is overwritten. Choose another.")
    if output is not None:
        refuse_unwritable(output)
    check_files(model)
    tokenizer = load_tokenizer(model)
    data = DataConfig(path="", max_prompt_tokens=max_prompt_tokens) if run is None else load_config(run).data
    if system_prompt is not None:
        data = data.model_copy(update={"system_prompt": system_prompt})
    items = [
        EvaluationSetConfig(path=path, prompt_column=prompt_column, answer_column=answer_column, limit=limit)
        for path in task
    ]
    if data.template_date is None and Path(model).is_dir():  # a checkpoint of a run
        data = data.model_copy(update={"template_date": date_of_run(Path(model).absolute().parent.parent)})
    clock = template_clock(data)
    sets = build_evaluation_sets(items, data, tokenizer, clock)
    for problems in sets:
        refuse_overlong(ModelConfig(path=model), None, problems.prompts, max_new_tokens, "--max-new-tokens")
    student = load_language_model(model, tokenizer, dtype=dtype.value, device=LocalRuntime(device).device)
    engine = PairedEngine(student, max_rows=rows)
    console = Console(highlight=False)
    if clock.was_asked:
        console.print(f"date      {clock.moment.isoformat()}, which the chat template asks for", soft_wrap=True)
    results = []
    for problems in sets:
        with console.status(f"{problems.name}: {len(problems.prompts)} problems x {samples} samples"):
            result, drawn = run_evaluation(
                engine,
                problems,
                Temperature(temperature).at(0),
                verify=make_verifier(verifier, student),
                decode=decoder_of(student),
                num_samples=samples,
                temperature=temperature,
                max_new_tokens=max_new_tokens,
                seed=seed,
            )
        results.append(result)
        if output is not None:
            console.print(f"written   {write_evaluation(output, result, drawn)}", soft_wrap=True)
    console.print(rich_table(results))


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A run's folder, one of its checkpoints, or any model or adapter.")],
    output: Annotated[Path, typer.Option(help="A new folder for the model.")],
    checkpoint: Annotated[CheckpointRule, typer.Option(help="Which checkpoint of a run.")] = CheckpointRule.last,
    dtype: Annotated[Precision, typer.Option(help="Type of the written weights.")] = Precision.float32,
) -> None:
    """Write a trained student as a plain model directory; an adapter is merged into its base."""
    from tutelage.cli.export import write_model
    from tutelage.config import refuse_unwritable

    if output.exists():
        raise OutputExistsError(f"the output folder {output} already exists; nothing is overwritten. Choose another.")
    refuse_unwritable(output)
    exported = write_model(model, output, checkpoint.value, dtype.value)
    Console(highlight=False, soft_wrap=True).print(f"exported  {_plain(exported)}\nto        {_plain(str(output))}")


@app.command()
def generate(
    run_file: RunFile,
    output: Annotated[Path, typer.Argument(help="JSONL file to write.")],
    overrides: Overrides = None,
    step: Annotated[int, typer.Option(help="Step whose schedule values the policy takes.", min=0)] = 0,
    samples: Annotated[int, typer.Option(help="Samples per prompt.", min=1)] = 1,
    limit: Annotated[int | None, typer.Option(help="Only the first prompts.", min=1)] = None,
) -> None:
    """Write answers of a run file's policy (--set policy=teacher for the teacher's own) as JSONL."""
    from tutelage.cli.generation import write_samples
    from tutelage.config import load_config

    config = load_config(run_file, overrides or [])
    set_threads(config.runtime.threads)
    refuse_unusable_file(output)
    with Console(highlight=False).status("generating"):
        count, correct = write_samples(config, output, step=step, num_samples=samples, limit=limit)
    verdict = "" if correct is None else f", {correct} of them correct"
    Console(highlight=False, soft_wrap=True).print(f"{count} samples written to {output}{verdict}")


@app.command()
def score(
    run_file: RunFile,
    answers: Annotated[Path, typer.Option(help="JSONL or Parquet file of answers, such as `generate` writes.")],
    output: Annotated[Path, typer.Option(help="Folder for the scores; data.scores of runs that learn from them.")],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on in the output folder; damaged shards anew.")] = False,
    shard: Annotated[int, typer.Option(help="Answers per shard.", min=1)] = 256,
) -> None:
    """Let a run file's teacher read answers that exist, once, and keep what it says for off-policy training."""
    from tutelage.cli.scoring import write_scores
    from tutelage.config import load_config

    config = load_config(run_file, overrides or [])
    set_threads(config.runtime.threads)
    console = Console(highlight=False, soft_wrap=True)
    count = write_scores(
        config, answers, output, answers_per_shard=shard, resume=resume, on_message=lambda text: console.print(text)
    )
    console.print(f"{count} answers scored in {_plain(str(output))}")


@app.command()
def demo(
    output: Annotated[Path | None, typer.Option(help="A new folder; default: demo-runs/1, 2, ...")] = None,
    steps: Annotated[int, typer.Option(help="Training steps of each run.", min=1)] = 60,
    problems: Annotated[int, typer.Option(help="Fresh problems to evaluate on.", min=4)] = 250,
    seed: Annotated[int, typer.Option(help="Picks the problems and the random numbers.", min=0)] = 0,
) -> None:
    """Plain OPD against TRB on the embedded tiny pair: the whole library in minutes, on a CPU."""
    from tutelage.demo.compare import run_demo

    run_demo(output, steps=steps, num_problems=problems, seed=seed)


@app.command()
def compare(
    run_files: Annotated[list[Path], typer.Argument(help="Run files; the first is what the others are compared with.")],
    seeds: Seeds = 5,
    first_seed: FirstSeed = 0,
    output: Output = None,
    workers: Workers = None,
    overrides: Overrides = None,
    checkpoint: Rule = CheckpointRule.last,
    early_steps: EarlySteps = 10,
    world: InWorld = None,
    steps: WorldSteps = None,
    problems: WorldProblems = None,
    problem_seed: WorldSeed = None,
    resume: Resume = False,
    allow_overlap: AllowOverlap = False,
) -> None:
    """Compare methods fairly: same prompts and problems, several seeds, paired differences, cost."""
    from tutelage.comparison import Plan, make_methods, run_plan
    from tutelage.config import read_run_file

    tables = [read_run_file(path) for path in run_files]
    folder = output or Path("comparisons") / "-".join(str(table["name"]) for table in tables)
    where = _world(world, folder, steps, problems, problem_seed)
    plan = Plan(
        folder,
        make_methods(tables, overrides or [], where),
        range(first_seed, first_seed + seeds),
        checkpoint.value,
        early_steps,
        where.name if where is not None else None,
    )
    run_plan(plan, where, Console(highlight=False), workers=workers, resume=resume, allow_overlap=allow_overlap)


@app.command()
def sweep(
    run_file: RunFile,
    grid: Annotated[
        list[str],
        typer.Option("--grid", help="key.path=v1,v2,v3; every combination is run. The first key is drawn on x."),
    ],
    baseline: Annotated[Path | None, typer.Option(help="A run file that every setting is compared with.")] = None,
    seeds: Seeds = 3,
    first_seed: FirstSeed = 0,
    output: Output = None,
    workers: Workers = None,
    overrides: Overrides = None,
    checkpoint: Rule = CheckpointRule.last,
    early_steps: EarlySteps = 10,
    world: InWorld = None,
    steps: WorldSteps = None,
    problems: WorldProblems = None,
    problem_seed: WorldSeed = None,
    resume: Resume = False,
    allow_overlap: AllowOverlap = False,
) -> None:
    """Run one method over a grid of settings, against a baseline; a table and a figure."""
    from tutelage.comparison import SWEEP_NOTE, Plan, draw_sweep, grid_points, make_methods, parse_grid, run_plan
    from tutelage.config import read_run_file

    values = parse_grid(grid)
    table = read_run_file(run_file)
    points = grid_points(str(table["name"]), values)
    tables = [{**table, "name": point.name} for point in points]
    first = None if baseline is None else read_run_file(baseline)
    folder = output or Path("sweeps") / str(table["name"])
    where = _world(world, folder, steps, problems, problem_seed)
    own = {point.name: point.overrides for point in points}
    plan = Plan(
        folder,
        make_methods(tables if first is None else [first, *tables], overrides or [], where, own),
        range(first_seed, first_seed + seeds),
        checkpoint.value,
        early_steps,
        where.name if where is not None else None,
        [SWEEP_NOTE],
    )
    name = None if first is None else str(first["name"])
    run_plan(
        plan,
        where,
        Console(highlight=False),
        workers=workers,
        resume=resume,
        allow_overlap=allow_overlap,
        free_keys=list(values),
        draw=lambda outcome: draw_sweep(outcome, points, values, name, folder / "sweep.png"),
    )


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, comparisons or sweeps.")],
    output: Annotated[
        Path | None,
        typer.Option(help="The page; default: NAME.report.html beside the folder, report.html for several."),
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Write it again until all runs are at their end.")] = False,
    every: Annotated[int, typer.Option(help="Seconds between two writings of --watch.", min=1)] = 15,
) -> None:
    """Write one HTML page about runs, and its figures as SVG and PNG; nothing is loaded from a network."""
    from tutelage.report import watch_report, write_report

    console = Console(highlight=False, soft_wrap=True)
    if watch:
        console.print("watching; Ctrl-C ends it")
        written = watch_report(
            runs, output, every=every, on_report=lambda made: console.print(f"written   {_plain(str(made.path))}")
        )
    else:
        written = write_report(runs, output)
        console.print(f"report    {_plain(str(written.path))}")
    console.print(f"figures   {_plain(str(written.figures[0].parent))}")


def _world(
    name: str | None, folder: Path, steps: int | None, problems: int | None, problem_seed: int | None
) -> World | None:
    """The world that recipes are put in, if any."""
    from tutelage.comparison import read_world
    from tutelage.demo.embedded import embedded_world

    if name == "embedded":
        return embedded_world(
            folder / "data",
            steps=60 if steps is None else steps,
            num_problems=250 if problems is None else problems,
            seed=problem_seed or 0,
        )
    if (steps, problems, problem_seed) != (None, None, None):
        raise ConfigurationError(
            "--steps, --problems and --problem-seed describe the embedded world, which was not asked for. Add --world "
            "embedded, or use --set steps=N."
        )
    return None if name is None else read_world(Path(name))


def _plain(text: str) -> str:
    """Text as it is: square brackets of a message are not markup."""
    from rich.markup import escape

    return escape(text)
