"""Advantages made of others: their sum, their sign, or one scaled by how hard a prompt is or what a teacher thinks."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tutelage.advantages.base import Advantage
from tutelage.advantages.group_reward import GROUP_REWARD
from tutelage.advantages.groups import group_means, on_tokens, reward_named
from tutelage.advantages.teacher_log_ratio import TeacherLogRatio
from tutelage.errors import ConfigurationError, check_inside
from tutelage.schedules import Schedule, as_schedule, plain_number
from tutelage.types import Batch, Fact

__all__ = ["Focal", "Sign", "Sum", "TeacherWeighted"]


@dataclass(frozen=True)
class Sum(Advantage):
    """A = Σ_k c_k A_k.

    KDRL (arXiv 2506.02208) is group_reward + beta · teacher_log_ratio; at ratio 1 this gives its gradient.

    Fields:
      terms: the advantages.
      coefficients: c, a number or a schedule for each; none of them = all 1.
    """

    terms: tuple[Advantage, ...]
    coefficients: tuple[float | Schedule, ...] = ()

    def __post_init__(self) -> None:
        if not self.terms:
            raise ConfigurationError("advantage.terms is empty; expected at least one advantage. Add one.")
        if self.coefficients and len(self.coefficients) != len(self.terms):
            raise ConfigurationError(
                f"advantage.coefficients has {len(self.coefficients)} numbers for {len(self.terms)} terms; expected "
                "one for each. Leave it out for 1."
            )
        for place, coefficient in enumerate(self.coefficients):
            bounds = as_schedule(coefficient, f"advantage.coefficients[{place}]").bounds()
            is_inside = all(map(math.isfinite, bounds))
            check_inside(bounds[0], f"advantage.coefficients[{place}]", is_inside, "a finite number")

    @property
    def needs(self) -> frozenset[Fact]:
        return frozenset[Fact]().union(*(term.needs for term in self.terms))

    @property
    def rewards(self) -> frozenset[str]:
        return frozenset[str]().union(*(term.rewards for term in self.terms))

    def consists_of(self, reward: str) -> bool:
        return all(term.consists_of(reward) for term in self.terms)

    @property
    def min_samples_per_prompt(self) -> int:
        return max(term.min_samples_per_prompt for term in self.terms)

    def __call__(self, batch: Batch, target_logprobs_N: Tensor) -> Tensor:
        factors = [plain_number(each, "advantage.coefficients") for each in self.coefficients] or [1.0] * len(
            self.terms
        )
        # A term with a coefficient of 0 must not count when it is infinite, either.
        parts = [
            factor * term(batch, target_logprobs_N) for factor, term in zip(factors, self.terms, strict=True) if factor
        ]
        return torch.stack(parts).sum(0) if parts else torch.zeros_like(target_logprobs_N)


@dataclass(frozen=True)
class Wrapper(Advantage):
    """Another advantage, changed.

    Fields:
      of: the other one.
    """

    of: Advantage = GROUP_REWARD

    @property
    def needs(self) -> frozenset[Fact]:
        return self.of.needs

    @property
    def rewards(self) -> frozenset[str]:
        return self.of.rewards

    def consists_of(self, reward: str) -> bool:
        return self.of.consists_of(reward)

    @property
    def min_samples_per_prompt(self) -> int:
        return self.of.min_samples_per_prompt


@dataclass(frozen=True)
class Focal(Wrapper):
    """(1 - m)^gamma A, with m the share of the prompt's answers that are right   (F-GRPO, arXiv 2602.06717)

    m = (mean R - R_wrong) / (R_right - R_wrong), cut to [0, 1]. Prompts that are mostly solved count less, since their
    groups rarely hold the rare right answers whose mass they would take away. One factor per group; at gamma = 0 it is
    the advantage itself. (1 - m)^0 is 1 also where m = 1.

    Fields:
      gamma: at least 0; a number or a schedule. The paper has 0.5 or 1.
      reward: which reward says what is right.
      wrong, right: its two values.
    """

    gamma: float | Schedule = 0.5
    reward: str = "reward"
    wrong: float = 0.0
    right: float = 1.0

    def __post_init__(self) -> None:
        lowest, largest = as_schedule(self.gamma, "advantage.gamma").bounds()
        check_inside(lowest, "advantage.gamma", lowest >= 0 and largest < math.inf, "a finite number of at least 0")
        check_inside(
            self.right, "advantage.right", self.right > self.wrong, f"more than advantage.wrong = {self.wrong}"
        )

    @property
    def needs(self) -> frozenset[Fact]:
        return super().needs | {Fact.reward, Fact.group}

    @property
    def rewards(self) -> frozenset[str]:
        return super().rewards | {self.reward}

    @property
    def min_samples_per_prompt(self) -> int:
        return max(2, self.of.min_samples_per_prompt)

    def __call__(self, batch: Batch, target_logprobs_N: Tensor) -> Tensor:
        solved_B = (reward_named(batch, self.reward) - self.wrong) / (self.right - self.wrong)
        left_B = 1 - group_means(solved_B, batch.prompts_B).clamp(0, 1)
        factors_N = on_tokens(left_B ** plain_number(self.gamma, "advantage.gamma"), batch)
        values_N = self.of(batch, target_logprobs_N)
        return factors_N.to(values_N) * values_N


@dataclass(frozen=True)
class TeacherWeighted(Wrapper):
    """A [1 - l + l clip(w, 1 - epsilon, 1 + epsilon)],  w = exp(sign(A) (log target(a) - log p(a)))

    RLSD (arXiv 2604.03128, equation 16).

    The teacher changes how much a token counts and never in which direction: A = 0 stays 0, also where the target
    finds a token impossible. Everything is taken at the rollout.

    Fields:
      share: l in [0, 1]; a number or a schedule.
      epsilon: how far a weight may be from 1.
      only_negative: weigh tokens of negative advantage only.
    """

    share: float | Schedule = 0.5
    epsilon: float = 0.2
    only_negative: bool = False

    def __post_init__(self) -> None:
        lowest, largest = as_schedule(self.share, "advantage.share").bounds()
        check_inside(lowest, "advantage.share", lowest >= 0 and largest <= 1, "a share from 0 to 1")
        check_inside(self.epsilon, "advantage.epsilon", 0 <= self.epsilon < 1, "a number from 0 to below 1")

    @property
    def needs(self) -> frozenset[Fact]:
        return super().needs | {Fact.student_token, Fact.teacher_token}

    def __call__(self, batch: Batch, target_logprobs_N: Tensor) -> Tensor:
        values_N, share = self.of(batch, target_logprobs_N), plain_number(self.share, "advantage.share")
        log_ratio_N = target_logprobs_N - batch.joined("student.logprobs_T")
        signed_N = (values_N.sign() * log_ratio_N).masked_fill(values_N == 0, 0)
        ratios_N = signed_N.exp().clamp(1 - self.epsilon, 1 + self.epsilon)
        weights_N = 1 - share + share * ratios_N
        if self.only_negative:
            weights_N = weights_N.masked_fill(values_N >= 0, 1)
        return values_N * weights_N


@dataclass(frozen=True)
class Sign(Wrapper):
    """size · sign(A): which way, and not how far. A control of the claim that sizes carry little (arXiv 2608.31046).

    Fields:
      of: the other one; of the teacher's log-ratio it says whether the teacher finds a token more probable.
      size: above 0.
    """

    of: Advantage = field(default_factory=TeacherLogRatio)
    size: float = 0.5

    def __post_init__(self) -> None:
        check_inside(self.size, "advantage.size", 0 < self.size < math.inf, "a finite number above 0")

    def __call__(self, batch: Batch, target_logprobs_N: Tensor) -> Tensor:
        return self.size * self.of(batch, target_logprobs_N).sign()
