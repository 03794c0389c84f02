"""How good is a model?  Answers to problem sets, judged, without a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from tutelage.api.arguments import check_output_folder, options_of
from tutelage.config import (
    DataConfig,
    EvaluationAssembly,
    EvaluationConfig,
    EvaluationSetConfig,
    ModelConfig,
    RunConfig,
    load_config,
)
from tutelage.display import TextConsole
from tutelage.errors import ConfigurationError
from tutelage.evaluation import EvaluationResult, EvaluationSample, check_forecast, mark, write_evaluation
from tutelage.frames import frame_of
from tutelage.models import DTYPES
from tutelage.paths import check_file_name, expanded_path
from tutelage.report.sources import flattened
from tutelage.rollout import Limits
from tutelage.runtime import LocalRuntime
from tutelage.tasks import check_verifier, short_name

if TYPE_CHECKING:
    from tutelage.frames import DataFrame

__all__ = ["Evaluation", "EvaluationOptions", "evaluate"]


class EvaluationOptions(TypedDict, total=False):
    """How a model is judged; what is left out is as in `DEFAULTS`.

    Keys:
      samples: of each problem.
      temperature: 0 = greedy.
      max_new_tokens: answers are cut after this many.
      limit: only the first problems; None = all.
      seed: same seed, same answers.
      verifier: math, exact, or module:function.
      prompt_column, answer_column: with the question, and with the right answer.
      system_prompt: put in front of every problem; None = that of the run, if there is one.
      max_prompt_tokens: longer problems are left out, with a warning; a run's own counts where there is one.
      dtype: of the weights.
      device: auto, cpu, cuda, cuda:N or mps.
      rows: most answers decoded at once.
      select: rules that keep one of several samples, such as "majority".
      forecast: pass@k and best-of-n are forecast up to so many samples; None = not at all.
      teacher: model directory or hub id; it reads the answers: KL, log-probability, overlap. None = nobody does.
    """

    samples: int
    temperature: float
    max_new_tokens: int
    limit: int | None
    seed: int
    verifier: str
    prompt_column: str
    answer_column: str
    system_prompt: str | None
    max_prompt_tokens: int
    dtype: str
    device: str
    rows: int
    select: Sequence[str]
    forecast: int | None
    teacher: str | Path | None


DEFAULTS: EvaluationOptions = {
    "samples": 4,
    "temperature": 1.0,
    "max_new_tokens": 1024,
    "limit": None,
    "seed": 0,
    "verifier": "math",
    "prompt_column": "problem",
    "answer_column": "answer",
    "system_prompt": None,
    "max_prompt_tokens": 1024,
    "dtype": "float32",
    "device": "auto",
    "rows": 256,
    "select": (),
    "forecast": None,
    "teacher": None,
}


@dataclass(frozen=True)
class Evaluation:
    """A model's results on problem sets.

    Fields:
      results: the numbers, one for each set.
      samples: name of a set -> every answer to it, marked.
      files: summaries that were written; none without an output folder.
      date: that chat templates asked for; None = none did.
    """

    results: Sequence[EvaluationResult]
    samples: Mapping[str, Sequence[EvaluationSample]]
    files: Sequence[Path] = ()
    date: str | None = None

    @property
    def frame(self) -> DataFrame:
        """A row for each set; pass@4 is `pass_at_k.4`.

        Raises:
          ConfigurationError: pandas is not installed.
        """
        return frame_of([flattened(result.to_dict()) for result in self.results], "name")

    def answers(self, name: str) -> DataFrame:
        """A row for each answer to a set.

        Raises:
          ConfigurationError: there is no such set, or pandas is not installed.
        """
        if name not in self.samples:
            raise ConfigurationError(f"no set is called {name!r}; there are {', '.join(self.samples)}.")
        return frame_of([asdict(sample) for sample in self.samples[name]])

    def as_dict(self) -> dict[str, Any]:
        """The numbers as JSON has them; samples are in the files."""
        return {
            "results": [result.to_dict() for result in self.results],
            "files": [str(file) for file in self.files],
            "date": self.date,
        }


def evaluate(
    model: str | Path,
    tasks: str | Path | Sequence[str | Path],
    *,
    run: str | Path | RunConfig | None = None,
    output: str | Path | None = None,
    progress: bool = True,
    **options: Unpack[EvaluationOptions],
) -> Evaluation:
    """Judge a model on problem sets: pass@1 with a 95% interval, pass@k, truncation, length.

    Args:
      model: model directory, such as a checkpoint, or hub id.
      tasks: FILE.jsonl, FILE.parquet, a hub data set, or one of gsm8k, math500, aime24; or several of them.
      run: put the problems as this run does (a run file, or `SavedRun.config`): system prompt, chat template, limit.
      output: a new folder for the results as JSON and every sample as JSONL.
      progress: say what is going on.
      options: see `EvaluationOptions`.
    Raises:
      ConfigurationError, DataError, ModelError, OutputExistsError: refused before weights are loaded.
    """
    asked = options_of(DEFAULTS, options)
    named = [tasks] if isinstance(tasks, str | Path) else tasks
    paths = [expanded_path(str(path), "a task") for path in named]
    check_verifier(asked["verifier"])
    if asked["dtype"] not in DTYPES:
        raise ConfigurationError(f"dtype is {asked['dtype']!r}; expected one of {', '.join(DTYPES)}.")
    folder = None if output is None else Path(output)
    if folder is not None:
        check_output_folder(folder)
        for path in paths:
            check_file_name(short_name(path), "the name of a problem set", "math500")
    check_forecast(asked["forecast"], asked["samples"], asked["temperature"])
    run_config = load_config(run) if isinstance(run, str | Path) else run
    parts = _assembly(expanded_path(str(model), "the model"), paths, run_config, asked)
    jobs = parts.plan.jobs(asked["seed"])
    device = LocalRuntime(asked["device"]).device
    selector = parts.selector(asked["select"], run_config, device)
    engine = parts.engine(device, Limits(max_rows=asked["rows"]))
    console = TextConsole(quiet=not progress)
    date = parts.clock.moment.isoformat() if parts.clock.was_asked else None
    if date is not None:
        console.say(f"date      {date}, which the chat template asks for")
    results, samples, files = [], {}, []
    for problems, policy, drawing in jobs:
        with console.status(f"{problems.name}: {len(problems.prompts)} problems x {asked['samples']} samples"):
            marked = mark(engine, problems, policy, drawing, verify=parts.verify, read=parts.reading(engine))
            results.append(parts.with_selection(marked, selector, asked["forecast"] or 0))
        samples[problems.name] = marked.samples(parts.decode)
        if folder is not None:
            files.append(write_evaluation(folder, results[-1], samples[problems.name]))
            console.say(f"written   {files[-1]}")
    return Evaluation(results, samples, files, date)


def _assembly(model: str, paths: Sequence[str], run: RunConfig | None, asked: Mapping[str, Any]) -> EvaluationAssembly:
    data = DataConfig(path="none", max_prompt_tokens=asked["max_prompt_tokens"]) if run is None else run.data
    changes = {name: asked[name] for name in ("verifier", "system_prompt") if asked[name] is not None}
    columns = {name: asked[name] for name in ("prompt_column", "answer_column", "limit")}
    teacher = asked["teacher"]
    return EvaluationAssembly(
        ModelConfig(path=model, dtype=asked["dtype"]),
        data.model_copy(update=changes),
        EvaluationConfig(
            sets=[EvaluationSetConfig(path=path, **columns) for path in paths],
            num_samples=asked["samples"],
            temperature=asked["temperature"],
        ),
        asked["max_new_tokens"],
        None if teacher is None else ModelConfig(path=expanded_path(str(teacher), "teacher"), dtype=asked["dtype"]),
    )
