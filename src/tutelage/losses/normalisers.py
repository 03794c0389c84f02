"""Over what is a token loss averaged?  The silent difference between methods that have the same name.

With w the weight of a token, W = Σ w over the batch, W_i over answer i, B answers and M tokens, the loss of values v is

    token_mean       Σ w v / W                              TRL "dapo", verl "token-mean"; the default
    sequence_mean    mean over answers of Σ_t w v / W_i     TRL "grpo", verl "seq-mean-token-mean"
    sequence_sum     mean over answers of Σ_t w v           verl "seq-mean-token-sum"
    constant         Σ w v / (B M)                          TRL "dr_grpo", verl "seq-mean-token-sum-norm"

The batch is the global one, so no form depends on micro-batches or on processes; a mean per micro-batch (TRL "bnpo") is
not among them for that reason. An answer without tokens counts as an answer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage.errors import ConfigurationError
from tutelage.types import Batch

__all__ = ["NORMALISERS", "check_normaliser", "normaliser_factors"]

NORMALISERS = ("token_mean", "sequence_mean", "sequence_sum", "constant")


def check_normaliser(name: str, tokens: int) -> None:
    """Refuse a normaliser that there is not, or one without the number that it needs."""
    if name not in NORMALISERS:
        raise ConfigurationError(f"loss.normaliser is {name!r}; expected one of {', '.join(NORMALISERS)}.")
    if (name == "constant") != (tokens != 0) or tokens < 0:
        raise ConfigurationError(
            f"loss.normaliser is {name!r} and loss.normaliser_tokens {tokens}; 'constant' needs a number of tokens "
            "above 0, such as rollout.max_new_tokens, and no other normaliser has one. Correct one of them."
        )


def normaliser_factors(name: str, tokens: int, batch: Batch, weights_N: Tensor) -> Tensor | None:
    """What values are multiplied with, so that their weighted token mean becomes the named mean: [N]; None = 1.

    Args:
      tokens: M.
      weights_N: w.
    """
    if name == "token_mean":
        return None
    parts = torch.split(weights_N.double(), batch.lengths)
    of_answers_B = torch.stack([weights.sum() for weights in parts])
    divisors_B = torch.full_like(of_answers_B, len(parts))
    if name == "sequence_mean":
        divisors_B = divisors_B * of_answers_B
    elif name == "constant":
        divisors_B = divisors_B * tokens
    # An answer whose tokens do not count is divided by nothing, and counts 0.
    factors_B = torch.where(divisors_B > 0, of_answers_B.sum() / divisors_B, 0)
    return factors_B.repeat_interleave(torch.tensor(batch.lengths))
