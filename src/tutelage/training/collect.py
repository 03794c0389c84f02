"""From a step's prompts to the batch that its update sees: roll out, read, judge, share among processes.

Nothing here asks which method runs. The policy says who picks the tokens and whether the teacher is needed for it, the
target and the losses say what must be known of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from tutelage.errors import ConfigurationError
from tutelage.models import ModelSet
from tutelage.rewards import Rating
from tutelage.rollout import (
    DEFAULT_DRAFT_LENGTH,
    DEFAULT_SUPPORT_SIZE,
    SAMPLERS,
    Engine,
    Limits,
    MapShards,
    ReferenceScorer,
    Request,
    Scorer,
    answers_to_share,
    draft_length_named,
    single_process,
    without_hidden,
)
from tutelage.runtime import LocalRuntime
from tutelage.training.data import PromptOrder
from tutelage.training.recipe import Recipe
from tutelage.types import Batch, Prompt, Rollout

__all__ = ["BatchSource", "RolloutSettings", "Stopwatch", "collect"]


@dataclass(frozen=True)
class RolloutSettings:
    """How much is sampled at every step.

    Fields:
      engine: "paired" decodes everything here; "vllm" lets vLLM draw what the student writes alone, see [vllm].
      prompts_per_step, samples_per_prompt: P and G; their product is the global batch.
      max_new_tokens: length limit of an answer, stop token included.
      max_rows: most answers decoded at once; further ones take the place of those that end.
      draft_length: tokens that the student drafts before the teacher reads them: a number, "estimated" or "auto", see
        `rollout.PairedEngine`. Of no effect where the policy does not ask the teacher.
      cache_gib: most memory of both models' caches, in GiB; None = half of an accelerator's memory, no limit on a CPU.
      compile: decode through `torch.compile`.
      support_size: K, the student's support on which the teacher's log-probabilities are kept.
      score_tokens: most tokens in one forward of the teacher over prompts or finished answers.
      redraws: how many times at most the prompts of a step whose answers all have the same reward, so that they teach
        nothing, are replaced by others, drawn at random from the data (DAPO's dynamic sampling, arXiv 2503.14476). What
        has no spread after that stays.
    """

    engine: str = "paired"
    prompts_per_step: int = 64
    samples_per_prompt: int = 4
    max_new_tokens: int = 7168
    max_rows: int = Limits.max_rows
    draft_length: int | str = DEFAULT_DRAFT_LENGTH
    cache_gib: float | None = None
    compile: bool = False
    support_size: int = DEFAULT_SUPPORT_SIZE
    score_tokens: int = Limits.score_tokens
    redraws: int = 0

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            lowest = 0 if item.name == "redraws" else 1
            if item.type == "int" and value < lowest:
                raise ConfigurationError(f"rollout.{item.name} is {value}; it must be at least {lowest}.")
        engines = ("paired", *SAMPLERS)
        if self.engine not in engines:
            raise ConfigurationError(f"rollout.engine is {self.engine!r}; expected one of {', '.join(engines)}.")
        draft_length_named(self.draft_length)
        if self.cache_gib is not None and self.cache_gib <= 0:
            raise ConfigurationError(
                f"rollout.cache_gib is {self.cache_gib:g}; expected GiB above 0. Leave it out for the default."
            )


@dataclass(frozen=True)
class BatchSource:
    """What a run's batches are made from.

    Fields:
      models: the reference reads answers, where a target needs it.
      engine: makes answers.
      scorer: lets the teachers read them.
      prompts, answers: all of them, and what is right where that is known.
      order: which prompts belong to a step.
      rollout: how many answers, and how long.
      verify: (rollouts, right answers) -> right or wrong; None = answers are not judged.
      runtime: where it runs.
      seed: keys the random numbers.
      rating: what the answers are worth; None = nothing but right or wrong.
    """

    models: ModelSet
    engine: Engine
    scorer: Scorer
    prompts: Sequence[Prompt]
    answers: Sequence[str | None]
    order: PromptOrder
    rollout: RolloutSettings
    verify: Callable[[Sequence[Rollout], Sequence[str]], Sequence[bool]] | None
    runtime: LocalRuntime
    seed: int
    rating: Rating | None = None


class Stopwatch:
    """Seconds per phase of a step; owns the sums so far."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._processor_since = time.process_time()
        self._since = time.perf_counter()

    def lap(self, phase: str) -> None:
        """Add the time since the last lap to `phase`."""
        now = time.perf_counter()
        self.seconds[f"seconds_{phase}"] = self.seconds.get(f"seconds_{phase}", 0.0) + now - self._since
        self._since = now

    @property
    def processor_seconds(self) -> float:
        """Processor time of this process since the start, all threads together."""
        return time.process_time() - self._processor_since


def collect(
    source: BatchSource, step: int, recipe: Recipe, watch: Stopwatch, map_shards: MapShards[Any] = single_process
) -> Batch:
    """Answers to a step's prompts, read by the models that the recipe needs, judged, and rated.

    May be interrupted anywhere.

    Args:
      step: of the run; prompts and random numbers depend on it.
      recipe: with numbers in place of its schedules.
      watch: gets the laps "rollout", "score" and "verify".
      map_shards: shares the prompts among processes; the batch is that of all of them. Only rollouts of this process
        have the teacher's hidden states.
    Returns:
      the global batch; its reward "correct" is 1 or 0, and missing unless the right answer to every prompt is known.
      With a rating there is one more for each reward, under its label, and "reward", all of them combined. Prompts
      whose answers have one reward are replaced as `RolloutSettings.redraws` says.
    Raises:
      RewardError: a reward has no number for an answer.
    """
    source.engine.sync(recipe.policy, step)
    drawing = _Drawing(source, step, recipe, watch, map_shards)
    numbers = source.order.indices(step)
    groups, num_redrawn = drawing.groups(numbers), 0
    for attempt in range(1, source.rollout.redraws + 1):
        flat = [slot for slot, values in enumerate(drawing.rewards_of(groups)) if len(set(values)) < 2]
        others = source.order.others(step, attempt, numbers)[: len(flat)]
        if not others:
            break
        num_redrawn += len(others)
        drawn = drawing.groups(others, first_stream=attempt * len(numbers))
        for place, values in enumerate(drawing.rewards_of(drawn)):
            if len(set(values)) > 1:
                slot = flat[place]
                # From now on it is compared with groups of other draws, and told from them by its place.
                numbers[slot], groups[slot] = others[place], [each.at(slot) for each in drawn[place]]
    judged = [each for group in groups for each in group]
    rewards = drawing.entries(judged)
    if judged and all(each.verdict is not None for each in judged):
        rewards["correct"] = torch.tensor([float(bool(each.verdict)) for each in judged])
    own = [place for place, each in enumerate(judged) if each.is_own]
    return Batch([each.rollout for each in judged], rewards, own=own, prompt_numbers=numbers, num_redrawn=num_redrawn)


@dataclass(frozen=True)
class _Judged:
    """An answer, and what is known of its worth. `is_own`: this process has drawn it."""

    rollout: Rollout
    verdict: bool | None
    rated: Mapping[str, float]
    is_own: bool = False

    def at(self, slot: int) -> _Judged:
        """The same answer to a prompt that is in another place of the step."""
        return replace(self, rollout=replace(self.rollout, prompt_index=slot))


@dataclass(frozen=True)
class _Drawing:
    """What all draws of a step have in common; see `collect`."""

    source: BatchSource
    step: int
    recipe: Recipe
    watch: Stopwatch
    map_shards: MapShards[Any]

    def groups(self, numbers: Sequence[int], first_stream: int = 0) -> list[list[_Judged]]:
        """For each of some prompts, by their numbers, its answers, of all processes.

        Args:
          first_stream: of the prompts' random streams; other draws of a step have others.
        """
        source, watch, rollout = self.source, self.watch, self.source.rollout
        prompts = [source.prompts[number] for number in numbers]
        if first_stream:
            prompts = [replace(prompt, stream=first_stream + place) for place, prompt in enumerate(prompts)]
        request = Request(prompts, rollout.max_new_tokens, rollout.samples_per_prompt, source.seed, self.step)
        verify = _verifier_of(source, numbers)
        own: dict[tuple[int, int], Rollout] = {}

        def answered(share: slice) -> list[_Judged]:
            rollouts = answers_to_share(source.engine, self.recipe.policy, request, share)
            watch.lap("rollout")
            rollouts = _read(source, self.recipe, rollouts)
            watch.lap("score")
            verdicts: Sequence[bool] | None = None if verify is None else verify(rollouts)
            rated: list[dict[str, float]] = [{}] * len(rollouts)
            if source.rating is not None:
                rated = source.rating.judge(rollouts, [numbers[made.prompt_index] for made in rollouts], verdicts)
            watch.lap("verify")
            own.update({_key(made): made for made in rollouts})
            told = [None] * len(rollouts) if verdicts is None else verdicts
            return [
                _Judged(without_hidden(made), verdict, worth)
                for made, verdict, worth in zip(rollouts, told, rated, strict=True)
            ]

        drawn = self.map_shards(len(prompts), answered)
        watch.lap("rollout")  # a process that is done waits for the others' rollouts
        found: list[list[_Judged]] = [[] for _ in numbers]
        for each in drawn:
            key = _key(each.rollout)
            mine = replace(each, rollout=own[key], is_own=True) if key in own else each
            found[each.rollout.prompt_index].append(mine)
        return found

    def entries(self, judged: Sequence[_Judged]) -> dict[str, torch.Tensor]:
        """Each reward under its label, and "reward", all combined; none where answers are not rated."""
        if self.source.rating is None:
            return {}
        places = [each.rollout.prompt_index for each in judged]
        return self.source.rating.entries([each.rated for each in judged], places, self.step)

    def rewards_of(self, groups: Sequence[Sequence[_Judged]]) -> list[list[float]]:
        """The combined rewards of each group."""
        values = iter(self.entries([each for group in groups for each in group])["reward"].tolist())
        return [[next(values) for _ in group] for group in groups]


def _read(source: BatchSource, recipe: Recipe, rollouts: list[Rollout]) -> list[Rollout]:
    """The rollouts with the readings of teacher and reference that the recipe needs and that are not there yet."""
    needs_hidden = recipe.asks_whole_teacher
    reads_again = needs_hidden and source.runtime.reads_teacher_together
    if rollouts and recipe.asks_teacher and (not rollouts[0].is_scored or reads_again):
        # A loss over all tokens needs what the head is applied to, and the teacher need not read twice for it.
        rollouts = source.scorer.score(rollouts, keep_hidden=needs_hidden)
    if recipe.reads_reference:
        rollouts = ReferenceScorer(source.models, source.rollout.score_tokens).score(rollouts)
    return rollouts


def _verifier_of(source: BatchSource, chosen: Sequence[int]) -> Callable[[Sequence[Rollout]], Sequence[bool]] | None:
    """Right or wrong for the rollouts of these prompts; None where there is nothing to verify with."""
    verify, answers = source.verify, [source.answers[i] for i in chosen]
    known = [answer for answer in answers if answer is not None]
    if verify is None or len(known) < len(answers):
        return None
    return lambda rollouts: verify(rollouts, [known[rollout.prompt_index] for rollout in rollouts])


def _key(rollout: Rollout) -> tuple[int, int]:
    return rollout.prompt_index, rollout.sample_index
