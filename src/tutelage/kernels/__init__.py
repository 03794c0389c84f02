"""How are the wide rows of logits read as few times as possible? Solve, blend and draw without a [B, V] temporary.

`blend_point` finds where a trust region ends in two or three reads of the logits, `draw_blend` and `draw_residual` draw
from there. On CUDA, with Triton installed, they run as kernels, one program per row, and `judge_trust_region` does all
of it at once; anywhere else in plain torch, piece by piece. Both draw the same tokens.

`tiled_full_loss` and `tiled_support_loss` take a loss and its gradient straight from hidden states and heads, in tiles
of tokens and vocabulary.
"""

from tutelage.kernels.noise import philox
from tutelage.kernels.sampler import (
    blend_point,
    draw,
    draw_blend,
    draw_residual,
    has_kernels,
    judge_trust_region,
    sample_trust_region,
)
from tutelage.kernels.solve import BlendPoint, Judged
from tutelage.kernels.tile_divergence import FullDivergence, entry_bytes
from tutelage.kernels.tiled_loss import Events, Sampled, Side, tiled_full_loss, tiled_support_loss
from tutelage.kernels.tiles import Head, Tiling, VocabularyView, softcapped

__all__ = [
    "BlendPoint",
    "Events",
    "FullDivergence",
    "Head",
    "Judged",
    "Sampled",
    "Side",
    "Tiling",
    "VocabularyView",
    "blend_point",
    "draw",
    "draw_blend",
    "draw_residual",
    "entry_bytes",
    "has_kernels",
    "judge_trust_region",
    "philox",
    "sample_trust_region",
    "softcapped",
    "tiled_full_loss",
    "tiled_support_loss",
]
