"""Everything that one training run is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tutelage.evaluation import GREEDY_SUFFIX, Drawing, EvaluationSet
from tutelage.models import ModelSet, Reference
from tutelage.policies import Policy
from tutelage.rollout import Engine, Scorer
from tutelage.runtime import LocalRuntime
from tutelage.training.checkpoint import CheckpointSettings
from tutelage.training.collect import PromptSource, RolloutSettings
from tutelage.training.data import PromptOrder
from tutelage.training.phases import Phase, phase_at
from tutelage.training.run_files import RunFolder
from tutelage.training.updates import GradientUpdate, Update, UpdateContext
from tutelage.types import Prompt, Rollout

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
    """

    sets: Sequence[EvaluationSet]
    policy: Policy
    every: int
    num_samples: int
    temperature: float
    max_new_tokens: int
    greedy_policy: Policy | None = None

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


@dataclass
class Run:
    """Everything one training run is made of; `config.build` puts it together.

    `open_folder` makes the run's folder, or notes in it what a resumed run has changed; the first process calls it.
    """

    phases: Sequence[Phase]
    models: ModelSet
    engine: Engine
    scorer: Scorer
    runtime: LocalRuntime
    prompts: Sequence[Prompt]
    answers: Sequence[str | None]
    prompt_order: PromptOrder
    rollout: RolloutSettings
    checkpoint: CheckpointSettings
    evaluation: EvaluationPlan
    num_steps: int
    seed: int
    micro_batch_tokens: int
    folder: RunFolder
    verify: Callable[[Sequence[Rollout], Sequence[str]], Sequence[bool]] | None
    decode: Callable[[Sequence[int]], str]
    loss_form: str = "auto"
    update: Callable[[UpdateContext], Update] = GradientUpdate
    samples_per_log: int = 4
    steps_per_log: int = 1
    diagnostics_every: int = 10
    trackers: Mapping[str, bool] = field(default_factory=dict)
    name: str = "run"
    project: str = "tutelage"
    settings: Mapping[str, Any] = field(default_factory=dict)
    reference: Reference = field(default_factory=Reference)
    is_resumed: bool = False
    resume_from: Path | None = None
    open_folder: Callable[[], None] = lambda: None
    messages: list[str] = field(default_factory=list)

    @property
    def source(self) -> PromptSource:
        """What batches are made from."""
        return PromptSource(
            self.models,
            self.engine,
            self.scorer,
            self.prompts,
            self.answers,
            self.prompt_order,
            self.rollout,
            self.verify,
            self.runtime,
            self.seed,
        )

    def make_update(self) -> Update:
        """The update, over the weights that learn."""
        context = UpdateContext(
            self.models,
            self.runtime.learner(self.models.student),
            self.runtime,
            settings_at=lambda step: phase_at(self.phases, step).optimizer,
            seed=self.seed,
            micro_batch_tokens=self.micro_batch_tokens,
            loss_form=self.loss_form,
        )
        return self.update(context)
