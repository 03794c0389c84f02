"""From rollouts to gradients: one mean over all response tokens of the global batch.

The denominator is fixed before the first micro-batch is seen, so the loss and its gradient do not depend on how the
batch is cut up, nor on how many processes share it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.distributions import gather_logprobs, normalise
from tutelage.divergences import Divergence, chunked_divergence
from tutelage.errors import ConfigurationError, EmptyBatchError
from tutelage.models import LanguageModel, Vocabulary
from tutelage.rollout.scoring import batches_by_tokens, response_hidden, tokens_per_chunk
from tutelage.targets import TargetRule
from tutelage.types import DenseTarget, Rollout, SparseTarget, Target

__all__ = ["BatchLoss", "Objective"]


@dataclass(frozen=True)
class BatchLoss:
    """What one backward pass over a batch of rollouts found.

    Fields:
      loss: nats per response token, the mean over the global batch.
      num_tokens: response tokens of the global batch, the loss's denominator.
      logprob_mismatch: mean |log p at the update - log p at the rollout| of the sampled tokens; rounding only, as long
        as rollout and update see the same weights and the same distribution.
    """

    loss: float
    num_tokens: int
    logprob_mismatch: float


@dataclass(frozen=True)
class Objective:
    """A target seen through a divergence, for one pair of models.

    Fields:
      student, teacher, vocabulary: the models; the teacher is asked only where the divergence needs it on all tokens.
      target: what to imitate, with its schedules resolved.
      divergence: how far, through which support.
      micro_batch_tokens: most tokens in one forward and backward.
      chunk_tokens: response tokens that go through the head at once; None = as many as make 256 MiB of logits.
    """

    student: LanguageModel
    teacher: LanguageModel | None
    vocabulary: Vocabulary
    target: TargetRule
    divergence: Divergence
    micro_batch_tokens: int = 16_384
    chunk_tokens: int | None = None

    def backward(
        self, rollouts: Sequence[Rollout], all_sum: Callable[[float], float] = lambda value: value
    ) -> BatchLoss:
        """Add the gradient of the batch's mean loss to the student's parameters.

        L = (1 / N) sum_rollouts sum_t D(p_t, target_t),   N = response tokens of the global batch

        With a divergence that `imitates_tokens`, D is its value at the sampled token, and no target is looked at.

        The stop token counts like any other; nothing behind it exists.

        Raises:
          EmptyBatchError: there is no response token.
        """
        num_tokens = int(all_sum(sum(len(rollout) for rollout in rollouts)))
        if num_tokens == 0:
            raise EmptyBatchError(
                "the batch has no response token, so a mean loss does not exist. Check max_new_tokens and the prompts."
            )
        total, mismatch = 0.0, 0.0
        sequences = [(rollout.prompt_tokens, rollout.response_tokens) for rollout in rollouts if len(rollout)]
        with_tokens = [rollout for rollout in rollouts if len(rollout)]
        for batch in batches_by_tokens(sequences, self.micro_batch_tokens):
            values = self._per_token([with_tokens[i] for i in batch])
            loss = values["divergence"].sum() / num_tokens
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
            mismatch += float(values["logprob_mismatch"].sum()) / num_tokens
        return BatchLoss(all_sum(total), num_tokens, all_sum(mismatch))

    def _per_token(self, rollouts: Sequence[Rollout]) -> dict[str, Tensor]:
        """Divergence of every response token, [N], with a graph to the student's parameters."""
        hidden_ND = response_hidden(self.student, [(r.prompt_tokens, r.response_tokens) for r in rollouts])
        device = hidden_ND.device
        tokens_N = torch.tensor([token for r in rollouts for token in r.response_tokens], device=device)
        sampled_N = torch.cat([r.student_logprobs for r in rollouts]).to(device)
        targets = self._targets(rollouts, device)

        def per_sampled_token(hidden_nD: Tensor, span: slice) -> dict[str, Tensor]:
            logprobs_nV = normalise(self.vocabulary.canonical(self.student.logits(hidden_nD)))
            now_n = gather_logprobs(logprobs_nV, tokens_N[span])
            return {
                "divergence": self.divergence.of_tokens(now_n),
                "logprob_mismatch": (now_n.detach() - sampled_N[span]).abs(),
            }

        def per_token(hidden_nD: Tensor, span: slice) -> dict[str, Tensor]:
            logits_nV = self.vocabulary.canonical(self.student.logits(hidden_nD))
            student_logprobs, teacher_logprobs = self.divergence.window.events(logits_nV, targets(span))
            # What to imitate is a fixed point of this update: no gradient flows into it.
            target_logprobs = self.target(student_logprobs, teacher_logprobs).detach()
            with torch.no_grad():
                now_n = gather_logprobs(normalise(logits_nV), tokens_N[span])
            return {
                "divergence": self.divergence.between(student_logprobs, target_logprobs),
                "logprob_mismatch": (now_n - sampled_N[span]).abs(),
            }

        chunk = self.chunk_tokens or tokens_per_chunk(self.vocabulary)
        return chunked_divergence(per_sampled_token if self.divergence.imitates_tokens else per_token, hidden_ND, chunk)

    def _targets(self, rollouts: Sequence[Rollout], device: torch.device) -> Callable[[slice], Target]:
        """The teacher at a span of the response tokens: as recorded where that suffices, asked otherwise."""
        if not self.divergence.needs_full_target:
            return _recorded_targets(rollouts, device)
        if self.teacher is None:
            raise ConfigurationError(
                "divergence.support is 'full', which needs the teacher's whole distribution, but no teacher is loaded. "
                "Load one, or use divergence.support = 'student_top_k'."
            )
        teacher, vocabulary = self.teacher, self.vocabulary
        hidden_ND = self._teacher_hidden(rollouts, teacher)

        def asked(span: slice) -> Target:
            with torch.no_grad():
                hidden_nD = hidden_ND[span].to(teacher.device)
                return DenseTarget(vocabulary.canonical(teacher.logits(hidden_nD)).to(device))

        return asked

    @staticmethod
    @torch.no_grad()
    def _teacher_hidden(rollouts: Sequence[Rollout], teacher: LanguageModel) -> Tensor:
        """What the teacher's head reads, [N, D], as kept by the scoring or read now: smaller than logits, [N, V]."""
        kept = [r.teacher_hidden for r in rollouts if r.teacher_hidden is not None]
        if len(kept) == len(rollouts):
            return torch.cat(kept)
        return response_hidden(teacher, [(r.tokens_for_teacher, r.response_tokens) for r in rollouts])


def _recorded_targets(rollouts: Sequence[Rollout], device: torch.device) -> Callable[[slice], Target]:
    def joined(name: str) -> Tensor:
        parts = [getattr(rollout, name) for rollout in rollouts]
        assert all(part is not None for part in parts), f"rollouts were not scored: {name} is missing"
        return torch.cat(parts).to(device)

    ids_NK, logprobs_NK = joined("support_ids"), joined("teacher_support_logprobs")
    tail_N = joined("teacher_tail_logprobs")
    return lambda span: SparseTarget(ids_NK[span], logprobs_NK[span], tail_N[span])
