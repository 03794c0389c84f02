"""Trust a sampled token as far as the teacher would accept it from the student."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tutelage.errors import ConfigurationError
from tutelage.types import Batch, Fact
from tutelage.weighting.base import Weighting

__all__ = ["Tropd"]

ACCEPTANCES = ("sampled", "expected")


@dataclass(frozen=True)
class Tropd(Weighting):
    """w ~ Bernoulli(min(1, q(a) / p(a))), or that probability itself     (TrOPD, arXiv 2606.01249, its "Mask")

    p and q are student and teacher at the rollout. Under the student policy the mean of w at a prefix is 1 - TV(p, q).
    Tokens that are not trusted are left out. What the whole method does with them, a forward KL in place of the loss,
    is no weight: that is the divergence "trust_split".

    Fields:
      acceptance: "sampled", a draw that belongs to the token, or "expected".
    """

    is_random = True

    acceptance: str = "sampled"

    def __post_init__(self) -> None:
        if self.acceptance not in ACCEPTANCES:
            raise ConfigurationError(
                f"weighting.acceptance is {self.acceptance!r}; expected one of {', '.join(ACCEPTANCES)}."
            )

    @property
    def needs(self) -> frozenset[Fact]:
        return frozenset({Fact.student_token, Fact.teacher_token})

    @property
    def looks_at_token(self) -> bool:
        return True

    def __call__(self, batch: Batch, uniforms_N: Tensor | None = None) -> Tensor:
        log_ratio_N = batch.joined("teacher.logprobs_T") - batch.joined("student.logprobs_T")
        trust_N = log_ratio_N.clamp_max(0).exp()
        if self.acceptance == "expected":
            return trust_N
        assert uniforms_N is not None, "tropd is random and needs uniforms_N"
        return (uniforms_N < trust_N).to(trust_N.dtype)
