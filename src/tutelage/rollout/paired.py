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
from tutelage.rollout.decoding import Decoding, Request, slots_of
from tutelage.rollout.draft_length import MAX_DRAFT_LENGTH, Costs, DraftLength, draft_length_named
from tutelage.rollout.limits import check_readable
from tutelage.rollout.offline import OfflineAnswers
from tutelage.rollout.scoring import score, score_reference
from tutelage.rollout.served_teacher import ServedTeacher
from tutelage.rollout.vllm_engine import VLLMEngine
from tutelage.types import Prompt, Rollout

__all__ = ["PairedEngine"]

# Without a byte budget, the caches may take this share of an accelerator's memory.
CACHE_SHARE = 0.5


class PairedEngine:
    """Samples answers from a policy over a student and a teacher.

    Args:
      student: a LanguageModel or a bare `transformers` causal language model.
      teacher: the same, or None for an engine that can only follow the student.
      routes: further teachers by name, each for the prompts that name it; `teacher` is for those that name none.
      reference: a third model that some targets compare with; it takes no part in the sampling.
      reference_reads: whose prompt the reference reads, "student" or "teacher".
      draft_length: tokens that the student drafts before the teacher reads them in one forward. A number; "estimated"
        (as many as pay, by the models' sizes and the acceptance so far: the same in every run); or "auto" (the same
        with measured costs: faster where the estimate is off, but with other lengths, and so another rounding, in every
        run). 1 is lock-step: one forward of each model per token, one draw from mu. All have the same distribution; all
        but 1 give the same tokens, up to rounding.
      vocabulary: shared vocabulary; None = worked out from the two models.
      support_size: K, size of the student's support on which the teacher's log-probabilities are kept.
      max_rows: most answers decoded at once; further ones take the place of those that end, with the same result.
      cache_bytes: most memory of the caches of both models. None = half of an accelerator's memory, no limit on a CPU.
      score_tokens: most tokens in one forward of the teacher over prompts or finished rollouts.
      offline: answers for the policy that samples none; None = there are none.
      student_engine: takes over wherever the policy has become the student alone.
      served_teacher: scores finished rollouts in place of a teacher here.
    Raises:
      VocabularyMismatchError: the models do not share a tokenizer.
      ConfigurationError: a number that cannot work.
    """

    def __init__(
        self,
        student: Any,
        teacher: Any = None,
        *,
        routes: Mapping[str, Any] | None = None,
        reference: Any = None,
        reference_reads: str = "student",
        draft_length: int | str = "estimated",
        vocabulary: Vocabulary | None = None,
        support_size: int = 16,
        max_rows: int = 256,
        cache_bytes: int | None = None,
        score_tokens: int = 16_384,
        offline: OfflineAnswers | None = None,
        student_engine: VLLMEngine | None = None,
        served_teacher: ServedTeacher | None = None,
    ) -> None:
        for name, value in (("support_size", support_size), ("max_rows", max_rows), ("score_tokens", score_tokens)):
            if value < 1:
                raise ConfigurationError(f"rollout.{name} is {value}; it must be at least 1.")
        self.fixed_draft_length, is_measured = draft_length_named(draft_length)
        self.models = ModelSet.of(
            student,
            {**({} if teacher is None else {None: teacher}), **(routes or {})},
            reference=reference,
            reference_reads=reference_reads,
            vocabulary=vocabulary,
        )
        self.costs = {
            name: Costs(self.student, model, is_measured=is_measured) for name, model in self.models.teachers.items()
        }
        self.support_size = support_size
        self.max_rows = max_rows
        self.cache_bytes = cache_bytes
        self.score_tokens = score_tokens
        self.offline = offline
        self.student_engine = student_engine
        self.served_teacher = served_teacher

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

    @torch.no_grad()
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
          max_new_tokens: length limit; the stop token counts.
          seed, step: with prompt, sample and position they key every draw, see `rollout.streams`.
          records_statistics: keep entropies and the teacher's view of the student's support. Off where only the
            tokens are wanted (evaluation).
        Returns:
          rollouts ordered by prompt, then by sample.
        Raises:
          ConfigurationError: the policy needs a teacher and the engine has none; numbers below 1; one answer does not
            fit into `cache_bytes`.
          DataError: an empty prompt, one that leaves no room in a model's context, or a token it has no embedding for.
        """
        if policy.needs_teacher and not self.models.teachers:
            raise ConfigurationError(
                f"the policy {policy} asks the teacher at every token, but this engine has only a student. "
                "Give the engine a teacher, or use the student policy."
            )
        if max_new_tokens < 1 or num_samples < 1:
            raise ConfigurationError(
                f"max_new_tokens is {max_new_tokens} and num_samples is {num_samples}; both must be at least 1."
            )
        ready = [p if isinstance(p, Prompt) else Prompt(list(p)) for p in prompts]
        if policy.is_offline and self.offline is not None:
            return self.offline.generate(ready, num_samples=num_samples, seed=seed, step=step)
        # Answers with statistics are there to be scored, so their teacher will read them if it does not take part.
        self._check_prompts(ready, max_new_tokens, with_teacher=policy.needs_teacher or records_statistics)
        if not ready:
            return []
        if self.student_engine is not None and not policy.needs_teacher:
            return self.student_engine.generate(
                policy,
                ready,
                max_new_tokens=max_new_tokens,
                num_samples=num_samples,
                seed=seed,
                step=step,
                records_statistics=records_statistics,
            )
        rollouts: list[Rollout] = []
        for name, places in _by_teacher([prompt.teacher_name for prompt in ready], policy.needs_teacher).items():
            teacher = self.models.teacher_named(name) if policy.needs_teacher else None
            # A prompt's stream is its place among all prompts, whichever teacher it has.
            chosen = [replace(ready[i], stream=i) if ready[i].stream is None else ready[i] for i in places]
            num_rows = self.rows_that_fit(chosen, max_new_tokens, with_teacher=teacher is not None)
            request = Request(
                prompts=chosen,
                max_new_tokens=max_new_tokens,
                num_samples=num_samples,
                seed=seed,
                step=step,
                support_size=self.support_size if records_statistics else 0,
                prefill_tokens=self.score_tokens,
            )
            drafts = None
            if teacher is not None and self.fixed_draft_length != 1:
                drafts = DraftLength(self.fixed_draft_length, self.costs[name])
            num_rows = min(num_rows, request.num_rollouts)
            made = Decoding(self.student, teacher, self.vocabulary, policy, request, num_rows, drafts).run()
            rollouts += [replace(rollout, prompt_index=places[rollout.prompt_index]) for rollout in made]
        return sorted(rollouts, key=lambda rollout: (rollout.prompt_index, rollout.sample_index))

    def score(self, rollouts: Sequence[Rollout], *, keep_hidden: bool = False) -> list[Rollout]:
        """Let each rollout's teacher read it when it is finished, in batched forwards; see `rollout.scoring.score`."""
        if self.served_teacher is not None:
            return self.served_teacher.score(rollouts)
        if not self.models.teachers:
            raise ConfigurationError("scoring needs a teacher, but this engine has only a student. Give it one.")
        scored = list(rollouts)
        for name, places in _by_teacher([rollout.teacher_name for rollout in rollouts]).items():
            read = score(
                self.models.teacher_named(name),
                self.vocabulary,
                [scored[i] for i in places],
                max_tokens=self.score_tokens,
                keep_hidden=keep_hidden,
            )
            for place, rollout in zip(places, read, strict=True):
                scored[place] = rollout
        return scored

    def score_reference(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """Let the reference read finished rollouts; see `rollout.scoring.score_reference`."""
        if self.models.reference is None:
            raise ConfigurationError(
                "the target compares with a reference, but this engine has none. Give it one, or use another target."
            )
        reads, max_tokens = self.models.reference_reads, self.score_tokens
        return score_reference(self.models.reference, self.vocabulary, rollouts, reads=reads, max_tokens=max_tokens)

    @property
    def _longest_draft(self) -> int:
        return MAX_DRAFT_LENGTH if self.fixed_draft_length is None else self.fixed_draft_length

    def rows_that_fit(self, prompts: Sequence[Prompt], max_new_tokens: int, *, with_teacher: bool) -> int:
        """How many answers to such prompts may be decoded at once: `max_rows`, or what the byte budget holds.

        Raises:
          ConfigurationError: not even one answer at the length limit fits.
        """
        budget = self.cache_bytes
        if budget is None and self.student.device.type == "cuda":
            budget = int(CACHE_SHARE * torch.cuda.get_device_properties(self.student.device).total_memory)
        if budget is None:
            return self.max_rows
        longest = max(max(len(p.student_tokens), len(p.teacher_tokens or ())) for p in prompts)
        slot_bytes = self.student.cache_bytes_per_slot
        if with_teacher:
            names = {prompt.teacher_name for prompt in prompts}
            slot_bytes += max(self.models.teacher_named(name).cache_bytes_per_slot for name in names)
        num_drafted = min(self._longest_draft if with_teacher else 1, max_new_tokens)
        row_bytes = slots_of(longest, max_new_tokens, num_drafted) * slot_bytes
        if row_bytes > budget:
            raise ConfigurationError(
                f"one answer of {max_new_tokens} tokens to a prompt of {longest} needs {row_bytes / 2**30:.3g} GiB of "
                f"cache, but rollout.cache_gib allows {budget / 2**30:.3g}. Raise it, lower rollout.max_new_tokens, or "
                "load the models in bfloat16."
            )
        return min(self.max_rows, budget // row_bytes)

    def _check_prompts(self, prompts: list[Prompt], max_new_tokens: int, *, with_teacher: bool) -> None:
        for place, prompt in enumerate(prompts):
            check_readable(self.student, prompt.student_tokens, max_new_tokens, f"prompt {place}")
            teacher = self.models.teachers.get(prompt.teacher_name) if with_teacher else None
            if teacher is not None:
                own = prompt.student_tokens if prompt.teacher_tokens is None else prompt.teacher_tokens
                check_readable(teacher, own, max_new_tokens, f"prompt {place}")


def _by_teacher(names: Sequence[str | None], is_asked: bool = True) -> dict[str | None, list[int]]:
    """Places of a list by the teacher that each names; all under None where no teacher is asked."""
    groups: dict[str | None, list[int]] = {}
    for place, name in enumerate(names):
        groups.setdefault(name if is_asked else None, []).append(place)
    return groups
