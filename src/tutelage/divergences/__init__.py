"""How far is the student from its target, and seen through which support?"""

from tutelage.divergences.balanced import Balanced
from tutelage.divergences.base import Divergence
from tutelage.divergences.chunked import chunked_divergence
from tutelage.divergences.entropy_aware import EntropyAware
from tutelage.divergences.f_divergence import (
    GENERATORS,
    AlphaDivergence,
    FDivergence,
    TotalVariation,
    f_divergence,
    total_variation,
)
from tutelage.divergences.forward_kl import ForwardKL, forward_kl
from tutelage.divergences.jensen_shannon import JensenShannon, jsd
from tutelage.divergences.normalised import NormalisedKD
from tutelage.divergences.reverse_kl import ReverseKL, reverse_kl
from tutelage.divergences.sampled_nll import SampledNLL
from tutelage.divergences.sampled_reverse_kl import SampledReverseKL
from tutelage.divergences.sinkhorn import Sinkhorn
from tutelage.divergences.skew_kl import SkewForwardKL, SkewReverseKL, skew_forward_kl, skew_reverse_kl
from tutelage.divergences.support import (
    FULL_VOCABULARY,
    FullVocabulary,
    StudentTopK,
    Support,
    TeacherTopK,
    UnionTopK,
    support_named,
)
from tutelage.divergences.trust_split import TrustSplit

DIVERGENCES: dict[str, type[Divergence]] = {
    "reverse_kl": ReverseKL,
    "forward_kl": ForwardKL,
    "jsd": JensenShannon,
    "skew_forward_kl": SkewForwardKL,
    "skew_reverse_kl": SkewReverseKL,
    "total_variation": TotalVariation,
    "alpha": AlphaDivergence,
    "f_divergence": FDivergence,
    "balanced": Balanced,
    "entropy_aware": EntropyAware,
    "normalised": NormalisedKD,
    "sinkhorn": Sinkhorn,
    "sampled_reverse_kl": SampledReverseKL,
    "sampled_nll": SampledNLL,
    "trust_split": TrustSplit,
}

__all__ = [
    "DIVERGENCES",
    "FULL_VOCABULARY",
    "GENERATORS",
    "AlphaDivergence",
    "Balanced",
    "Divergence",
    "EntropyAware",
    "FDivergence",
    "ForwardKL",
    "FullVocabulary",
    "JensenShannon",
    "NormalisedKD",
    "ReverseKL",
    "SampledNLL",
    "SampledReverseKL",
    "Sinkhorn",
    "SkewForwardKL",
    "SkewReverseKL",
    "StudentTopK",
    "Support",
    "TeacherTopK",
    "TotalVariation",
    "TrustSplit",
    "UnionTopK",
    "chunked_divergence",
    "f_divergence",
    "forward_kl",
    "jsd",
    "reverse_kl",
    "skew_forward_kl",
    "skew_reverse_kl",
    "support_named",
    "total_variation",
]
