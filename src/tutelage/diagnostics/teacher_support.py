"""Does the teacher's score of a whole rollout agree with the verifier's verdict?  Single tokens are not compared."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tutelage.errors import DataError
from tutelage.types import Rollout

__all__ = ["auroc", "support_score", "teacher_support_auroc"]


def support_score(rollout: Rollout) -> float:
    """mean_t [log q(y_t) - log p(y_t)] of a rollout that the teacher has read; NaN where it has no token."""
    assert rollout.teacher_logprobs is not None
    return float((rollout.teacher_logprobs.double() - rollout.student_logprobs.double()).mean())


def teacher_support_auroc(rollouts: Sequence[Rollout], correct: Sequence[bool]) -> float | None:
    """Chance that a correct rollout scores above an incorrect one, where the score is the teacher's support.

    score(y) = mean_t [log q(y_t) - log p(y_t)],   AUROC = P(score_correct > score_incorrect) + P(equal) / 2
    (TRB, arXiv 2605.31159, warm-up diagnostics; arXiv 2604.13016, appendix B)

    1 = the teacher ranks all correct rollouts first, 1/2 = it cannot tell. A high value is no better training signal:
    in TRB it falls as the budget grows, while reward rises. Rollouts without a token, or with one that is impossible
    for both models, have no score and are left out.

    Args:
      rollouts: scored by the teacher.
      correct: the verifier's verdict on each.
    Returns:
      A number in [0, 1]; None where either class has no rollout.
    """
    if len(correct) != len(rollouts):
        raise DataError(
            f"Got {len(correct)} verdicts for {len(rollouts)} rollouts; expected one each. Pass them in rollout order."
        )
    for rollout in rollouts:
        if rollout.teacher_logprobs is None:
            raise DataError(
                f"Sample {rollout.sample_index} of prompt {rollout.prompt_index} has no teacher log-probabilities; its "
                f"score compares teacher and student. Score the rollouts with the teacher first."
            )
    return auroc([support_score(rollout) for rollout in rollouts], correct)


def auroc(scores: Sequence[float], correct: Sequence[bool]) -> float | None:
    """P(score of a correct one > score of an incorrect one) + P(equal) / 2 over all pairs of the two.

    Scores that are NaN are left out; None where either class has no score.
    """
    # NaN is the one number unlike itself: no token, or log 0 - log 0.
    known = [(score, bool(label)) for score, label in zip(scores, correct, strict=True) if score == score]
    of_correct = torch.tensor([score for score, label in known if label], dtype=torch.float64)
    of_others = torch.tensor([score for score, label in known if not label], dtype=torch.float64).sort().values
    if not len(of_correct) or not len(of_others):
        return None
    num_below = torch.searchsorted(of_others, of_correct, right=False)
    num_below_or_equal = torch.searchsorted(of_others, of_correct, right=True)
    return float((num_below + num_below_or_equal).double().mean() / (2 * len(of_others)))
