"""How good was a sampled token, and which way does that push log p?"""

from tutelage.losses.base import TokenLoss
from tutelage.losses.tokens.cispo import CISPO
from tutelage.losses.tokens.clipped_surrogate import AnchoredSurrogate, ClippedSurrogate
from tutelage.losses.tokens.gated_imitation import GatedImitation
from tutelage.losses.tokens.policy_gradient import PolicyGradient
from tutelage.losses.tokens.residual_reverse_kl import ResidualReverseKL
from tutelage.losses.tokens.sampled_kl import SampledKL
from tutelage.losses.tokens.sampled_nll import SampledNLL
from tutelage.losses.tokens.sampled_reverse_kl import SampledReverseKL
from tutelage.losses.tokens.trust_split import TrustSplit

TOKEN_LOSSES: dict[str, type[TokenLoss]] = {
    "sampled_reverse_kl": SampledReverseKL,
    "residual_reverse_kl": ResidualReverseKL,
    "sampled_nll": SampledNLL,
    "trust_split": TrustSplit,
    "policy_gradient": PolicyGradient,
    "clipped_surrogate": ClippedSurrogate,
    "anchored_surrogate": AnchoredSurrogate,
    "cispo": CISPO,
    "sampled_kl": SampledKL,
    "gated_imitation": GatedImitation,
}

__all__ = [
    "CISPO",
    "TOKEN_LOSSES",
    "AnchoredSurrogate",
    "ClippedSurrogate",
    "GatedImitation",
    "PolicyGradient",
    "ResidualReverseKL",
    "SampledKL",
    "SampledNLL",
    "SampledReverseKL",
    "TrustSplit",
]
