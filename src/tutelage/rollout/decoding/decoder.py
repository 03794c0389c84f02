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
        # Asked once: a model looks for the one among its weights, and reads the other from its configuration.
        self.device, self._context_length = model.device, model.context_length
        self.cache: CachedRows = model.new_cache(num_rows, capacity, max_capacity)
        # The position of each row's first token to read, on the host and on the device.
        self.starts_B = torch.zeros(num_rows, dtype=torch.int64)
        self._device_starts_B = self.starts_B.to(self.device)
        self.last_tokens_B = torch.zeros(num_rows, dtype=torch.int64, device=self.device)
        self._positions_B, self._furthest = self._device_starts_B, 0

    def start(self, rows_R: Tensor, prompts: Sequence[Sequence[int]], sources_R: Tensor, max_tokens: int) -> None:
        """Let rows begin after a prompt, whose last token is not read yet.

        Args:
          prompts: each read once, however many rows share it.
          sources_R: which of the prompts each row gets.
        """
        read = self.model.prefill([prompt[:-1] for prompt in prompts], max_tokens)
        device = self.device
        self.cache.copy_rows(read, sources_R.to(device), rows_R.to(device))
        starts_P = torch.tensor([len(prompt) - 1 for prompt in prompts])
        last_P = torch.tensor([int(prompt[-1]) for prompt in prompts])
        # Not in place: the two decoders of a pair share the tensor of last tokens once they have advanced.
        self.starts_B = self.starts_B.index_copy(0, rows_R, starts_P[sources_R])
        self._device_starts_B = self.starts_B.to(device)
        self.last_tokens_B = self.last_tokens_B.index_copy(0, rows_R.to(device), last_P[sources_R].to(device))

    def place(self, produced_B: Tensor, is_alive_B: Tensor, furthest: int) -> None:
        """Say where the rows stand, before anything is read in a round; what was refused in the last one is taken back.

        Args:
          produced_B, is_alive_B: tokens that each row has after its prompt; rows that have ended go to place 0.
          furthest: a place that no row is beyond.
        """
        device = self.device
        self._positions_B = (self._device_starts_B + produced_B.to(device)).where(is_alive_B.to(device), 0)
        self._furthest = furthest
        self.cache.roll_back(self._positions_B)

    def read(self, tokens_BT: Tensor, ahead: int = 0) -> Tensor:
        """Logits [B, T, V] after each of some new tokens, the first of which lies `ahead` of the rows' positions."""
        device, num_new = self.device, tokens_BT.shape[1]
        positions_BT = self._positions_B[:, None] + torch.arange(ahead, ahead + num_new, device=device)
        extent = self._furthest + ahead + num_new
        if self._context_length is not None:
            # A draft may run over the end of the context. What is computed there is dropped, but must be computable.
            positions_BT = positions_BT.clamp_max(self._context_length - 1)
            extent = min(extent, self._context_length)
        hidden_BTD = self.model.hidden_cached(tokens_BT.to(device), positions_BT, self.cache, extent)
        return self.vocabulary.shared_logits(self.model.logits(hidden_BTD))

    def advance(self, last_tokens_B: Tensor) -> None:
        """These are the rows' last tokens now, and are read next."""
        self.last_tokens_B = last_tokens_B.to(self.device)

    def select(self, rows_B: Tensor) -> None:
        """Drop rows."""
        device_rows_B = rows_B.to(self.device)
        self.cache.select(device_rows_B)
        self.starts_B, self._device_starts_B = self.starts_B[rows_B], self._device_starts_B[device_rows_B]
        self.last_tokens_B = self.last_tokens_B[device_rows_B]
