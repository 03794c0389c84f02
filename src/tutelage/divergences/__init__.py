"""How far is the student from its target, and seen through which support?"""

from tutelage.divergences.base import Divergence
from tutelage.divergences.chunked import chunked_divergence
from tutelage.divergences.reverse_kl import ReverseKL, reverse_kl
from tutelage.divergences.sampled_nll import SampledNLL
from tutelage.divergences.support import FULL_VOCABULARY, FullVocabulary, StudentTopK, Support, support_named

DIVERGENCES: dict[str, type[Divergence]] = {
    "reverse_kl": ReverseKL,
    "sampled_nll": SampledNLL,
}

__all__ = [
    "DIVERGENCES",
    "FULL_VOCABULARY",
    "Divergence",
    "FullVocabulary",
    "ReverseKL",
    "SampledNLL",
    "StudentTopK",
    "Support",
    "chunked_divergence",
    "reverse_kl",
    "support_named",
]
