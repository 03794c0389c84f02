"""Everything that one training run is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tutelage.evaluation import GREEDY_SUFFIX, Drawing, EvaluationSet, TextSet
from tutelage.models import ModelSet, Reference
from tutelage.policies import Policy
from tutelage.runtime import LocalRuntime
from tutelage.training.checkpoint import CheckpointSettings
from tutelage.training.collect import BatchSource
from tutelage.training.forms import DEFAULT_LOSS_FORM
from tutelage.training.objective import MICRO_BATCH_TOKENS
from tutelage.training.phases import Phase, phase_at
from tutelage.training.run_files import RunFolder
from tutelage.training.trackers import RunLabel
from tutelage.training.updates import GradientUpdate, Update, UpdateContext

__all__ = ["EvaluationPlan", "Run"]


@dataclass(frozen=True)
class EvaluationPlan:
    """What is evaluated during a run, and how.

    Fields:
      sets: problem sets; none = no evaluation.
      policy: how answers are drawn, the student at `temperature`.
      every: steps between evaluations; before the first step and after the last one always. 0 = only those two.
      num_samples, temperature, max_new_tokens: per problem.
      greedy_policy: the student at temperature 0, which then gives one answer more per problem; None = not asked for.
      retained_answers: right answers of each set's first evaluation that are kept and scored again at every one.
      texts: whose probability is looked at whenever the sets are evaluated.
      teacher_reads: the teacher reads the answers to the sets.
    """

    sets: Sequence[EvaluationSet]
    policy: Policy
    every: int
    num_samples: int
    temperature: float
    max_new_tokens: int
    greedy_policy: Policy | None = None
    retained_answers: int = 0
    texts: Sequence[TextSet] = ()
    teacher_reads: bool = False

    def jobs(self, seed: int) -> list[tuple[EvaluationSet, Policy, Drawing]]:
        """All that one evaluation does, greedy answers first; `seed`: of the run."""
        drawing = Drawing(self.num_samples, self.temperature, self.max_new_tokens, seed)
        sampled = [(problems, self.policy, drawing) for problems in self.sets]
        if self.greedy_policy is None:
            return sampled
        named = [replace(problems, name=problems.name + GREEDY_SUFFIX) for problems in self.sets]
        greedy = replace(drawing, num_samples=1, temperature=0.0)
        return [*((problems, self.greedy_policy, greedy) for problems in named), *sampled]

    def is_due(self, step: int, num_steps: int) -> bool:
        """Whether the weights after `step` updates are evaluated."""
        return bool(self.sets) and (step in (0, num_steps) or (self.every > 0 and step % self.every == 0))


@dataclass(frozen=True)
class Learning:
    """What is learned from a run's batches, and how.

    Fields:
      phases: the recipes, one after another, with the settings of the update.
      update: how the weights change.
      reference: how the third model follows the student.
      micro_batch_tokens: most tokens in one forward and backward.
      loss_form: see `training.forms`.
    """

    phases: Sequence[Phase]
    update: Callable[[UpdateContext], Update] = GradientUpdate
    reference: Reference = field(default_factory=Reference)
    micro_batch_tokens: int = MICRO_BATCH_TOKENS
    loss_form: str = DEFAULT_LOSS_FORM

    def update_for(self, source: BatchSource) -> Update:
        """The update of the student that a source has."""
        source.models.student.enable_grad()  # of what learns in it now, whatever that was when it was loaded
        context = UpdateContext(
            source.models,
            source.runtime.learner(source.models.student),
            source.runtime,
            settings_at=lambda step: phase_at(self.phases, step).optimizer,
            seed=source.seed,
            micro_batch_tokens=self.micro_batch_tokens,
            loss_form=self.loss_form,
            rating=source.rating,
        )
        return self.update(context)


@dataclass(frozen=True)
class LogSettings:
    """What is written of a step beside its numbers.

    Fields:
      samples_per_log, steps_per_log: how many answers are kept as text, and every so many steps.
      diagnostics_every: steps between two looks at the expensive metrics; 0 = never.
    """

    samples_per_log: int = 4
    steps_per_log: int = 1
    diagnostics_every: int = 10


@dataclass(frozen=True)
class RunStart:
    """Where a run begins.

    Fields:
      is_resumed: its folder holds it already.
      checkpoint: to continue from; None = at step 0.
      open_folder: makes the folder, or notes in it what a resumed run has changed; the first process calls it.
    """

    is_resumed: bool
    checkpoint: Path | None
    open_folder: Callable[[], None]


@dataclass(slots=True)
class Run:
    """Everything one training run is made of; `config.build` puts it together.

    Fields:
      source: what its batches are made from.
      learning: what is learned from them.
      num_steps: steps in all.
      evaluation, checkpoint, logs: what is looked at, saved and written, and when.
      decode: token ids to text.
      folder: where its files go.
      label, trackers: what it is called, and on which trackers it is shown, see `trackers.chosen_trackers`.
      start: where it begins.
      messages: for the user, shown before it begins.
    """

    source: BatchSource
    learning: Learning
    num_steps: int
    evaluation: EvaluationPlan
    checkpoint: CheckpointSettings
    logs: LogSettings
    decode: Callable[[Sequence[int]], str]
    folder: RunFolder
    label: RunLabel
    trackers: Mapping[str, bool]
    start: RunStart
    messages: list[str] = field(default_factory=list)

    @property
    def models(self) -> ModelSet:
        """The student and all others."""
        return self.source.models

    @property
    def runtime(self) -> LocalRuntime:
        """Where it runs."""
        return self.source.runtime
