"""The student as it was, on the student's own backbone: only its adapter's weights are kept twice.

At the start the adapter changes nothing, so the student as it was then is the base model, and a reference costs no
second copy of it. A past self is the same with later weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tutelage.models.caches import CachedRows
from tutelage.models.language_model import LanguageModel

__all__ = ["SharedBackbone", "earlier_self"]


@dataclass
class SharedBackbone(LanguageModel):
    """A model whose adapter is replaced by other weights whenever it reads. Made by `earlier_self`; learns nothing."""

    kept: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def prefill(self, sequences: Sequence[Sequence[int]], max_tokens: int = 16_384) -> CachedRows:
        """See `LanguageModel.prefill`."""
        assert self.adapter is not None
        with self.adapter.replaced_by(self.kept):
            return super().prefill(sequences, max_tokens)

    @torch.no_grad()
    def hidden_packed(self, sequences: Sequence[Sequence[int]], starts: Sequence[int] | None = None) -> Tensor:
        """See `LanguageModel.hidden_packed`."""
        assert self.adapter is not None
        with self.adapter.replaced_by(self.kept):
            return super().hidden_packed(sequences, starts)

    @torch.no_grad()
    def hidden_cached(self, tokens_BT: Tensor, positions_BT: Tensor, cache: CachedRows, num_visible: int) -> Tensor:
        """See `LanguageModel.hidden_cached`."""
        assert self.adapter is not None
        with self.adapter.replaced_by(self.kept):
            return super().hidden_cached(tokens_BT, positions_BT, cache, num_visible)

    def learned(self) -> dict[str, Tensor]:
        """The kept weights of the adapter."""
        return dict(self.kept)

    def load_learned(self, weights: Mapping[str, Tensor]) -> None:
        """Keep a copy of these weights instead."""
        self.kept = {name: weights[name].detach().to(self.device, copy=True) for name in self.kept}


def earlier_self(student: LanguageModel) -> SharedBackbone:
    """The student as it is now, whatever its adapter learns later."""
    kept = {name: weight.clone() for name, weight in student.learned().items()}
    return SharedBackbone(
        student.module, student.tokenizer, student.stop_ids, student.name, adapter=student.adapter, kept=kept
    )
