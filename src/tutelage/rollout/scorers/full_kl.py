"""What does the teacher think of answers to held-out problems, and how far is the student from it there?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tutelage.distributions import kl_divergence, normalise
from tutelage.models import LanguageModel, ModelSet, teacher_named
from tutelage.rollout.reading import batches_by_tokens, response_hidden, tokens_per_chunk
from tutelage.rollout.scorers.base import Scorer, by_teacher
from tutelage.rollout.sharing import without_hidden
from tutelage.types import Batch, Rollout

__all__ = ["score_with_full_kl"]


def score_with_full_kl(scorer: Scorer, models: ModelSet, max_tokens: int, rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Copies of the student's own answers as the scorer has read them, with KL(p || q) over the whole vocabulary.

    Where the teacher's head is here, `teacher.reverse_kl_T` has it for every token. A recorded support is no
    substitute: with a student of 6 nats of entropy, the 16 most probable tokens and one event for the rest had a third
    of the KL. A scorer that keeps no hidden states, since its teacher is a server, leaves the rollouts without it.

    Args:
      models: the student that answered, and the scorer's teachers.
      max_tokens: most tokens in one forward of the student.
    """
    scored = scorer.score(rollouts, keep_hidden=True)
    if any(rollout.tokenwise("teacher.hidden_TD") is None for rollout in scored):
        return scored
    return by_teacher(scored, lambda name, own: _with_kl(models, teacher_named(models.teachers, name), max_tokens, own))


@torch.no_grad()
def _with_kl(models: ModelSet, teacher: LanguageModel, max_tokens: int, rollouts: Sequence[Rollout]) -> list[Rollout]:
    """The rollouts with KL(p || q) of each token in place of the teacher's hidden states."""
    student, vocabulary = models.student, models.vocabulary
    found = list(rollouts)
    sequences = [(rollout.prompt_tokens, rollout.response_tokens) for rollout in rollouts]
    for batch in batches_by_tokens(sequences, max_tokens):
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
