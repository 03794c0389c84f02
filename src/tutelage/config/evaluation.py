"""What is a student judged on, and how?  Problem sets as the student reads them, and when it is evaluated on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tutelage.config.clock import date_of_run, template_clock
from tutelage.config.model_sections import ModelConfig
from tutelage.config.models import load_model
from tutelage.config.prompts import check_lengths
from tutelage.config.rewards import rating_plan
from tutelage.config.schema import DataConfig, EvaluationConfig, EvaluationSetConfig, RunConfig
from tutelage.config.selecting import Selector
from tutelage.config.verification import (
    Decode,
    VerifyRollouts,
    decoder_of,
    make_comparer,
    make_verifier,
    response_texts,
)
from tutelage.errors import ConfigurationError
from tutelage.evaluation import (
    EvaluationResult,
    EvaluationSet,
    Marked,
    TextSet,
    forecasts_of,
    selections_named,
    summarise_selected,
)
from tutelage.models import check_distinct, check_files, check_same_tokenizer, load_tokenizer
from tutelage.policies import Temperature
from tutelage.rollout import Limits, LocalScorer, PairedEngine
from tutelage.rollout.scorers import score_with_full_kl
from tutelage.tasks import (
    BENCHMARKS,
    Columns,
    Problem,
    TemplateClock,
    load_problems,
    max_prompt_characters,
    render_all,
    short_name,
)
from tutelage.training import EvaluationPlan
from tutelage.types import Rollout

__all__ = ["EvaluationAssembly", "build_evaluation_sets", "evaluation_plan", "load_evaluation_problems"]


def build_evaluation_sets(
    items: Sequence[EvaluationSetConfig], data: DataConfig, tokenizer: Any, clock: TemplateClock
) -> list[EvaluationSet]:
    """Load problems to be judged on, and render them exactly as the training prompts are."""
    names = [item.name or short_name(item.path) for item in items]
    for name in names:
        if names.count(name) > 1:
            raise ConfigurationError(
                f"two evaluation sets are called {name!r}; results are told apart by name. Give each a `name` of its "
                "own, or rename one of the files."
            )
    return [_evaluation_set(name, item, data, tokenizer, clock) for name, item in zip(names, items, strict=True)]


def _evaluation_set(
    name: str, item: EvaluationSetConfig, data: DataConfig, tokenizer: Any, clock: TemplateClock
) -> EvaluationSet:
    max_characters = max_prompt_characters([tokenizer], data.max_prompt_tokens)
    rendered = render_all(
        load_evaluation_problems(item, max_characters),
        tokenizer,
        {},
        max_prompt_tokens=data.max_prompt_tokens,
        style=data.style,
        clock=clock,
        max_characters=max_characters,
    )
    answers = [problem.answer or "" for problem in rendered.problems]
    ids = [problem.id for problem in rendered.problems]
    return EvaluationSet(name, rendered.prompts, ids, answers, rendered.problems)


def load_evaluation_problems(item: EvaluationSetConfig, max_characters: int | None = None) -> list[Problem]:
    """The problems of one set before they are rendered; a benchmark's name brings its columns.

    Args:
      max_characters: see `tasks.load_problems`.
    """
    if item.path in BENCHMARKS and not Path(item.path).exists():
        item = item.model_copy(update=asdict(BENCHMARKS[item.path]))
    return load_problems(
        item.path,
        Columns(item.prompt_column, item.answer_column),
        split=item.split,
        limit=item.limit,
        max_characters=max_characters,
    )


def evaluation_plan(
    settings: EvaluationConfig, sets: Sequence[EvaluationSet], max_new_tokens: int, texts: Sequence[TextSet] = ()
) -> EvaluationPlan:
    """When a student is judged on problem sets, and on which answers; and which texts are looked at then."""
    return EvaluationPlan(
        sets=sets,
        policy=Temperature(settings.temperature).at(0),
        every=settings.every,
        num_samples=settings.num_samples,
        temperature=settings.temperature,
        max_new_tokens=max_new_tokens,
        greedy_policy=Temperature(0.0).at(0) if settings.greedy else None,
        retained_answers=settings.retained_answers,
        texts=texts,
        teacher_reads=settings.teacher_reads,
    )


@dataclass(frozen=True)
class EvaluationAssembly:
    """A model and what it is judged on, without a run; each part is made once, when it is first asked for.

    Fields:
      model: what is judged.
      data: how problems are rendered, and who judges.
      settings: the problem sets, and how answers are drawn.
      max_new_tokens: length limit of an answer.
      teacher: reads the answers; None = nobody does.
    """

    model: ModelConfig
    data: DataConfig
    settings: EvaluationConfig
    max_new_tokens: int
    teacher: ModelConfig | None = None

    @cached_property
    def tokenizer(self) -> Any:
        """The model's; a teacher's is the same.

        Raises:
          ModelError: files of a model are not there.
          ConfigurationError: the teacher is the model, or has another tokenizer.
        """
        check_files(self.model.source)
        tokenizer = load_tokenizer(self.model.source)
        if self.teacher is not None:
            check_distinct(self.model.source, self.teacher.source)
            check_files(self.teacher.source)
            check_same_tokenizer(tokenizer, load_tokenizer(self.teacher.source))
        return tokenizer

    @cached_property
    def clock(self) -> TemplateClock:
        """The date for chat templates that ask for it; for a checkpoint, that of its run."""
        folder, data = Path(self.model.path), self.data
        if data.template_date is None and folder.is_dir():
            data = data.model_copy(update={"template_date": date_of_run(folder.absolute().parent.parent)})
        return template_clock(data)

    @cached_property
    def plan(self) -> EvaluationPlan:
        """Problem sets and answers; sets that do not fit into the model's context are refused."""
        sets = build_evaluation_sets(self.settings.sets, self.data, self.tokenizer, self.clock)
        for problems in sets:
            check_lengths(self.model, None, problems.prompts, self.max_new_tokens, "--max-new-tokens")
        return evaluation_plan(self.settings, sets, self.max_new_tokens)

    @cached_property
    def verify(self) -> VerifyRollouts:
        """Right or wrong."""
        return make_verifier(self.data, self.tokenizer)

    @cached_property
    def decode(self) -> Decode:
        """Token ids to text."""
        return decoder_of(self.tokenizer)

    def selector(self, names: Sequence[str], run: RunConfig | None, device: str) -> Selector:
        """Who keeps one of several answers to a problem, refused before any weights are loaded.

        Args:
          names: of the rules.
          run: whose rewards rate the answers, as they are weighted at its end; None = nothing does.
          device: where reward models compute.
        Raises:
          ConfigurationError: a rule is unknown, or reads what is not known here; or the rewards are refused.
        """
        plan = None if run is None else rating_plan(run.model_copy(update={"data": self.data}), device, self.clock)
        rules = selections_named(names, ["answers", "correct", *([] if plan is None else ["rewards"])], "--select")
        rating = None
        if plan is not None and rules:
            plan = replace(plan, setting=replace(plan.setting, max_new_tokens=self.max_new_tokens))
            plan.inputs()
            questions = [question for problems in self.plan.sets for question in problems.questions]
            rating = plan.opened(questions, response_texts(self.tokenizer))
        return Selector(rules, make_comparer(self.data, self.tokenizer), rating, 0 if run is None else run.steps)

    def with_selection(self, marked: Marked, selector: Selector, forecast_up_to: int) -> EvaluationResult:
        """The numbers of an evaluation, with those of every rule, and forecasts up to so many samples (0 = none)."""
        sets = self.plan.sets
        first = sum(
            len(problems.prompts) for problems in sets[: [each.name for each in sets].index(marked.problems.name)]
        )
        numbers = [first + rollout.prompt_index for rollout in marked.rollouts]
        candidates_P = selector.candidates(marked.rollouts, marked.drawing.num_samples, numbers, marked.correct)
        with_rewards = any("rewards" in rule.needs for rule in selector.rules.values())
        return replace(
            marked.result(),
            selected=summarise_selected(candidates_P, selector.rules, seed=marked.drawing.seed),
            forecasts=forecasts_of(candidates_P, forecast_up_to, with_rewards=with_rewards),
        )

    def engine(self, device: str, limits: Limits) -> PairedEngine:
        """The model with its weights as the student, and the teacher where there is one."""
        models = [self.model] if self.teacher is None else [self.model, self.teacher]
        return PairedEngine(*(load_model(each, self.tokenizer, device) for each in models), limits=limits)

    def reading(self, engine: PairedEngine) -> Callable[[Sequence[Rollout]], list[Rollout]] | None:
        """Lets the engine's teacher read answers; None = there is no teacher."""
        if self.teacher is None:
            return None
        models, max_tokens = engine.models, engine.limits.score_tokens
        scorer = LocalScorer(models.teachers, engine.vocabulary, max_tokens)
        return partial(score_with_full_kl, scorer, models, max_tokens)
