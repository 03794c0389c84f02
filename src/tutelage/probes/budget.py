"""What does a KL budget buy?  Teacher support against reward, one point per budget (TRB, arXiv 2605.31159)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from tutelage.diagnostics import rollout_metrics, teacher_support_auroc
from tutelage.errors import ConfigurationError
from tutelage.evaluation import bootstrap_interval
from tutelage.policies import TrustRegion
from tutelage.probes.parts import ProbeParts
from tutelage.rollout import derive_seed

__all__ = ["BudgetPoint", "probe_budget"]


@dataclass(frozen=True)
class BudgetPoint:
    """Pooled statistics of the rollouts under one budget; names as in docs/usage/metrics.md.

    Fields:
      kl_radius: the budget, nats per token; 0 = the student's own rollouts.
      teacher_logprob, reward, kl_used, blend_mean: means; the last two None at budget 0.
      teacher_support_auroc: over all rollouts at once; None where all are right or all wrong.
      teacher_logprob_interval: 95% bootstrap interval over prompts of the mean over prompts (each prompt as heavy as
        another, while `teacher_logprob` weighs tokens); None where the teacher rules out a sampled token.
      reward_interval: the same of the reward.
    """

    kl_radius: float
    teacher_logprob: float | None
    teacher_logprob_interval: tuple[float, float] | None
    reward: float
    reward_interval: tuple[float, float]
    teacher_support_auroc: float | None
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
        rollouts = parts.engine.score(rollouts)
    correct = parts.judge(rollouts)
    metrics = rollout_metrics(rollouts, rewards=[float(each) for each in correct])
    rewards: dict[int, list[float]] = {}
    support: dict[int, list[float]] = {}
    for rollout, is_correct in zip(rollouts, correct, strict=True):
        assert rollout.teacher_logprobs is not None
        rewards.setdefault(rollout.prompt_index, []).append(float(is_correct))
        support.setdefault(rollout.prompt_index, []).extend(rollout.teacher_logprobs.double().tolist())
    is_finite = "teacher_logprob" in metrics
    return BudgetPoint(
        kl_radius=float(policy.kl_radius),  # type: ignore[arg-type]  # a number: the probe made it from one
        teacher_logprob=metrics.get("teacher_logprob"),
        teacher_logprob_interval=bootstrap_interval([fmean(each) for each in support.values()]) if is_finite else None,
        reward=metrics["reward"],
        reward_interval=bootstrap_interval([fmean(each) for each in rewards.values()]),
        teacher_support_auroc=teacher_support_auroc(rollouts, correct),
        kl_used=metrics.get("kl_used"),
        blend_mean=metrics.get("blend_mean"),
    )
