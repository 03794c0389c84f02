"""How are the wide rows read as few times as possible? Solve, blend and draw without a [B, V] temporary.

`blend_point` finds where a trust region ends in two or three reads of the logits, `draw_blend` and `draw_residual` take
one more each. On CUDA, with Triton installed, they run as kernels; anywhere else in plain torch, piece by piece. Both
draw the same tokens.
"""

from tutelage.kernels.noise import philox
from tutelage.kernels.sampler import blend_point, draw_blend, draw_residual, sample_trust_region
from tutelage.kernels.solve import BlendPoint

__all__ = ["BlendPoint", "blend_point", "draw_blend", "draw_residual", "philox", "sample_trust_region"]
