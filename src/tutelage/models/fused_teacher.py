"""Several models that read the same tokens side by side, as one.

Their hidden states lie side by side in one tensor and their caches in one cache, so an engine, a scoring pass and a
loss handle them like a single model; only the step from hidden states to logits knows that there are several.

Axis letters: B rows, T positions, D hidden, N tokens laid end to end, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tutelage.distributions import normalise
from tutelage.errors import ConfigurationError
from tutelage.models.caches import CachedRows, JointCache
from tutelage.models.context import ContextLength
from tutelage.models.fusion import Fusion
from tutelage.models.language_model import LanguageModel
from tutelage.models.trainables import AllWeights
from tutelage.models.vocabulary import align

__all__ = ["FusedTeacher"]


class FusedTeacher(LanguageModel):
    """Models whose next-token distributions are fused into one.

    Each member's ways of stopping are made one event before anything is fused. All members read the teacher's prompt.

    Args:
      members: models of one vocabulary, on one device.
      fusion: makes one distribution of theirs, in the same order.
    Raises:
      VocabularyMismatchError: the members do not share a tokenizer.
      ConfigurationError: the fusion is for another number of models, or they lie on different devices.
    """

    def __init__(self, members: Sequence[LanguageModel], fusion: Fusion) -> None:
        fusion.check(len(members))
        if len({member.device for member in members}) > 1:
            raise ConfigurationError("the members of a fused teacher lie on different devices; put them on one.")
        self.parts, self.fusion = list(members), fusion
        self.vocabulary = align(*members)
        self.module = nn.ModuleList(member.module for member in members)
        self.trainable = AllWeights(self.module)
        self.tokenizer, self.stop_ids = members[0].tokenizer, self.vocabulary.stop_ids
        self.name = " + ".join(member.name for member in members)
        self._widths = [int(next(member._head.parameters()).shape[1]) for member in members]

    @property
    def members(self) -> list[LanguageModel]:
        return self.parts

    @property
    def device(self) -> torch.device:
        return self.parts[0].device

    @property
    def padded_vocabulary_size(self) -> int:
        return self.vocabulary.size

    @property
    def context_length(self) -> ContextLength | None:
        return min((part.context_length for part in self.parts if part.context_length is not None), default=None)

    @property
    def known_ids(self) -> list[int]:
        return sorted(set(range(self.vocabulary.size)) - set(self.vocabulary.padding_ids))

    @property
    def uses_fast_forward(self) -> bool:
        return all(part.uses_fast_forward for part in self.parts)

    @property
    def has_plain_head(self) -> bool:
        """There are several."""
        return False

    @property
    def cache_bytes_per_slot(self) -> int:
        return sum(part.cache_bytes_per_slot for part in self.parts)

    @property
    def cache_bytes_per_row(self) -> int:
        return sum(part.cache_bytes_per_row for part in self.parts)

    def drafted_state_bytes(self, num_rows: int, num_drafted: int) -> int:
        return sum(part.drafted_state_bytes(num_rows, num_drafted) for part in self.parts)

    def new_cache(self, num_rows: int, capacity: int, max_capacity: int | None = None) -> CachedRows:
        return JointCache([part.new_cache(num_rows, capacity, max_capacity) for part in self.parts])

    @torch.no_grad()
    def prefill(self, sequences: Sequence[Sequence[int]], max_tokens: int = 16_384) -> CachedRows:
        return JointCache([part.prefill(sequences, max_tokens) for part in self.parts])

    def hidden_packed(self, sequences: Sequence[Sequence[int]], starts: Sequence[int] | None = None) -> Tensor:
        return torch.cat([part.hidden_packed(sequences, starts) for part in self.parts], dim=-1)

    def hidden_cached(self, tokens_BT: Tensor, positions_BT: Tensor, cache: CachedRows, num_visible: int) -> Tensor:
        assert isinstance(cache, JointCache)
        pairs = zip(self.parts, cache.parts, strict=True)
        return torch.cat([part.hidden_cached(tokens_BT, positions_BT, own, num_visible) for part, own in pairs], dim=-1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Log-probabilities of the fused distribution over the members' common vocabulary: [..., D] -> [..., V]."""
        # Members of narrower types were widened when they were laid beside the others.
        pieces = zip(self.parts, hidden.split(self._widths, dim=-1), strict=True)
        logits = [self.vocabulary.shared_logits(part.logits(piece.to(part.module.dtype))) for part, piece in pieces]
        return self.fusion([normalise(part_logits) for part_logits in logits])
