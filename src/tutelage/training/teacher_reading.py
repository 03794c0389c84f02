"""What does the teacher think of answers to held-out problems, and how far is the student from it there?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tutelage.distributions import kl_divergence, normalise
from tutelage.models import LanguageModel, teacher_named
from tutelage.rollout.reading import batches_by_tokens, response_hidden, tokens_per_chunk
from tutelage.rollout.scorers.base import by_teacher
from tutelage.rollout.sharing import without_hidden
from tutelage.training.collect import BatchSource
from tutelage.types import Batch, Rollout

__all__ = ["read_by_teacher"]


def read_by_teacher(source: BatchSource, rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Copies of the rollouts with the teacher's reading of them.

    Where the teacher's head is here, `teacher.reverse_kl_T` is there too: KL(p || q) over the whole vocabulary at every
    token. A recorded support is no substitute for it. With a student of 6 nats of entropy, the 16 most probable tokens
    and one event for the rest had a third of the KL. A teacher that is a server, or in pieces on several cards, leaves
    it at that.
    """
    if source.runtime.reads_teacher_together:
        return source.scorer.score(rollouts)
    scored = source.scorer.score(rollouts, keep_hidden=True)
    if any(rollout.tokenwise("teacher.hidden_TD") is None for rollout in scored):
        return scored
    return by_teacher(scored, lambda name, own: _with_kl(source, teacher_named(source.models.teachers, name), own))


@torch.no_grad()
def _with_kl(source: BatchSource, teacher: LanguageModel, rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The rollouts with KL(p || q) of each token in place of the teacher's hidden states."""
    student, vocabulary = source.models.student, source.models.vocabulary
    found = list(rollouts)
    sequences = [(rollout.prompt_tokens, rollout.response_tokens) for rollout in rollouts]
    for batch in batches_by_tokens(sequences, source.rollout.score_tokens):
        student_ND = response_hidden(student, [sequences[i] for i in batch])
        teacher_ND = Batch([rollouts[i] for i in batch]).joined("teacher.hidden_TD").to(student_ND.device)
        pieces: list[Tensor] = []
        size = tokens_per_chunk(vocabulary)
        for first in range(0, len(student_ND), size):
            student_NV = vocabulary.shared_logits(student.logits(student_ND[first : first + size]))
            teacher_NV = vocabulary.shared_logits(teacher.logits(teacher_ND[first : first + size]))
            pieces.append(kl_divergence(normalise(student_NV), normalise(teacher_NV)).cpu())
        kl_N, first = torch.cat(pieces), 0
        for i in batch:
            kl_T = kl_N[first : first + len(rollouts[i])].clone()
            found[i] = without_hidden(rollouts[i]).with_tokenwise({"teacher.reverse_kl_T": kl_T})
            first += len(kl_T)
    return found
