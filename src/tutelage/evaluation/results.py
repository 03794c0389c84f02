"""What one evaluation found: the record, how it is computed from marked samples, shown as a table and kept on disk.

Nothing here samples or marks an answer. Axis letters: P problems, G samples per problem.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from tutelage.errors import ConfigurationError, DataError, OutputExistsError
from tutelage.evaluation.forecast import Forecast
from tutelage.evaluation.selected import SelectedResult, powers_of_two
from tutelage.evaluation.statistics import bootstrap_interval, pass_at_k
from tutelage.files import write_whole

__all__ = [
    "Drawing",
    "EvaluationResult",
    "EvaluationSample",
    "forecast_table",
    "reading_table",
    "rich_table",
    "selection_table",
    "summarise",
    "write_evaluation",
]


@dataclass(frozen=True)
class Drawing:
    """How the answers to the problems of an evaluation are drawn.

    Fields:
      num_samples: G, answers to each problem.
      temperature: at which the student is sampled; 0 = greedy.
      max_new_tokens: length limit of an answer.
      seed: of the run; the random streams are derived from it, and shared with no training step.
    """

    num_samples: int
    temperature: float
    max_new_tokens: int
    seed: int


@dataclass(frozen=True)
class EvaluationResult:
    """The numbers of one evaluation of one model on one set of problems.

    Fields:
      name: what was evaluated on; also the stem of the files.
      num_problems, num_samples: P problems, G samples of each.
      temperature, max_new_tokens, seed: how the samples were drawn.
      pass_at_1: mean over problems of the share of correct samples, in [0, 1].
      pass_at_1_interval: 95% bootstrap interval of it over problems.
      pass_at_k: k -> mean over problems of the unbiased pass@k.
      truncation_rate: share of samples cut by the length limit.
      mean_response_tokens: mean length of a sample, its stop token included.
      seconds: wall-clock time of sampling and marking.
      selected: what selection among the samples gives, where that was asked for.
      forecasts: what more samples would give, where that was asked for.
      gained_share, lost_share: see `changes_since`, of an evaluation during a run; None = there was no earlier one.
      retained_mass: see there; None = it was not asked for, or there was nothing to retain.
      repeated_4grams, student_entropy, teacher_logprob, reverse_kl, support_overlap: see `readings_of`; None = unknown.
    """

    name: str
    num_problems: int
    num_samples: int
    temperature: float
    max_new_tokens: int
    seed: int
    pass_at_1: float
    pass_at_1_interval: tuple[float, float]
    pass_at_k: dict[int, float]
    truncation_rate: float
    mean_response_tokens: float
    seconds: float
    selected: tuple[SelectedResult, ...] = ()
    forecasts: tuple[Forecast, ...] = ()
    gained_share: float | None = None
    lost_share: float | None = None
    retained_mass: float | None = None
    repeated_4grams: float | None = None
    student_entropy: float | None = None
    teacher_logprob: float | None = None
    reverse_kl: float | None = None
    support_overlap: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON would give them back: intervals are lists, every k a string, what is empty is left out."""
        numbers = asdict(self) | {
            "pass_at_1_interval": list(self.pass_at_1_interval),
            "pass_at_k": {str(k): value for k, value in self.pass_at_k.items()},
            "selected": [each.to_dict() for each in self.selected],
            "forecasts": [each.to_dict() for each in self.forecasts],
        }
        return {key: value for key, value in numbers.items() if value not in (None, [])}


@dataclass(frozen=True)
class EvaluationSample:
    """One marked sample, as it is written to `<name>.samples.jsonl`.

    Fields:
      problem_id: the problem's own id.
      sample_index: which sample of that problem, from 0.
      response: the decoded text.
      answer: the reference answer it was compared with.
      correct: the verdict.
      finished: the response ended with a stop token; False = cut by the length limit.
      num_tokens: its length, the stop token included.
    """

    problem_id: str | int
    sample_index: int
    response: str
    answer: str
    correct: bool
    finished: bool
    num_tokens: int


def summarise(
    correct_PG: NDArray[np.bool_],
    lengths_PG: NDArray[np.integer],
    finished_PG: NDArray[np.bool_],
    drawing: Drawing,
    *,
    name: str,
    seconds: float,
    ks: Sequence[int] | None = None,
) -> EvaluationResult:
    """Summarise P problems with G marked samples each.

    pass@1 = mean_P(c / G),   pass@k = mean_P(1 - C(G - c, k) / C(G, k)),   c = correct samples of a problem

    Args:
      correct_PG, finished_PG: the verdict, and whether the sample ended by itself.
      lengths_PG: tokens per sample.
      drawing, name, seconds: carried over into the result. The interval does not use the seed: it always resamples
        with the same one, so that equal samples give equal intervals.
      ks: which pass@k; None = the powers of two up to G.
    """
    correct, finished = np.asarray(correct_PG, dtype=bool), np.asarray(finished_PG, dtype=bool)
    lengths = np.asarray(lengths_PG)
    if correct.ndim != 2 or correct.size == 0 or not correct.shape == lengths.shape == finished.shape:
        raise DataError(
            f"correct, lengths and finished have shapes {correct.shape}, {lengths.shape} and {finished.shape}; "
            f"expected one shape (problems, samples), at least (1, 1). Draw as many samples for every problem."
        )
    num_problems, num_samples = correct.shape
    num_correct_P = correct.sum(axis=1)
    if ks is None:
        ks = powers_of_two(num_samples)
    return EvaluationResult(
        name=name,
        num_problems=num_problems,
        num_samples=num_samples,
        temperature=drawing.temperature,
        max_new_tokens=drawing.max_new_tokens,
        seed=drawing.seed,
        pass_at_1=float(correct.mean()),
        pass_at_1_interval=bootstrap_interval(num_correct_P / num_samples),
        pass_at_k={k: float(pass_at_k(num_samples, num_correct_P, k).mean()) for k in ks},
        truncation_rate=float((~finished).mean()),
        mean_response_tokens=float(lengths.mean()),
        seconds=seconds,
    )


def rich_table(results: list[EvaluationResult]) -> Table:
    """The results as rows of a terminal table, in percent; pass@k for the largest k of each. Fits in 80 columns."""
    largest_ks = sorted({max(result.pass_at_k) for result in results if result.pass_at_k} - {1})
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("evaluation", no_wrap=True)
    headings = ("problems", "pass@1 %", "95%", *(f"pass@{k} %" for k in largest_ks), "cut %", "length")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        low, high = result.pass_at_1_interval
        table.add_row(
            Text(result.name),  # so that it is not read as markup
            f"{result.num_problems} x {result.num_samples}",
            f"{100 * result.pass_at_1:.1f}",
            f"{100 * low:.1f} to {100 * high:.1f}",
            *(f"{100 * result.pass_at_k[k]:.1f}" if k in result.pass_at_k else "" for k in largest_ks),
            f"{100 * result.truncation_rate:.1f}",
            f"{result.mean_response_tokens:.0f}",
        )
    return table


def reading_table(results: list[EvaluationResult]) -> Table:
    """What a teacher says of the answers, a row for each result that it has read."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("evaluation", no_wrap=True)
    for heading in ("KL", "teacher log q", "overlap %", "entropy", "repeated %"):
        table.add_column(heading, justify="right", no_wrap=True)

    def shown(value: float | None, factor: float, form: str) -> str:
        return "" if value is None else format(factor * value, form)

    for result in results:
        if result.teacher_logprob is not None:
            table.add_row(
                Text(result.name),
                shown(result.reverse_kl, 1, ".3f"),
                shown(result.teacher_logprob, 1, ".3f"),
                shown(result.support_overlap, 100, ".1f"),
                shown(result.student_entropy, 1, ".2f"),
                shown(result.repeated_4grams, 100, ".1f"),
            )
    return table


def selection_table(result: EvaluationResult) -> Table:
    """What each rule keeps of several samples, beside pass@k of as many; in percent. Fits in 80 columns."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=Text(f"one answer kept: {result.name}"))
    has_rewards = any(each.mean_reward is not None for each in result.selected)
    table.add_column("kept by", no_wrap=True)
    for heading in ("of", "right %", "95%", "pass@k %", *(["reward"] if has_rewards else []), "length"):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in result.selected:
        low, high = each.pass_rate_interval
        reward = [] if each.mean_reward is None else [f"{each.mean_reward:.3g}"]
        table.add_row(
            each.rule,
            str(each.num_samples),
            f"{100 * each.pass_rate:.1f}",
            f"{100 * low:.1f} to {100 * high:.1f}",
            f"{100 * result.pass_at_k[each.num_samples]:.1f}",
            *reward,
            f"{each.mean_response_tokens:.0f}",
        )
    return table


def forecast_table(results: list[EvaluationResult]) -> Table:
    """What more samples would give, with intervals."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("evaluation", no_wrap=True)
    for heading in ("forecast", "value", "95%"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        for each in result.forecasts:
            is_share = each.quantity == "pass_at_k"
            shown = "{:.1f}" if is_share else "{:.3g}"
            numbers = [number for number in (each.value, *(each.interval or ())) if number is not None]
            value, *ends = [shown.format(100 * number if is_share else number) for number in numbers] or ["none"]
            name = f"pass@{each.num_samples} %" if is_share else f"reward, best of {each.num_samples}"
            table.add_row(Text(result.name), name, value, " to ".join(ends))
    return table


def write_evaluation(folder: Path, result: EvaluationResult, samples: Iterable[EvaluationSample]) -> Path:
    """Write `<name>.json` and `<name>.samples.jsonl`, both whole or not at all, and never over an existing file.

    The summary is put in place last, so a folder with `<name>.json` has its samples too.

    Args:
      folder: made where it does not exist.
      samples: one line each, in the order given; read once.
    Returns:
      Path of the summary.
    """
    if not result.name or result.name.startswith(".") or "/" in result.name or "\\" in result.name:
        raise ConfigurationError(
            f"The evaluation is named {result.name!r}; expected a plain file stem. Use a name such as 'math500'."
        )
    summary_path, samples_path = folder / f"{result.name}.json", folder / f"{result.name}.samples.jsonl"
    for path in (summary_path, samples_path):
        if path.exists():
            raise OutputExistsError(
                f"{path} already exists; an evaluation never overwrites another. Choose another name or folder."
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(samples_path, "".join(json.dumps(asdict(sample)) + "\n" for sample in samples))
    write_whole(summary_path, json.dumps(result.to_dict(), indent=2, allow_nan=False) + "\n")
    return summary_path
