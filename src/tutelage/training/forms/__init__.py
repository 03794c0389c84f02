"""In which form is the loss computed? All give the same numbers, up to rounding; time and memory differ.

chunked      chunks of tokens through both heads, in autograd, each computed again in backward; any loss.
tiled        tiles of tokens and vocabulary, gradients taken on the way; a block's logits are kept through its passes.
recomputed   the same, but a tile is computed again in every pass: nothing wider than a tile is ever held.
auto         tiled where the chunked form would need more than one chunk, and where it can be; chunked otherwise.
"""

from tutelage.training.forms.choice import (
    DEFAULT_LOSS_FORM,
    LOSS_FORMS,
    check_method_form,
    check_models_form,
    chosen_form,
    share_with_kernels,
)
from tutelage.training.forms.chunked import chunked, sampled_logprobs
from tutelage.training.forms.terms import MicroBatch, TokenTerms
from tutelage.training.forms.tiled import tiled

__all__ = [
    "DEFAULT_LOSS_FORM",
    "LOSS_FORMS",
    "MicroBatch",
    "TokenTerms",
    "check_method_form",
    "check_models_form",
    "chosen_form",
    "chunked",
    "sampled_logprobs",
    "share_with_kernels",
    "tiled",
]
