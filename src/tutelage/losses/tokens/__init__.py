"""How good was a sampled token, and which way does that push log p?"""

from tutelage.losses.base import TokenLoss
from tutelage.losses.tokens.sampled_nll import SampledNLL
from tutelage.losses.tokens.sampled_reverse_kl import SampledReverseKL
from tutelage.losses.tokens.trust_split import TrustSplit

TOKEN_LOSSES: dict[str, type[TokenLoss]] = {
    "sampled_reverse_kl": SampledReverseKL,
    "sampled_nll": SampledNLL,
    "trust_split": TrustSplit,
}

__all__ = ["TOKEN_LOSSES", "SampledNLL", "SampledReverseKL", "TrustSplit"]
