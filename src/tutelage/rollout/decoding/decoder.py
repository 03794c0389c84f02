"""One model and its cache while answers are decoded.

Axis letters: B rows, T tokens, R some of the rows, P prompts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tutelage.models import CachedRows, LanguageModel, Vocabulary

__all__ = ["Decoder"]


class Decoder:
    """One model and its cache. Each row has one token that was not read yet, and the position that it will take.

    Args:
      num_rows, capacity, max_capacity: of the cache.
    """

    def __init__(
        self, model: LanguageModel, vocabulary: Vocabulary, num_rows: int, capacity: int, max_capacity: int
    ) -> None:
        self.model, self.vocabulary = model, vocabulary
        self.cache: CachedRows = model.new_cache(num_rows, capacity, max_capacity)
        self.positions_B = torch.zeros(num_rows, dtype=torch.int64)
        self.last_tokens_B = torch.zeros(num_rows, dtype=torch.int64, device=model.device)

    def start(self, rows_R: Tensor, prompts: Sequence[Sequence[int]], sources_R: Tensor, max_tokens: int) -> None:
        """Let rows begin after a prompt, whose last token is not read yet.

        Args:
          prompts: each read once, however many rows share it.
          sources_R: which of the prompts each row gets.
        """
        read = self.model.prefill([prompt[:-1] for prompt in prompts], max_tokens)
        device = self.model.device
        self.cache.copy_rows(read, sources_R.to(device), rows_R.to(device))
        positions_P = torch.tensor([len(prompt) - 1 for prompt in prompts])
        last_P = torch.tensor([int(prompt[-1]) for prompt in prompts])
        # Not in place: the two decoders of a pair share the tensor of last tokens once they have advanced.
        self.positions_B = self.positions_B.index_copy(0, rows_R, positions_P[sources_R])
        self.last_tokens_B = self.last_tokens_B.index_copy(0, rows_R.to(device), last_P[sources_R].to(device))

    def read(self, tokens_BT: Tensor, ahead: int = 0) -> Tensor:
        """Logits [B, T, V] after each of some new tokens, the first of which lies `ahead` of the rows' positions."""
        positions_BT = self.positions_B[:, None] + torch.arange(ahead, ahead + tokens_BT.shape[1])
        if self.model.context_length is not None:
            # A draft may run over the end of the context. What is computed there is dropped, but must be computable.
            positions_BT = positions_BT.clamp_max(self.model.context_length - 1)
        extent = int(positions_BT.max()) + 1
        device = self.model.device
        hidden_BTD = self.model.hidden_cached(tokens_BT.to(device), positions_BT.to(device), self.cache, extent)
        return self.vocabulary.shared_logits(self.model.logits(hidden_BTD))

    def advance(self, lengths_B: Tensor, last_tokens_B: Tensor, is_alive_B: Tensor) -> None:
        """Append `lengths_B` tokens to each row, the last of which is read next. Rows that have ended go to place 0."""
        self.positions_B = (self.positions_B + lengths_B).where(is_alive_B, 0)
        self.last_tokens_B = last_tokens_B.to(self.model.device)

    def select(self, rows_B: Tensor) -> None:
        """Drop rows."""
        self.cache.select(rows_B.to(self.model.device))
        self.positions_B, self.last_tokens_B = (
            self.positions_B[rows_B],
            self.last_tokens_B[rows_B.to(self.model.device)],
        )
