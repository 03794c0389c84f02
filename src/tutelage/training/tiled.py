"""The loss of a batch in tiles of tokens and vocabulary: who is compared with whom, for `kernels.tiled_loss`.

Axis letters: N response tokens of the batch, n of a block, K of a support, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.divergences import StudentTopK, Support
from tutelage.kernels import Events, Head, Tiling, tiled_full_loss, tiled_support_loss
from tutelage.models import LanguageModel, Vocabulary
from tutelage.types import SparseTarget, Target

__all__ = ["TiledLoss"]

# Student, teacher and reference on the same events; log p of the sampled tokens; which tokens they are -> [n].
Compared = Callable[[Tensor, Tensor, Tensor | None, Tensor, slice], Tensor]
Targets = Callable[[slice], Target]


@dataclass(frozen=True)
class TiledLoss:
    """A student's hidden states at the response tokens of a batch, to be compared.

    Fields:
      student: with a head that can be taken apart.
      vocabulary: the shared one.
      hidden_ND, tokens_N: final hidden states, and the tokens that were sampled from them.
      weights_N: what the loss weighs each token with, up to a common factor.
      keeps: see `kernels.Tiling`.
    """

    student: LanguageModel
    vocabulary: Vocabulary
    hidden_ND: Tensor
    tokens_N: Tensor
    weights_N: Tensor
    keeps: bool

    def on_record(
        self, window: Support, targets: Targets, references: Targets | None, compared: Compared
    ) -> tuple[Tensor, Tensor]:
        """Loss and log p of every token, [N] each, on the support that was recorded."""
        assert isinstance(window, StudentTopK)

        def recorded(whose: Targets, span: slice) -> SparseTarget:
            target = whose(span)
            assert isinstance(target, SparseTarget)
            return target

        def of_events(events: Events, span: slice) -> Tensor:
            known = (events.kept_nK, events.rest_n)
            student, teacher = window.events_on_record(*known, recorded(targets, span))
            reference = None
            if references is not None:
                _, reference = window.events_on_record(*known, recorded(references, span))
            return compared(student, teacher, reference, events.sampled_n, span)

        ids_NK = window.recorded_ids(recorded(targets, slice(None)), self.vocabulary.size)
        hidden_ND, head = _operands(self.student, self.hidden_ND)
        view = self.vocabulary.view(hidden_ND.device)
        tiling = Tiling.fitting(view, hidden_ND, hidden_ND.itemsize, keeps=self.keeps)
        return tiled_support_loss(hidden_ND, head, view, of_events, ids_NK, self.tokens_N, self.weights_N, tiling)

    def against(
        self,
        teacher: LanguageModel,
        teacher_hidden_ND: Tensor,
        compared: Compared,
        *,
        is_local: bool,
        jsd_share: float | None,
    ) -> tuple[Tensor, Tensor]:
        """Loss and log p of every token, [N] each, on the whole vocabulary.

        Args:
          is_local: the loss is a sum over events, so that a tile need not have all of them.
          jsd_share: see `kernels.tiled_full_loss`.
        """
        hidden_ND, head = _operands(self.student, self.hidden_ND)
        teacher_hidden_ND, teacher_head = _operands(teacher, teacher_hidden_ND.to(hidden_ND.device))
        # Slopes, in float32 or wider, take the place of the teacher's logits.
        entry_bytes = hidden_ND.itemsize + max(4, hidden_ND.itemsize, teacher_hidden_ND.itemsize)
        view = self.vocabulary.view(hidden_ND.device)
        nothing_n, nowhere = torch.empty(0), slice(0)
        return tiled_full_loss(
            hidden_ND,
            head,
            teacher_hidden_ND,
            teacher_head,
            view,
            lambda student, target: compared(student, target, None, nothing_n, nowhere),
            self.tokens_N,
            self.weights_N,
            Tiling.fitting(view, hidden_ND, entry_bytes, keeps=self.keeps, whole_rows=not is_local),
            jsd_share,
        )


def _operands(model: LanguageModel, hidden_ND: Tensor) -> tuple[Tensor, Head]:
    """Hidden states and a head, both in the type that the model's products are computed in."""
    head = model.head()
    return hidden_ND.to(head.weight_VD.dtype), head
