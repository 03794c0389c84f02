"""How far has the student gone from another model? Estimated on the sampled tokens, with a gradient that means it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tutelage.errors import ConfigurationError
from tutelage.losses.base import TokenFacts
from tutelage.losses.tokens.clipped_surrogate import log_ratio
from tutelage.losses.tokens.corrected import CorrectedTokenLoss
from tutelage.losses.tokens.windowed import score_term
from tutelage.types import Fact

__all__ = ["SampledKL"]

MODELS = ("reference", "target")
ESTIMATORS = ("k2", "k3", "k1+", "k3+")


@dataclass(frozen=True)
class SampledKL(CorrectedTokenLoss):
    """An estimate of KL(p || other) on the sampled tokens, x = log other(a) - log p(a), within +-20 nats

    | estimator | value | gradient, times grad log p | mean gradient under p | elsewhere |
    |---|---|---|---|---|
    | k2 | x^2 / 2 | -x | of KL(p \\|\\| other) | verl "mse"; KDRL's term |
    | k3 | e^x - 1 - x | 1 - e^x | of KL(other \\|\\| p), the forward KL | TRL's `beta`, verl "low_var_kl" |
    | k1+ | -x | -x | of KL(p \\|\\| other) | verl "kl+" |
    | k3+ | e^x - 1 - x | -x | of KL(p \\|\\| other) | verl "low_var_kl+", TRL's bias correction at ratio 1 |

    k1 through autograd is refused: its gradient is -grad log p, whose mean is 0, whatever the other model is. As a
    reward it is right: `teacher_log_ratio`, or `whitened_return` with a kl_coefficient. The identities hold for tokens
    of the student; for others there is the correction, see `CorrectedTokenLoss` (Schulman, "Approximating KL
    divergence", 2020; arXiv 2205.11275).

    Fields:
      to: "reference", or "target", which is the teacher unless [target] says otherwise.
      estimator: above.
    """

    to: str = "reference"
    estimator: str = "k2"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.to not in MODELS:
            raise ConfigurationError(f"loss.to is {self.to!r}; expected one of {', '.join(MODELS)}.")
        if self.estimator == "k1":
            raise ConfigurationError(
                "loss.estimator is 'k1', whose gradient is 0 in the mean whatever the other model is, so it would "
                "teach nothing. Use 'k1+', which has its value and the gradient of the reverse KL, or 'k2'."
            )
        if self.estimator not in ESTIMATORS:
            raise ConfigurationError(f"loss.estimator is {self.estimator!r}; expected one of {', '.join(ESTIMATORS)}.")

    @property
    def needs(self) -> frozenset[Fact]:
        other = Fact.reference if self.to == "reference" else Fact.teacher_token
        return super().needs | {other}

    def on_tokens(self, logprobs_n: Tensor, facts: TokenFacts) -> Tensor:
        other_n = facts.reference_logprobs if self.to == "reference" else facts.target_logprobs
        assert other_n is not None
        x_n = -log_ratio(logprobs_n.detach(), other_n)
        values_n = {"k1+": -x_n, "k2": x_n**2 / 2}.get(self.estimator, x_n.expm1() - x_n)
        towards_n = x_n.expm1() if self.estimator == "k3" else x_n
        return values_n + score_term(logprobs_n, towards_n)
