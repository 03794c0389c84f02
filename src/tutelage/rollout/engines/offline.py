"""Answers that exist: nothing is sampled.  Which of them belong to a step?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count

import torch

from tutelage.errors import DataError
from tutelage.policies import Policy
from tutelage.rollout.decoding.streams import derive_seed, uniforms
from tutelage.rollout.engines.base import check_served
from tutelage.rollout.request import Request
from tutelage.rollout.score_cache import REMEDY, AnswerKey, ScoreCache
from tutelage.types import Prompt, Rollout

__all__ = ["OfflineEngine"]


@dataclass(frozen=True)
class OfflineEngine:
    """Gives out the answers of a score cache, by the prompt that they answer.

    Fields:
      cache: where they lie; they are read when a step needs them.
      places: prompt -> (shard, row) of its answers, in the order of their file.
      longest: most tokens of a prompt, as either model reads it, and an answer together.
    """

    cache: ScoreCache
    places: dict[AnswerKey, list[tuple[int, int]]]
    longest: int

    @classmethod
    def of(cls, cache: ScoreCache) -> OfflineEngine:
        """Look through a cache, once.

        Raises:
          DataError: shards are missing or damaged; the first is named.
        """
        damages = cache.damages()
        if damages:
            shard, problem = next(iter(damages.items()))
            raise DataError(
                f"{len(damages)} of {cache.num_shards} shards of {cache.folder} cannot be used, first "
                f"{cache.path(shard).name}, which {problem}. {REMEDY}"
            )
        places: dict[AnswerKey, list[tuple[int, int]]] = {}
        longest = 0
        for shard in range(cache.num_shards):
            for row, (key, num_tokens) in zip(count(), cache.prompts(shard), strict=False):
                places.setdefault(key, []).append((shard, row))
                longest = max(longest, num_tokens + max(len(key[0]), len(key[1] or ())))
        return cls(cache, places, longest)

    def check_answered(self, prompts: Sequence[Prompt], num_samples: int) -> None:
        """Refuse prompts without answers, or with fewer than a step takes.

        Raises:
          DataError: says how many, and what the first prompt has.
        """
        numbers = [len(self.places.get(_key(prompt), ())) for prompt in prompts]
        missing = [place for place, number in enumerate(numbers) if not number]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(prompts)} prompts have no answer in {self.cache.folder}, first number "
                f"{missing[0]} (from 0); it has answers to {len(self.places)} prompts. Point data.path to the prompts "
                "that were answered, set data.limit, or score answers to these as well."
            )
        if min(numbers) < num_samples:
            raise DataError(
                f"rollout.samples_per_prompt is {num_samples}, but {self.cache.folder} has {min(numbers)} answers to "
                f"prompt number {numbers.index(min(numbers))} (from 0). Set it to at most that, or score more answers."
            )

    def refusal(self, policy: Policy) -> str | None:
        if policy.is_offline:
            return None
        return f"the policy {policy} samples, and this engine only has answers that exist. Use policy = 'offline'."

    def sync(self, policy: Policy, step: int) -> None:
        """Answers that exist do not depend on the student's weights."""

    def answer(self, policy: Policy, request: Request) -> list[Rollout]:
        """The answers that belong to a step, ordered by prompt, then by their place in the file.

        Where a prompt has more than `num_samples`, random numbers of (seed, step, prompt) choose among them, any set as
        likely as another. Otherwise it is all of them, in every step. Length limits are not applied.
        """
        check_served(self, policy)
        seed = derive_seed(request.seed, "given")
        rollouts = []
        for index, prompt in enumerate(request.prompts):
            places = self.places[_key(prompt)]
            chosen = list(range(request.num_samples))
            if len(places) > request.num_samples:
                stream = torch.tensor([prompt.stream_at(index)])
                everyone = torch.arange(len(places))
                drawn_A = uniforms(seed, request.step, stream, torch.zeros(1).long(), everyone)[0][0]
                chosen = sorted(drawn_A.argsort()[: request.num_samples].tolist())
            for sample, place in enumerate(chosen):
                read = self.cache.read(*places[place])
                rollouts.append(replace(read, prompt_index=index, sample_index=sample))
        return rollouts


def _key(prompt: Prompt) -> AnswerKey:
    reads = None if prompt.teacher_tokens is None else tuple(prompt.teacher_tokens)
    return tuple(prompt.student_tokens), reads, prompt.teacher_name
