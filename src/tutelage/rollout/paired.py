"""Decode with student and teacher side by side, from any policy.

A policy is a pure function of two next-token distributions, so one loop serves them all: project both models' last
hidden states, blend, draw, record, feed the drawn token back. The teacher runs only if the policy asks for it.

Axis letters: P prompts, G samples per prompt, B rows still decoding, T positions, V vocabulary, K support tokens.

Left out on purpose: which prompts, and what the tokens are for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tutelage.distributions import NO_TOKEN, gather_logprobs, normalise, sample
from tutelage.errors import ConfigurationError, DataError, NonFiniteError
from tutelage.models import LanguageModel, RaggedCache, Vocabulary, align, as_language_model
from tutelage.policies import Policy
from tutelage.rollout.records import Records
from tutelage.rollout.scoring import score
from tutelage.rollout.statistics import student_statistics, teacher_statistics
from tutelage.rollout.streams import uniforms
from tutelage.types import Prompt, Rollout

__all__ = ["PairedEngine"]

# Random numbers are made for this many positions at a time, because one small call costs as much as one large one.
POSITIONS_PER_DRAW = 64
# Rows are dropped from the caches once at least this share of them is finished; dropping copies both caches.
SHARE_WORTH_DROPPING = 0.125


@dataclass
class Decoder:
    """One model in the middle of decoding: its cache, and where each row's next token goes."""

    model: LanguageModel
    vocabulary: Vocabulary
    cache: RaggedCache
    lengths_B: Tensor
    extent: int
    logits_BV: Tensor

    @classmethod
    def prefill(cls, model: LanguageModel, vocabulary: Vocabulary, prompts: Sequence[Sequence[int]]) -> Decoder:
        """Read right-padded prompts and stand ready with the logits behind each prompt's last token."""
        lengths_P = torch.tensor([len(prompt) for prompt in prompts])
        longest = int(lengths_P.max())
        tokens_PT = torch.zeros(len(prompts), longest, dtype=torch.int64)
        for row, prompt in enumerate(prompts):
            tokens_PT[row, : len(prompt)] = torch.as_tensor(prompt)
        lengths_P, tokens_PT = lengths_P.to(model.device), tokens_PT.to(model.device)
        positions_PT = torch.arange(longest, device=model.device).expand(len(prompts), longest)
        cache = model.new_cache()
        hidden_PTD = model.hidden_cached(tokens_PT, positions_PT, cache, longest, is_prefill=True)
        last_PD = hidden_PTD[torch.arange(len(prompts), device=model.device), lengths_P - 1]
        logits_PV = vocabulary.canonical(model.logits(last_PD))
        return cls(model, vocabulary, cache, lengths_P, longest, logits_PV)

    def advance(self, tokens_BT: Tensor) -> Tensor:
        """Feed tokens to every row and return the logits behind each of them, [B, T, V]."""
        tokens_BT = tokens_BT.to(self.model.device)
        num_new = tokens_BT.shape[1]
        positions_BT = self.lengths_B[:, None] + torch.arange(num_new, device=self.model.device)
        # An upper bound kept on the host: reading the true maximum would wait for the device at every token.
        self.extent += num_new
        hidden_BTD = self.model.hidden_cached(tokens_BT, positions_BT, self.cache, self.extent)
        self.lengths_B = self.lengths_B + num_new
        logits_BTV = self.vocabulary.canonical(self.model.logits(hidden_BTD))
        self.logits_BV = logits_BTV[:, -1]
        return logits_BTV

    def select(self, rows_B: Tensor) -> None:
        """Repeat, drop or reorder rows."""
        rows_B = rows_B.to(self.model.device)
        self.cache.select(rows_B)
        self.lengths_B, self.logits_BV = self.lengths_B[rows_B], self.logits_BV[rows_B]


class PairedEngine:
    """Samples answers from a policy over a student and a teacher.

    Args:
      student: a LanguageModel or a bare `transformers` causal language model.
      teacher: the same, or None for an engine that can only follow the student.
      draft_length: tokens per round. 1 = lock-step: one forward of each model per token.
      vocabulary: shared vocabulary; None = worked out from the two models.
      support_size: K, size of the student's support on which the teacher's log-probabilities are kept.
      max_rows: most rows decoded at once; more prompts than that go in several batches, with the same result.
      score_tokens: most padded tokens in one scoring forward of the teacher.
    Raises:
      VocabularyMismatchError: the models do not share a tokenizer.
      ConfigurationError: a number that cannot work.
    """

    def __init__(
        self,
        student: Any,
        teacher: Any = None,
        *,
        draft_length: int = 1,
        vocabulary: Vocabulary | None = None,
        support_size: int = 16,
        max_rows: int = 256,
        score_tokens: int = 16_384,
    ) -> None:
        if draft_length != 1:
            raise ConfigurationError(f"draft_length is {draft_length}; this version decodes in lock-step only. Use 1.")
        for name, value in (("support_size", support_size), ("max_rows", max_rows), ("score_tokens", score_tokens)):
            if value < 1:
                raise ConfigurationError(f"rollout.{name} is {value}; it must be at least 1.")
        self.student = as_language_model(student, "student")
        self.teacher = None if teacher is None else as_language_model(teacher, "teacher")
        self.vocabulary = vocabulary or align(self.student, self.teacher)
        self.support_size = support_size
        self.max_rows = max_rows
        self.score_tokens = score_tokens

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
          ConfigurationError: the policy needs a teacher and the engine has none; numbers below 1.
          DataError: an empty prompt, or one that leaves no room in a model's context.
        """
        if policy.needs_teacher and self.teacher is None:
            raise ConfigurationError(
                f"the policy {policy} asks the teacher at every token, but this engine has only a student. "
                "Give the engine a teacher, or use the student policy."
            )
        if max_new_tokens < 1 or num_samples < 1:
            raise ConfigurationError(
                f"max_new_tokens is {max_new_tokens} and num_samples is {num_samples}; both must be at least 1."
            )
        ready = [p if isinstance(p, Prompt) else Prompt(list(p)) for p in prompts]
        self._check_lengths(ready, max_new_tokens)
        rollouts: list[Rollout] = []
        prompts_per_batch = max(1, self.max_rows // num_samples)
        for first in range(0, len(ready), prompts_per_batch):
            batch = ready[first : first + prompts_per_batch]
            rollouts += self._generate_batch(
                policy, batch, first, max_new_tokens, num_samples, seed, step, records_statistics
            )
        return rollouts

    def score(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """Let the teacher read finished rollouts in batched forwards; see `rollout.scoring.score`."""
        if self.teacher is None:
            raise ConfigurationError("scoring needs a teacher, but this engine has only a student. Give it one.")
        return score(self.teacher, self.vocabulary, rollouts, max_tokens=self.score_tokens)

    def _generate_batch(
        self,
        policy: Policy,
        prompts: list[Prompt],
        first_prompt: int,
        max_new_tokens: int,
        num_samples: int,
        seed: int,
        step: int,
        records_statistics: bool,
    ) -> list[Rollout]:
        decoders = self._prefill(policy, prompts)
        student, teacher = decoders[0], decoders[1] if len(decoders) > 1 else None
        num_rows = len(prompts) * num_samples
        # Samples of one prompt share its prefill: the row is repeated, not recomputed.
        for decoder in decoders:
            decoder.select(torch.arange(len(prompts)).repeat_interleave(num_samples))
        numbers_P = torch.tensor([first_prompt + i if p.stream is None else p.stream for i, p in enumerate(prompts)])
        streams_B = numbers_P.repeat_interleave(num_samples)
        samples_B = torch.arange(num_samples).repeat(len(prompts))

        records = Records(num_rows, max_new_tokens, self.student.device)
        rows_B = torch.arange(num_rows, device=self.student.device)  # which row of the records each live row is
        alive_B = torch.ones(num_rows, dtype=torch.bool, device=self.student.device)
        for position in range(max_new_tokens):
            if position % POSITIONS_PER_DRAW == 0:
                places = torch.arange(position, position + POSITIONS_PER_DRAW)
                uniforms_BT = uniforms(seed, step, streams_B, samples_B, places).to(self.student.device)
            student_logits_BV = student.logits_BV
            teacher_logits_BV = None if teacher is None else teacher.logits_BV.to(student_logits_BV.device)
            proposal = policy(student_logits_BV, teacher_logits_BV)
            drawn_B = sample(proposal.logprobs_BV, uniforms_BT[rows_B, position % POSITIONS_PER_DRAW])
            tokens_B = drawn_B.clamp_min(0)  # NO_TOKEN is refused below, where the host waits for the device anyway
            kept = {
                "tokens": tokens_B,
                "behaviour_logprobs": gather_logprobs(proposal.logprobs_BV, tokens_B),
                **proposal.diagnostics,
            }
            student_logprobs_BV = normalise(student_logits_BV)
            if records_statistics:
                kept |= student_statistics(student_logprobs_BV, tokens_B, self.support_size)
                if teacher_logits_BV is not None:
                    kept |= teacher_statistics(normalise(teacher_logits_BV), tokens_B, kept["support_ids"])
            else:
                kept["student_logprobs"] = gather_logprobs(student_logprobs_BV, tokens_B)
            # Rows that are finished but not yet dropped must not write behind their end.
            records.write(rows_B, position, alive_B, kept)

            is_stop_B = tokens_B == self.vocabulary.stop_id if self.vocabulary.stop_id is not None else ~alive_B
            records.finish(rows_B, alive_B & is_stop_B)
            alive_B = alive_B & ~is_stop_B
            num_alive, num_without_token = torch.stack([alive_B.sum(), (drawn_B == NO_TOKEN).sum()]).tolist()
            if num_without_token:
                raise NonFiniteError(
                    f"{num_without_token} answers have no next token at position {position}: the logits of the student"
                    f"{' or the teacher' if teacher is not None else ''} are NaN or all -inf there"
                )
            if num_alive == 0 or position + 1 == max_new_tokens:
                break
            if len(alive_B) - num_alive >= SHARE_WORTH_DROPPING * len(alive_B):
                keep_B = alive_B.nonzero()[:, 0]
                rows_B, tokens_B, alive_B = rows_B[keep_B], tokens_B[keep_B], alive_B[keep_B]
                for decoder in decoders:
                    decoder.select(keep_B)
            for decoder in decoders:
                decoder.advance(tokens_B[:, None])
        return records.rollouts(prompts, first_prompt, num_samples)

    def _prefill(self, policy: Policy, prompts: list[Prompt]) -> list[Decoder]:
        """The student's decoder and, if the policy asks for it, the teacher's."""
        student_prompts = [prompt.student_tokens for prompt in prompts]
        decoders = [Decoder.prefill(self.student, self.vocabulary, student_prompts)]
        if policy.needs_teacher:
            assert self.teacher is not None
            teacher_prompts = [p.student_tokens if p.teacher_tokens is None else p.teacher_tokens for p in prompts]
            decoders.append(Decoder.prefill(self.teacher, self.vocabulary, teacher_prompts))
        return decoders

    def _check_lengths(self, prompts: list[Prompt], max_new_tokens: int) -> None:
        for place, prompt in enumerate(prompts):
            for model, tokens in ((self.student, prompt.student_tokens), (self.teacher, prompt.teacher_tokens)):
                if model is None or tokens is None:
                    continue
                if len(tokens) == 0:
                    raise DataError(f"prompt {place} is empty for {model.name}; at least one token is expected.")
                limit = model.context_length
                if limit is not None and len(tokens) + max_new_tokens > limit:
                    raise DataError(
                        f"prompt {place} has {len(tokens)} tokens and {max_new_tokens} may be added, more than the "
                        f"{limit} tokens of {model.name}. Shorten the prompts or lower `max_new_tokens`."
                    )
