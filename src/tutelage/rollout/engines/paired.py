"""Answers of any policy, from a student and a teacher side by side.

A policy is a pure function of two next-token distributions, so one engine serves them all. It decides how many answers
are decoded at once and how long the drafts are; `rollout.decoding` does the decoding. The teacher runs only if the
policy asks for it.

Left out on purpose: which prompts, and what the tokens are for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from tutelage.errors import ConfigurationError
from tutelage.models import LanguageModel, ModelSet, Vocabulary
from tutelage.policies import Policy
from tutelage.rollout.decoding import DEFAULT_DRAFT_LENGTH, Decoding, DecodingSettings, DraftLengths, slots_of
from tutelage.rollout.engines.base import check_served
from tutelage.rollout.limits import DEFAULT_SUPPORT_SIZE, Limits, check_prompts
from tutelage.rollout.request import Request
from tutelage.rollout.scorers import LocalScorer
from tutelage.types import Prompt, Rollout

__all__ = ["CACHE_SHARE", "PairedEngine"]

# Without a byte budget, the caches may take this share of an accelerator's memory.
CACHE_SHARE = 0.5


class PairedEngine:
    """Samples answers from a policy over a student and a teacher.

    Args:
      student: a LanguageModel or a bare `transformers` causal language model.
      teacher: the same; or several by the name that prompts call them, None for those that name none; or None for an
        engine that can only follow the student.
      draft_length: tokens that the student drafts before the teacher reads them in one forward. A number; "estimated"
        (as many as pay, by the models' sizes and the acceptance so far: the same in every run); or "auto" (the same
        with measured costs: faster where the estimate is off, but with other lengths, and so another rounding, in every
        run). 1 is lock-step: one forward of each model per token, one draw from mu. All have the same distribution; all
        but 1 give the same tokens, up to rounding.
      support_size: K, size of the student's support on which the teacher's log-probabilities are kept.
      vocabulary: shared vocabulary; None = worked out from the models.
      limits: how much is computed at once.
    Raises:
      VocabularyMismatchError: the models do not share a tokenizer.
      ConfigurationError: a number that cannot work.
    """

    def __init__(
        self,
        student: Any,
        teacher: Any | Mapping[str | None, Any] = None,
        *,
        draft_length: int | str = DEFAULT_DRAFT_LENGTH,
        support_size: int = DEFAULT_SUPPORT_SIZE,
        vocabulary: Vocabulary | None = None,
        limits: Limits = Limits(),  # noqa: B008 (frozen)
    ) -> None:
        if support_size < 1:
            raise ConfigurationError(f"rollout.support_size is {support_size}; it must be at least 1.")
        self.models = ModelSet.of(student, teacher, vocabulary=vocabulary)
        self.support_size = support_size
        self.limits = limits
        self._draft_lengths = DraftLengths(self.models, draft_length)

    @property
    def student(self) -> LanguageModel:
        """The model that samples."""
        return self.models.student

    @property
    def teacher(self) -> LanguageModel | None:
        """The teacher of prompts that name none."""
        return self.models.teacher

    @property
    def vocabulary(self) -> Vocabulary:
        """What the models share."""
        return self.models.vocabulary

    def generate(
        self,
        policy: Policy,
        prompts: Sequence[Sequence[int] | Prompt],
        *,
        max_new_tokens: int,
        num_samples: int = 1,
        seed: int = 0,
        step: int = 0,
        records_statistics: bool = True,
    ) -> list[Rollout]:
        """Sample `num_samples` answers to every prompt, each distributed exactly as the policy's product of mu.

        Args:
          policy: with its schedules resolved (`policy.at(step)`).
          prompts: token ids, or `Prompt`s where the teacher reads another context.
          (the others as in `Request`)
        Returns:
          rollouts ordered by prompt, then by sample.
        Raises:
          ConfigurationError: the policy needs a teacher and the engine has none; numbers below 1; one answer does not
            fit into `limits.cache_bytes`.
          DataError: an empty prompt, one that leaves no room in a model's context, or a token it has no embedding for.
        """
        ready = [p if isinstance(p, Prompt) else Prompt(list(p)) for p in prompts]
        return self.answer(policy, Request(ready, max_new_tokens, num_samples, seed, step, records_statistics))

    def refusal(self, policy: Policy) -> str | None:
        if policy.is_offline:
            return (
                f"the policy {policy} takes answers that exist and picks no token, so nothing can be sampled from it. "
                "Train with it, or choose a policy that samples, such as 'student'."
            )
        if policy.edits_answers:
            return (
                f"the policy {policy} changes finished answers, and this engine draws tokens one by one. Train with "
                "it, or choose a policy that samples, such as 'student'."
            )
        if policy.needs_teacher and not self.models.teachers:
            return (
                f"the policy {policy} asks the teacher at every token, but this engine has only a student. "
                "Give the engine a teacher, or use the student policy."
            )
        return None

    def sync(self, policy: Policy, step: int) -> None:
        """The student here is the one that learns."""

    @torch.no_grad()
    def answer(self, policy: Policy, request: Request) -> list[Rollout]:
        """See `Engine.answer` and `generate`."""
        check_served(self, policy)
        # Answers with statistics are there to be scored, so their teacher will read them if it does not take part.
        check_prompts(self.models, request, with_teacher=policy.needs_teacher or request.records_statistics)
        prompts = request.prompts
        if not prompts:
            return []
        rollouts: list[Rollout] = []
        names = [prompt.teacher_name if policy.needs_teacher else None for prompt in prompts]
        with self.student.weights_fixed():
            for name in dict.fromkeys(names):
                places = [place for place, named in enumerate(names) if named == name]
                # A prompt's stream is its place among all prompts, whichever teacher it has.
                own = [replace(prompts[i], stream=prompts[i].stream_at(i)) for i in places]
                made = self._decode(policy, name, replace(request, prompts=own))
                rollouts += [replace(rollout, prompt_index=places[rollout.prompt_index]) for rollout in made]
        return sorted(rollouts, key=lambda rollout: (rollout.prompt_index, rollout.sample_index))

    def score(self, rollouts: Sequence[Rollout], *, keep_hidden: bool = False) -> list[Rollout]:
        """Let each rollout's teacher read it when it is finished; see `LocalScorer`."""
        scorer = LocalScorer(self.models.teachers, self.vocabulary, self.limits.score_tokens)
        return scorer.score(rollouts, keep_hidden=keep_hidden)

    def rows_that_fit(self, prompts: Sequence[Prompt], max_new_tokens: int, *, with_teacher: bool) -> int:
        """How many answers to such prompts may be decoded at once: `max_rows`, or what the byte budget holds.

        Raises:
          ConfigurationError: not even one answer at the length limit fits.
        """
        budget = self.limits.cache_bytes
        if budget is None and self.student.device.type == "cuda":
            budget = int(CACHE_SHARE * torch.cuda.get_device_properties(self.student.device).total_memory)
        if budget is None:
            return self.limits.max_rows
        longest = max(prompt.longest for prompt in prompts)
        num_drafted = min(self._draft_lengths.longest if with_teacher else 1, max_new_tokens)
        slots = slots_of(longest, max_new_tokens, num_drafted)

        def bytes_of(model: LanguageModel) -> int:
            return slots * model.cache_bytes_per_slot + model.cache_bytes_per_row

        row_bytes = bytes_of(self.student)
        if with_teacher:
            names = {prompt.teacher_name for prompt in prompts}
            row_bytes += max(bytes_of(self.models.teacher_named(name)) for name in names)
        if row_bytes > budget:
            raise ConfigurationError(
                f"one answer of {max_new_tokens} tokens to a prompt of {longest} needs {row_bytes / 2**30:.3g} GiB of "
                f"cache, but rollout.cache_gib allows {budget / 2**30:.3g}. Raise it, lower rollout.max_new_tokens, or "
                "load the models in bfloat16."
            )
        return min(self.limits.max_rows, budget // row_bytes)

    def _decode(self, policy: Policy, name: str | None, request: Request) -> list[Rollout]:
        """Answers to prompts that have the same teacher, the one of this name where the policy asks any."""
        teacher = self.models.teacher_named(name) if policy.needs_teacher else None
        num_rows = self.rows_that_fit(request.prompts, request.max_new_tokens, with_teacher=teacher is not None)
        settings = DecodingSettings(
            num_rows=min(num_rows, request.num_rollouts),
            support_size=self.support_size if request.records_statistics else 0,
            prefill_tokens=self.limits.score_tokens,
            draft_length=None if teacher is None else self._draft_lengths.for_call(name),
        )
        return Decoding(self.student, teacher, self.vocabulary, policy, request, settings).run()
