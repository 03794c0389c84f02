"""One definition for a family: D_f = sum_e q(e) f(p(e) / q(e)) with f convex and f(1) = 0; p student, q target.

A token that only one side has needs f's behaviour at the ends: q f(0) where the student lacks it, p lim f(t) / t where
the target does (Csiszar's convention). f-DPG (arXiv 2302.08215) and fdistill (arXiv 2307.15190) use members of this
family. Terms are written in p, q and their log-ratio, since q f(p / q) itself overflows where q is tiny.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import softplus

from tutelage.errors import ConfigurationError, check_inside
from tutelage.losses.base import DistributionLoss
from tutelage.losses.support import FULL_VOCABULARY, Support, seen_through
from tutelage.types import Target

__all__ = ["GENERATORS", "AlphaDivergence", "FDivergence", "TotalVariation", "f_divergence", "total_variation"]


# Terms above this power of the largest number count as infinite: 7e28 in float32.
SHARE_OF_RANGE = 0.75


class Generator(NamedTuple):
    """f, as q f(p / q) from log p and log q, with f(0) and lim f(t) / t for t -> inf.

    Fields:
      is_steep: a term can leave the range of its type though both sides have mass.
    """

    term: Callable[[Tensor, Tensor], Tensor]
    at_zero: float
    at_infinity: float
    is_steep: bool = False


def _jensen_shannon(log_p: Tensor, log_q: Tensor) -> Tensor:
    log_ratio = log_p - log_q
    return log_p.exp() * (math.log(2) - softplus(-log_ratio)) + log_q.exp() * (math.log(2) - softplus(log_ratio))


GENERATORS: dict[str, Generator] = {
    "forward_kl": Generator(lambda p, q: q.exp() * (q - p), math.inf, 0.0),
    "reverse_kl": Generator(lambda p, q: p.exp() * (p - q), 0.0, math.inf),
    "total_variation": Generator(lambda p, q: (p.exp() - q.exp()).abs() / 2, 0.5, 0.5),
    # KL(p || m) + KL(q || m), twice the Jensen-Shannon divergence
    "jensen_shannon": Generator(_jensen_shannon, math.log(2), math.log(2)),
    "chi2_forward": Generator(lambda p, q: (q.exp() - p.exp()) * torch.expm1(q - p), math.inf, 1.0, True),
    "chi2_reverse": Generator(lambda p, q: (p.exp() - q.exp()) * torch.expm1(p - q), 1.0, math.inf, True),
    "squared_hellinger": Generator(lambda p, q: ((p / 2).exp() - (q / 2).exp()).square(), 1.0, 1.0),
}


def _alpha(order: float) -> Generator:
    """f(t) = (t^a - a t - (1 - a)) / (a (a - 1)), and its limits at 0 and 1."""
    at_zero = 1 / order if order > 0 else math.inf
    at_infinity = 1 / (1 - order) if order < 1 else math.inf

    def term(log_p: Tensor, log_q: Tensor) -> Tensor:
        # The formula divides by a and by 1 - a what nearly cancels where either is small. Written as
        # (q (t - 1) - q (t^a - 1) / a) / (1 - a) it only minds the second, and the two sides may be exchanged.
        share = order
        if order > 0.5:
            log_p, log_q, share = log_q, log_p, 1 - order
        return (_power_gain(log_p, log_q, 1.0) - _power_gain(log_p, log_q, share)) / (1 - share)

    return Generator(term, at_zero, at_infinity, is_steep=not 0 <= order <= 1)


def _power_gain(log_p: Tensor, log_q: Tensor, power: float) -> Tensor:
    """q (t^a - 1) / a with t = p / q, and its limit q log t at a = 0."""
    if power == 0:
        return log_q.exp() * (log_p - log_q)
    exponent = power * (log_p - log_q)
    near = log_q.exp() * torch.expm1(exponent.clamp_max(1)) / power
    # Far from 1 nothing cancels, but q would be 0 before t^a ends the range.
    far = ((power * log_p + (1 - power) * log_q).exp() - log_q.exp()) / power
    return torch.where(exponent > 1, far, near)


def _summed(generator: Generator, student_logprobs: Tensor, target_logprobs: Tensor) -> Tensor:
    """sum_e q f(p / q); no event of probability 0 reaches the formula, so that no gradient meets 0 · inf.

    A term near the end of its type's range is infinite: the gradients beside it would be inf - inf.
    """
    lacks_p, lacks_q = student_logprobs == -math.inf, target_logprobs == -math.inf
    is_edge = lacks_p | lacks_q

    def terms(is_left_out: Tensor) -> Tensor:
        return generator.term(student_logprobs.masked_fill(is_left_out, 0), target_logprobs.masked_fill(is_left_out, 0))

    if not generator.is_steep:
        found = terms(is_edge)
    else:
        with torch.no_grad():
            is_beyond = ~(terms(is_edge) < torch.finfo(student_logprobs.dtype).max ** SHARE_OF_RANGE)
        found = terms(is_edge | is_beyond).masked_fill(is_beyond, math.inf)
    found = torch.where(lacks_p, _at_edge(target_logprobs, generator.at_zero), found)
    return torch.where(lacks_q, _at_edge(student_logprobs, generator.at_infinity), found).sum(-1)


def _at_edge(logprobs: Tensor, slope: float) -> Tensor:
    if slope == math.inf:  # a constant: an infinite slope would turn the other tokens' gradients into NaN
        return torch.full_like(logprobs, math.inf).masked_fill(logprobs == -math.inf, 0)
    return logprobs.exp() * slope


@dataclass(frozen=True)
class FDivergence(DistributionLoss):
    """D_f(student || target) per token for a generator by name.

    Fields:
      generator: a key of `GENERATORS`; forward_kl is KL(target || student), chi2_forward is sum (q - p)^2 / p.
    """

    is_sum_over_events: ClassVar[bool] = True

    generator: str = "jensen_shannon"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.generator not in GENERATORS:
            names = ", ".join(GENERATORS)
            raise ConfigurationError(f"divergence.generator is {self.generator!r}; expected one of {names}.")

    def between(self, student_logprobs: Tensor, target_logprobs: Tensor) -> Tensor:
        return _summed(GENERATORS[self.generator], student_logprobs, target_logprobs)


@dataclass(frozen=True)
class AlphaDivergence(DistributionLoss):
    """(1 - sum_e p^a q^(1 - a)) / (a (1 - a)) per token, from forward KL at a = 0 to reverse KL at a = 1.

    On a truncated support, whose masses do not sum to 1, it is the sum of the family's non-negative terms.

    Fields:
      order: a; 0.5 is twice the squared Hellinger distance.
    """

    is_sum_over_events: ClassVar[bool] = True

    order: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_inside(self.order, "divergence.order", math.isfinite(self.order), "a finite number")

    def between(self, student_logprobs: Tensor, target_logprobs: Tensor) -> Tensor:
        return _summed(_alpha(self.order), student_logprobs, target_logprobs)


@dataclass(frozen=True)
class TotalVariation(DistributionLoss):
    """sum_e |p - q| / 2 per token, at most 1; its gradient knows the sign of the difference only."""

    is_sum_over_events: ClassVar[bool] = True

    def between(self, student_logprobs: Tensor, target_logprobs: Tensor) -> Tensor:
        return _summed(GENERATORS["total_variation"], student_logprobs, target_logprobs)


def f_divergence(
    student_logits_BTV: Tensor,
    target_BTV: Tensor | Target,
    support: Support = FULL_VOCABULARY,
    generator: str = "jensen_shannon",
) -> Tensor:
    """D_f(student || target) per token, see `GENERATORS`; arguments as in `reverse_kl`."""
    return FDivergence(generator=generator).between(*seen_through(support, student_logits_BTV, target_BTV))


def total_variation(
    student_logits_BTV: Tensor, target_BTV: Tensor | Target, support: Support = FULL_VOCABULARY
) -> Tensor:
    """sum_e |p - q| / 2 per token; arguments as in `reverse_kl`."""
    return TotalVariation().between(*seen_through(support, student_logits_BTV, target_BTV))
