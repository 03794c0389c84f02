"""The loss in tiles of tokens and vocabulary: which models are compared on which events, for `kernels.tiled_loss`.

Axis letters: N response tokens of the micro-batch, n of a block, K of a support, D hidden.
"""

from __future__ import annotations

from torch import Tensor

from tutelage.kernels import Events as KernelEvents
from tutelage.kernels import (
    FullDivergence,
    Sampled,
    Side,
    Tiling,
    entry_bytes,
    tiled_full_loss,
    tiled_support_loss,
)
from tutelage.losses import FULL_VOCABULARY, StudentTopK, Support
from tutelage.models import LanguageModel
from tutelage.training.forms.choice import is_sum_over_events, share_with_kernels
from tutelage.training.forms.terms import Events, MicroBatch, TokenTerms, is_among
from tutelage.training.target_models import TargetModels, Targets
from tutelage.types import SparseTarget

__all__ = ["tiled"]


def tiled(batch: MicroBatch, terms: TokenTerms, models: TargetModels, *, keeps: bool) -> tuple[Tensor, Tensor]:
    """Values of all terms and log p of the sampled tokens, [N] each; see `kernels.tiled_loss`.

    The terms look through one window at most, and `forms.choice` has found nothing against it.

    Args:
      keeps: see `kernels.Tiling`.
    """
    windows = terms.windows
    if windows == [FULL_VOCABULARY]:
        return _on_vocabulary(batch, terms, models, keeps)
    return _on_support(batch, terms, models, windows[0] if windows else None, keeps)


def _on_support(
    batch: MicroBatch, terms: TokenTerms, models: TargetModels, window: Support | None, keeps: bool
) -> tuple[Tensor, Tensor]:
    """On the support that was recorded, or on the sampled tokens alone."""
    side = _side(batch.student, batch.hidden_ND)
    view = batch.vocabulary.view(side.hidden_ND.device)
    tiling = Tiling.fitting(view, side.hidden_ND, side.hidden_ND.itemsize, keeps=keeps)
    if window is None:
        ids_NK = batch.tokens_N.new_empty(len(batch.tokens_N), 0)

        def of_events(events: KernelEvents, span: slice) -> Tensor:
            return terms.on_tokens(events.sampled_n, span)

    else:
        assert isinstance(window, StudentTopK)
        teacher, support = models.teacher(window), window
        reference = models.reference(window, terms.target) if terms.target.needs else None
        ids_NK = window.recorded_ids(_recorded(teacher, slice(None)), batch.vocabulary.size)

        def of_events(events: KernelEvents, span: slice) -> Tensor:
            known = (events.kept_nK, events.rest_n)
            student, taught = support.events_on_record(*known, _recorded(teacher, span))
            third = None
            if reference is not None:
                _, third = support.events_on_record(*known, _recorded(reference, span))
            is_inside = is_among(batch.tokens_N[span], ids_NK[span])
            return terms(lambda _: Events(student, taught, third, is_inside), events.sampled_n, span)

    sampled = Sampled(batch.tokens_N, batch.weights_N)
    return tiled_support_loss(side, view, of_events, ids_NK, sampled, tiling)


def _on_vocabulary(batch: MicroBatch, terms: TokenTerms, models: TargetModels, keeps: bool) -> tuple[Tensor, Tensor]:
    """On the whole vocabulary; token losses join in the same passes."""
    ((model, target_hidden_ND, _),) = models.read_by_teachers(FULL_VOCABULARY)
    student = _side(batch.student, batch.hidden_ND)
    teacher = _side(model, target_hidden_ND.to(batch.hidden_ND.device))
    view = batch.vocabulary.view(student.hidden_ND.device)
    losses = terms.distribution_losses
    is_local = all(is_sum_over_events(loss, terms.target) for loss in losses)
    divergence = FullDivergence(terms.between)
    share = share_with_kernels(losses, terms.target)
    if share is not None:  # kernels know no factor
        loss = losses[0]
        divergence = FullDivergence(lambda p, q: loss.between(*terms.compared(Events(p, q))), loss.factor, share)
    kept = entry_bytes(student.hidden_ND.device, share, student.hidden_ND.dtype, teacher.hidden_ND.dtype)
    return tiled_full_loss(
        student,
        teacher,
        view,
        divergence,
        Sampled(batch.tokens_N, batch.weights_N),
        Tiling.fitting(view, student.hidden_ND, kept, keeps=keeps, whole_rows=not is_local),
        terms.on_tokens if terms.learns_from_tokens else None,
    )


def _recorded(whose: Targets, span: slice) -> SparseTarget:
    target = whose(span)
    assert isinstance(target, SparseTarget)
    return target


def _side(model: LanguageModel, hidden_ND: Tensor) -> Side:
    """Hidden states and a head, both in the type that the model's products are computed in."""
    head = model.head()
    return Side(hidden_ND.to(head.weight_VD.dtype), head)
