"""What is kept of two next-token distributions once a token is chosen, the same for sampling and for scoring."""

from __future__ import annotations

from torch import Tensor

from tutelage.distributions import entropy, gather_logprobs, tail_logprobs

__all__ = ["reference_statistics", "student_statistics", "teacher_statistics", "teacher_top_statistics"]


def student_statistics(logprobs_NV: Tensor, tokens_N: Tensor, support_size: int) -> dict[str, Tensor]:
    """The student's log-probability, entropy and top-K support ("actor support") at each position.

    Args:
      logprobs_NV: log p, normalised.
      tokens_N: the token that was chosen.
      support_size: K; never more than V tokens are kept.
    Returns:
      fields of `Rollout` by their paths, each [N] or [N, K].
    """
    top = logprobs_NV.topk(min(support_size, logprobs_NV.shape[-1]), dim=-1)
    return {
        "student.logprobs_T": gather_logprobs(logprobs_NV, tokens_N),
        "student.entropy_T": entropy(logprobs_NV),
        "student.support_logprobs_TK": top.values,
        "support_ids": top.indices.int(),
    }


def teacher_statistics(logprobs_NV: Tensor, tokens_N: Tensor, support_ids_NK: Tensor) -> dict[str, Tensor]:
    """The teacher's log-probability and entropy, and its view of the student's support.

    Args:
      logprobs_NV: log q, normalised.
      tokens_N: the token that was chosen.
      support_ids_NK: the student's support.
    Returns:
      fields of `Rollout` by their paths, each [N] or [N, K].
    """
    support_ids_NK = support_ids_NK.long()
    own_ids_NK = logprobs_NV.topk(support_ids_NK.shape[-1], dim=-1).indices
    shared_NK = (support_ids_NK[:, :, None] == own_ids_NK[:, None, :]).any(-1)
    return {
        "teacher.logprobs_T": gather_logprobs(logprobs_NV, tokens_N),
        "teacher.entropy_T": entropy(logprobs_NV),
        "teacher.support_logprobs_TK": logprobs_NV.gather(-1, support_ids_NK),
        "teacher.tail_logprobs_T": tail_logprobs(logprobs_NV, support_ids_NK),
        "support_is_shared": shared_NK,
    }


def teacher_top_statistics(logprobs_NV: Tensor, tokens_N: Tensor, top_k: int) -> dict[str, Tensor]:
    """The teacher's log-probability, entropy and own top K, which needs no student.

    Args:
      logprobs_NV: log q, normalised.
      tokens_N: the token that is there.
      top_k: K; never more than V tokens are kept.
    Returns:
      fields of `Rollout` by their paths, each [N] or [N, K].
    """
    top = logprobs_NV.topk(min(top_k, logprobs_NV.shape[-1]), dim=-1)
    return {
        "teacher.logprobs_T": gather_logprobs(logprobs_NV, tokens_N),
        "teacher.entropy_T": entropy(logprobs_NV),
        "teacher.top.support_ids": top.indices.int(),
        "teacher.top.logprobs": top.values,
        "teacher.top.tail_logprobs": tail_logprobs(logprobs_NV, top.indices),
    }


def reference_statistics(logprobs_NV: Tensor, tokens_N: Tensor, support_ids_NK: Tensor) -> dict[str, Tensor]:
    """A third model's log-probability, and its view of the student's support.

    Args:
      logprobs_NV: its log-probabilities, normalised.
      (the others as in `teacher_statistics`)
    """
    support_ids_NK = support_ids_NK.long()
    return {
        "reference.logprobs_T": gather_logprobs(logprobs_NV, tokens_N),
        "reference.support_logprobs_TK": logprobs_NV.gather(-1, support_ids_NK),
        "reference.tail_logprobs_T": tail_logprobs(logprobs_NV, support_ids_NK),
    }
