"""How are the wide rows of logits read as few times as possible? Solve, blend and draw without a [B, V] temporary.

`blend_point` finds where a trust region ends in two or three reads of the logits, and `draw_blend` draws from there.
`read_composition` reads what the other policies need, a `Composition` of student and teacher, and `draw_composed` draws
a token with it. On CUDA, with Triton installed, all run as kernels, one program per row, and `judge_trust_region` and
`judge_composed` also judge a draft and replace it; anywhere else in plain torch, piece by piece. Both draw the same
tokens.

`read_rows` answers what records ask of whole rows: entropies, supports, what lies outside them.

`tiled_full_loss` and `tiled_support_loss` take a loss and its gradient straight from hidden states and heads, in tiles
of tokens and vocabulary.
"""

from tutelage.kernels.composition import ComposedRows, Composition, CompositionSums
from tutelage.kernels.layers import layer_kernels
from tutelage.kernels.noise import philox
from tutelage.kernels.reference import fits_a_piece, row_groups
from tutelage.kernels.rows import Rows, read_rows
from tutelage.kernels.sampler import (
    blend_point,
    draw,
    draw_blend,
    draw_composed,
    has_kernels,
    judge_composed,
    judge_trust_region,
    read_composition,
)
from tutelage.kernels.solve import BlendPoint, Judged
from tutelage.kernels.tile_divergence import FullDivergence, entry_bytes
from tutelage.kernels.tiled_loss import Events, Sampled, Side, tiled_full_loss, tiled_support_loss
from tutelage.kernels.tiles import Head, Tiling, VocabularyView, softcapped

__all__ = [
    "BlendPoint",
    "ComposedRows",
    "Composition",
    "CompositionSums",
    "Events",
    "FullDivergence",
    "Head",
    "Judged",
    "Rows",
    "Sampled",
    "Side",
    "Tiling",
    "VocabularyView",
    "blend_point",
    "draw",
    "draw_blend",
    "draw_composed",
    "entry_bytes",
    "fits_a_piece",
    "has_kernels",
    "judge_composed",
    "judge_trust_region",
    "layer_kernels",
    "philox",
    "read_composition",
    "read_rows",
    "row_groups",
    "softcapped",
    "tiled_full_loss",
    "tiled_support_loss",
]
