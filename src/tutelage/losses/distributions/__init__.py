"""How far is the student's next-token distribution from its target?"""

from tutelage.losses.base import DistributionLoss
from tutelage.losses.distributions.balanced import Balanced
from tutelage.losses.distributions.entropy_aware import EntropyAware
from tutelage.losses.distributions.f_divergence import (
    GENERATORS,
    AlphaDivergence,
    FDivergence,
    TotalVariation,
    f_divergence,
    total_variation,
)
from tutelage.losses.distributions.forward_kl import ForwardKL, forward_kl
from tutelage.losses.distributions.jensen_shannon import JensenShannon, jsd
from tutelage.losses.distributions.normalised import NormalisedKD
from tutelage.losses.distributions.reverse_kl import ReverseKL, reverse_kl
from tutelage.losses.distributions.sinkhorn import Sinkhorn
from tutelage.losses.distributions.skew_kl import SkewForwardKL, SkewReverseKL, skew_forward_kl, skew_reverse_kl

DISTRIBUTION_LOSSES: dict[str, type[DistributionLoss]] = {
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
}

__all__ = [
    "DISTRIBUTION_LOSSES",
    "GENERATORS",
    "AlphaDivergence",
    "Balanced",
    "EntropyAware",
    "FDivergence",
    "ForwardKL",
    "JensenShannon",
    "NormalisedKD",
    "ReverseKL",
    "Sinkhorn",
    "SkewForwardKL",
    "SkewReverseKL",
    "TotalVariation",
    "f_divergence",
    "forward_kl",
    "jsd",
    "reverse_kl",
    "skew_forward_kl",
    "skew_reverse_kl",
    "total_variation",
]
