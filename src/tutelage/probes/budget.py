"""What does a KL budget buy?  Teacher support against reward, one point per budget (TRB, arXiv 2605.31159)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tutelage.diagnostics import auroc, rollout_metrics, support_score
from tutelage.errors import ConfigurationError
from tutelage.evaluation import interval_of
from tutelage.policies import TrustRegion
from tutelage.probes.parts import ProbeParts
from tutelage.rollout import derive_seed
from tutelage.types import Rollout

__all__ = ["BudgetPoint", "probe_budget"]


@dataclass(frozen=True)
class BudgetPoint:
    """Pooled statistics of the rollouts under one budget; names as in docs/usage/metrics.md.

    Fields:
      kl_radius: the budget, nats per token; 0 = the student's own rollouts.
      teacher_logprob, reward, kl_used, blend_mean: means; the last two None at budget 0.
      teacher_support_auroc: over all rollouts at once; None where all are right or all wrong.
      ..._interval: 95% bootstrap interval over prompts; None where it is unknown.
    """

    kl_radius: float
    teacher_logprob: float | None
    teacher_logprob_interval: tuple[float, float] | None
    reward: float
    reward_interval: tuple[float, float]
    teacher_support_auroc: float | None
    teacher_support_auroc_interval: tuple[float, float] | None
    kl_used: float | None
    blend_mean: float | None


def probe_budget(parts: ProbeParts, radii: Sequence[float], *, num_samples: int) -> list[BudgetPoint]:
    """Roll out a trust region at each radius from the same student, with the same random numbers.

    The paper pools the first 25 steps of one run per budget, in which the student learns. Here it stands still, so the
    points show what the budget does to the rollouts and nothing else.
    """
    if not parts.prompts or num_samples < 1:
        raise ConfigurationError(
            f"{len(parts.prompts)} prompts with {num_samples} samples; expected at least 1 of each. Raise them."
        )
    return [_point(parts, TrustRegion(radius), num_samples) for radius in radii]


def _point(parts: ProbeParts, policy: TrustRegion, num_samples: int) -> BudgetPoint:
    rollouts = parts.engine.generate(
        policy.at(0),
        parts.prompts,
        max_new_tokens=parts.max_new_tokens,
        num_samples=num_samples,
        seed=derive_seed(parts.seed, "probe"),
    )
    if not rollouts[0].is_scored:
        rollouts = parts.scorer.score(rollouts)
    correct = parts.judge(rollouts)
    metrics = rollout_metrics(rollouts, rewards=[float(each) for each in correct])
    samples: dict[int, list[int]] = {}
    for place, rollout in enumerate(rollouts):
        samples.setdefault(rollout.prompt_index, []).append(place)
    by_prompt = [np.array(places) for places in samples.values()]
    sums, counts = np.array([_support(rollout) for rollout in rollouts]).T
    scores, right = np.array([support_score(rollout) for rollout in rollouts]), np.array(correct, dtype=bool)

    def interval(statistic: Callable[[NDArray[np.integer]], float | None]) -> tuple[float, float] | None:
        return interval_of(lambda drawn_P: statistic(np.concatenate([by_prompt[i] for i in drawn_P])), len(by_prompt))

    is_finite = "teacher_logprob" in metrics
    reward_interval = interval(lambda drawn: float(right[drawn].mean()))
    assert reward_interval is not None
    return BudgetPoint(
        kl_radius=float(policy.kl_radius),  # type: ignore[arg-type]  # a number: the probe made it from one
        teacher_logprob=metrics.get("teacher_logprob"),
        teacher_logprob_interval=interval(lambda drawn: sums[drawn].sum() / counts[drawn].sum()) if is_finite else None,
        reward=metrics["reward"],
        reward_interval=reward_interval,
        teacher_support_auroc=auroc(scores.tolist(), correct),
        teacher_support_auroc_interval=interval(lambda drawn: auroc(scores[drawn].tolist(), right[drawn].tolist())),
        kl_used=metrics.get("kl_used"),
        blend_mean=metrics.get("blend_mean"),
    )


def _support(rollout: Rollout) -> tuple[float, int]:
    """Sum of the teacher's log-probabilities of a rollout, and its tokens."""
    assert rollout.teacher_logprobs is not None
    return float(rollout.teacher_logprobs.double().sum()), len(rollout)
