"""One training step: roll out, score, verify, learn.

This file reads like the algorithm. The step does not know which method it runs; the policy says who picks the tokens
and whether the teacher is needed for it, the target and the divergence say what is learned from them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from tutelage.diagnostics import rollout_metrics, teacher_support_auroc
from tutelage.divergences import Divergence
from tutelage.errors import ConfigurationError, NonFiniteError
from tutelage.policies import Policy
from tutelage.rollout import (
    MapShards,
    PairedEngine,
    answers_to_share,
    draft_length_named,
    single_process,
    without_hidden,
)
from tutelage.runtime import Learner, LocalRuntime
from tutelage.targets import TargetRule
from tutelage.training.objective import BatchLoss, Objective
from tutelage.training.optimizer import OptimizerSettings
from tutelage.types import Prompt, Rollout, StepResult
from tutelage.weighting import UNIFORM, Weighting

__all__ = ["PendingStep", "Recipe", "RolloutSettings", "Stopwatch", "accumulate_gradient", "apply_update"]

ENGINES = ("paired", "vllm")


@dataclass(frozen=True)
class Recipe:
    """A method: a point on the axes.

    Raises:
      ConfigurationError: the target must see all events, and the divergence shows it a part of them.
    """

    policy: Policy
    target: TargetRule
    divergence: Divergence
    weighting: Weighting = UNIFORM

    def __post_init__(self) -> None:
        is_partial = self.divergence.support != "full" and self.divergence.rest == "truncated"
        if self.target.is_normalised and is_partial:
            raise ConfigurationError(
                f"divergence.rest is 'truncated', but the target {self.target} is normalised over the events that it "
                "sees, which must then be all there are. Use divergence.rest = 'tail' or 'renormalised', or "
                "divergence.support = 'full'."
            )
        if self.target.needs is not None and self.divergence.support in ("teacher_top_k", "union_top_k"):
            raise ConfigurationError(
                f"divergence.support is {self.divergence.support!r}, but the target {self.target} compares with a "
                "third model, whose own tokens would be looked at then. Use support = 'student_top_k' or 'full'."
            )
        looks_at_tokens = self.divergence.needs_rollouts and not self.divergence.imitates_tokens
        if looks_at_tokens and not self.target.acts_per_token:
            raise ConfigurationError(
                f"the divergence {type(self.divergence).__name__} looks at sampled tokens, but the target "
                f"{type(self.target).__name__} is known as a whole distribution only: one token's probability says too "
                "little. Use target = 'teacher', or a divergence over a support, such as 'reverse_kl'."
            )


@dataclass(frozen=True)
class RolloutSettings:
    """How much is sampled at every step.

    Fields:
      engine: "paired" decodes everything here; "vllm" leaves to vLLM what the student writes alone, see [vllm].
      prompts_per_step, samples_per_prompt: P and G; their product is the global batch.
      max_new_tokens: length limit of an answer, stop token included.
      max_rows: most answers decoded at once; further ones take the place of those that end.
      draft_length: tokens that the student drafts before the teacher reads them: a number, "estimated" or "auto", see
        `rollout.PairedEngine`. Of no effect where the policy does not ask the teacher.
      cache_gib: most memory of both models' caches, in GiB; None = half of an accelerator's memory, no limit on a CPU.
      compile: decode through `torch.compile`.
      support_size: K, the student's support on which the teacher's log-probabilities are kept.
      score_tokens: most tokens in one forward of the teacher over prompts or finished answers.
    """

    engine: str = "paired"
    prompts_per_step: int = 64
    samples_per_prompt: int = 4
    max_new_tokens: int = 7168
    max_rows: int = 256
    draft_length: int | str = "estimated"
    cache_gib: float | None = None
    compile: bool = False
    support_size: int = 16
    score_tokens: int = 16_384

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.type == "int" and value < 1:
                raise ConfigurationError(f"rollout.{item.name} is {value}; it must be at least 1.")
        if self.engine not in ENGINES:
            raise ConfigurationError(f"rollout.engine is {self.engine!r}; expected one of {', '.join(ENGINES)}.")
        draft_length_named(self.draft_length)
        if self.cache_gib is not None and self.cache_gib <= 0:
            raise ConfigurationError(
                f"rollout.cache_gib is {self.cache_gib:g}; expected GiB above 0. Leave it out for the default."
            )


class Stopwatch:
    """Seconds per phase of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Book the time since the last lap under `phase`."""
        now = time.perf_counter()
        self.seconds[f"seconds_{phase}"] = self.seconds.get(f"seconds_{phase}", 0.0) + now - self._since
        self._since = now


@dataclass(frozen=True)
class PendingStep:
    """A step whose gradient is there and whose update is not: the student is still what it was."""

    step: int
    policy: Policy
    rollouts: Sequence[Rollout]
    correct: Sequence[bool] | None
    batch: BatchLoss
    watch: Stopwatch
    learner: Learner


def accumulate_gradient(
    step: int,
    prompts: Sequence[Prompt],
    *,
    recipe: Recipe,
    engine: PairedEngine,
    rollout: RolloutSettings,
    verify: Callable[[Sequence[Rollout]], Sequence[bool]] | None,
    runtime: LocalRuntime,
    micro_batch_tokens: int,
    seed: int,
    learner: Learner | None = None,
    map_shards: MapShards[Any] = single_process,
    loss_form: str = "auto",
) -> PendingStep:
    """Sample answers to `prompts`, let the teacher read them, and leave the loss's gradient on the student.

    May be interrupted anywhere: nothing that it does outlives clearing the gradient.

    Args:
      step: k = 0, 1, ...; schedules and random streams depend on it. A recipe that is resolved already stays as it is.
      verify: right or wrong per rollout, for diagnostics only; it is not a reward that is learned from.
      learner: what the gradient is left on; None = the engine's student.
      map_shards: shares the prompts among processes; the batch is then that of all of them.
      loss_form: see `training.loss_form`.
    Raises:
      NonFiniteError: the loss is NaN or infinite.
    """
    watch = Stopwatch()
    policy = recipe.policy.at(step)
    learner = learner or Learner(engine.student)
    own: dict[tuple[int, int], Rollout] = {}

    def answered(share: slice) -> list[tuple[Rollout, bool | None]]:
        rollouts = answers_to_share(
            engine,
            policy,
            prompts,
            share,
            max_new_tokens=rollout.max_new_tokens,
            num_samples=rollout.samples_per_prompt,
            seed=seed,
            step=step,
        )
        watch.lap("rollout")

        needs_hidden = recipe.divergence.needs_full_target
        if rollouts and (not rollouts[0].is_scored or (needs_hidden and runtime.reads_teacher_together)):
            # A loss over all tokens needs what the head is applied to, and the teacher need not read twice for it.
            rollouts = engine.score(rollouts, keep_hidden=needs_hidden)
        if recipe.target.needs is not None and not needs_hidden:
            rollouts = engine.score_reference(rollouts)
        watch.lap("score")

        verdicts = [None] * len(rollouts) if verify is None else verify(rollouts)
        watch.lap("verify")
        own.update({(made.prompt_index, made.sample_index): made for made in rollouts})
        return [(without_hidden(made), verdict) for made, verdict in zip(rollouts, verdicts, strict=True)]

    drawn = map_shards(len(prompts), answered)
    rollouts = [own.get((made.prompt_index, made.sample_index), made) for made, _ in drawn]
    correct = None if verify is None else [bool(verdict) for _, verdict in drawn]
    watch.lap("rollout")  # whoever is done waits for the others' rollouts

    target = recipe.target.at(step)
    objective = Objective(
        replace(engine.models, student=learner.model),
        target,
        recipe.divergence,
        micro_batch_tokens,
        weighting=recipe.weighting,
        seed=seed,
        step=step,
        form=loss_form,
    )
    places = [place for place, made in enumerate(rollouts) if (made.prompt_index, made.sample_index) in own]
    batch = objective.backward(rollouts, runtime.all_sum, own=places, run=learner.backward)
    if not math.isfinite(batch.loss):
        raise NonFiniteError(f"the loss is {batch.loss}")
    return PendingStep(step, policy, rollouts, correct, batch, watch, learner)


def apply_update(
    pending: PendingStep, optimizer: torch.optim.Optimizer, settings: OptimizerSettings, runtime: LocalRuntime
) -> StepResult:
    """Make the step's one update, and say what happened in it. Must not be interrupted half-way.

    Raises:
      NonFiniteError: the gradient is NaN or infinite, and no update was made; or the weights or moments are after it.
    """
    learning_rate = settings.rate_at(pending.step)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    grad_norm = runtime.update(optimizer, settings.max_grad_norm)
    pending.learner.publish()
    pending.watch.lap("update")

    policy, rollouts, correct, batch = pending.policy, pending.rollouts, pending.correct, pending.batch
    numbers = {item.name: getattr(policy, item.name) for item in fields(policy)}
    policy_numbers = {name: float(value) for name, value in numbers.items() if isinstance(value, int | float)}
    rewards = None if correct is None else [float(is_correct) for is_correct in correct]
    auroc = None if correct is None else teacher_support_auroc(rollouts, correct)
    seconds = pending.watch.seconds
    metrics = {
        "loss": batch.loss,
        "grad_norm": grad_norm,
        "learning_rate": learning_rate,
        **({} if math.isnan(batch.logprob_mismatch) else {"logprob_mismatch": batch.logprob_mismatch}),
        "weight_mean": batch.weight_mean,
        **policy_numbers,
        **rollout_metrics(rollouts, kl_radius=policy_numbers.get("kl_radius"), rewards=rewards),
        **({} if auroc is None else {"teacher_support_auroc": auroc}),
        **seconds,
        "seconds": sum(seconds.values()),
        "response_tokens_total": float(batch.num_tokens),
        "tokens_per_second": batch.num_tokens / max(seconds["seconds_rollout"], 1e-9),
    }
    return StepResult(pending.step, metrics, rollouts, correct)
