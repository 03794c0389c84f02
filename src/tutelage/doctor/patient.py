"""What the checks look at, each part made when it is first asked for; a part that is refused raises every time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tutelage.config import (
    Prompts,
    RunConfig,
    build_engine,
    build_evaluation_sets,
    build_phases,
    load_meta_model,
    load_route_tokenizers,
    load_tokenizers,
    make_verifier,
    offline_answers,
    other_models,
    read_prompts,
)
from tutelage.config.clock import template_clock, with_asked_date
from tutelage.evaluation import EvaluationSet
from tutelage.models import DTYPES, LanguageModel, Vocabulary, align, check_savable
from tutelage.policies import Student
from tutelage.rollout import OfflineAnswers, PairedEngine, derive_seed
from tutelage.tasks import TemplateClock
from tutelage.training import Phase
from tutelage.types import Prompt, Rollout

__all__ = ["Patient"]

NUM_LOOKED_AT = 8  # prompts whose answers are read for the overlap
ANSWER_TOKENS = 256  # of each of them


@dataclass(frozen=True)
class Patient:
    """A run file's run, in parts.

    Fields:
      config: the checked configuration.
      processes: how many are to share the run.
    """

    config: RunConfig
    processes: int = 1

    @cached_property
    def phases(self) -> list[Phase]:
        """The recipes."""
        return build_phases(self.config)

    @cached_property
    def tokenizers(self) -> tuple[Any, Any]:
        """The student's and the teacher's; refused if they differ."""
        return load_tokenizers(self.config)

    @cached_property
    def prompts(self) -> Prompts:
        """The training prompts as both models read them."""
        return read_prompts(self.config.data, *self.tokenizers, load_route_tokenizers(self.config), self.clock)

    @cached_property
    def clock(self) -> TemplateClock:
        """What chat templates are told when they ask for the date."""
        return template_clock(self.config.data)

    @cached_property
    def evaluation_sets(self) -> list[EvaluationSet]:
        """The problems that are evaluated on."""
        return build_evaluation_sets(self.config.evaluation.sets, self.config.data, self.tokenizers[0], self.clock)

    @cached_property
    def meta_models(self) -> Mapping[str, LanguageModel]:
        """Every model of the run without its weights, by its key in the run file."""
        student_tokenizer, teacher_tokenizer = self.tokenizers
        pair = {
            "student": load_meta_model(self.config.student, student_tokenizer, self.config.student.adapter),
            "teacher": load_meta_model(self.config.teacher, teacher_tokenizer),
        }
        autocast = self.config.runtime.autocast
        pair["student"].autocast = None if autocast is None else DTYPES[autocast]
        # Their tokenizers were found equal to the student's.
        return pair | {name: load_meta_model(model, student_tokenizer) for name, model in other_models(self.config)}

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """What the models share."""
        student, *others = self.meta_models.values()
        return align(student, *others)

    @cached_property
    def needs_reference(self) -> bool:
        """Whether some phase compares with a third model."""
        return any(phase.recipe.target.needs is not None for phase in self.phases)

    @cached_property
    def offline(self) -> OfflineAnswers | None:
        """The scored answers of phases that learn from such; refused if they do not fit the run."""
        prompts = self.prompts.prompts
        return offline_answers(with_asked_date(self.config, self.clock), self.phases, prompts, self.tokenizers)

    @cached_property
    def engine(self) -> PairedEngine:
        """The models with their weights, the student's gradient on and all others' off."""
        engine = build_engine(self.config, *self.tokenizers, with_reference=self.needs_reference)
        check_savable(engine.student, engine.vocabulary)
        for model in engine.models.frozen:
            model.module.requires_grad_(False)
        engine.student.enable_grad()
        engine.offline = self.offline
        return engine

    @cached_property
    def rollouts(self) -> list[Rollout]:
        """The untrained student's answers to the first prompts, read by the teacher."""
        return self.engine.score(
            self.engine.generate(
                Student(),
                self.prompts.prompts[:NUM_LOOKED_AT],
                max_new_tokens=min(ANSWER_TOKENS, self.config.rollout.max_new_tokens),
                seed=self.seed,
            )
        )

    @property
    def seed(self) -> int:
        """Of everything that is sampled here; no training step draws from it."""
        return derive_seed(self.config.seed, "doctor")

    def answered(self, count: int) -> tuple[list[Prompt], list[str]]:
        """The first prompts whose right answer is known, and the answers."""
        pairs = zip(self.prompts.prompts, self.prompts.answers, strict=True)
        known = [(prompt, answer) for prompt, answer in pairs if answer is not None][:count]
        return [prompt for prompt, _ in known], [answer for _, answer in known]

    def verify(self, rollouts: Sequence[Rollout], answers: Sequence[str]) -> Sequence[bool]:
        """Right or wrong, as the run's verifier says."""
        return make_verifier(self.config.data.verifier, self.engine.student, self.config.data.truncated_answers)(
            rollouts, answers
        )
