"""What is kept of two next-token distributions once a token is chosen, the same for sampling and for scoring."""

from __future__ import annotations

from torch import Tensor

from tutelage.kernels import Rows

__all__ = ["reference_statistics", "student_statistics", "teacher_statistics", "teacher_top_statistics"]


def student_statistics(student: Rows, tokens_N: Tensor, support_size: int) -> dict[str, Tensor]:
    """The student's log-probability, entropy and top-K support ("actor support") at each position.

    Args:
      student: p at N positions.
      tokens_N: the token that was chosen.
      support_size: K; never more than V tokens are kept.
    Returns:
      fields of `Rollout` by their paths, each [N] or [N, K].
    """
    ids_NK = student.top(support_size)
    return {
        "student.logprobs_T": student.logprobs_of(tokens_N),
        "student.entropy_T": student.entropy(),
        "student.support_logprobs_TK": student.logprobs_of(ids_NK),
        "support_ids": ids_NK.int(),
    }


def teacher_statistics(teacher: Rows, tokens_N: Tensor, support_ids_NK: Tensor) -> dict[str, Tensor]:
    """The teacher's log-probability and entropy, and its view of the student's support.

    Args:
      teacher: q at N positions.
      tokens_N: the token that was chosen.
      support_ids_NK: the student's support.
    Returns:
      fields of `Rollout` by their paths, each [N] or [N, K].
    """
    support_ids_NK = support_ids_NK.long()
    own_ids_NK = teacher.top(support_ids_NK.shape[-1])
    shared_NK = (support_ids_NK[:, :, None] == own_ids_NK[:, None, :]).any(-1)
    return {
        "teacher.tail_logprobs_T": teacher.tail(support_ids_NK),
        "teacher.logprobs_T": teacher.logprobs_of(tokens_N),
        "teacher.entropy_T": teacher.entropy(),
        "teacher.support_logprobs_TK": teacher.logprobs_of(support_ids_NK),
        "support_is_shared": shared_NK,
    }


def teacher_top_statistics(teacher: Rows, tokens_N: Tensor, top_k: int) -> dict[str, Tensor]:
    """The teacher's log-probability, entropy and own top K, which needs no student.

    Args:
      teacher: q at N positions.
      tokens_N: the token that is there.
      top_k: K; never more than V tokens are kept.
    Returns:
      fields of `Rollout` by their paths, each [N] or [N, K].
    """
    ids_NK = teacher.top(top_k)
    return {
        "teacher.top.tail_logprobs": teacher.tail(ids_NK),
        "teacher.logprobs_T": teacher.logprobs_of(tokens_N),
        "teacher.entropy_T": teacher.entropy(),
        "teacher.top.support_ids": ids_NK.int(),
        "teacher.top.logprobs": teacher.logprobs_of(ids_NK),
    }


def reference_statistics(reference: Rows, tokens_N: Tensor, support_ids_NK: Tensor) -> dict[str, Tensor]:
    """A third model's log-probability, and its view of the student's support; arguments as in `teacher_statistics`."""
    support_ids_NK = support_ids_NK.long()
    return {
        "reference.tail_logprobs_T": reference.tail(support_ids_NK),
        "reference.logprobs_T": reference.logprobs_of(tokens_N),
        "reference.support_logprobs_TK": reference.logprobs_of(support_ids_NK),
    }
