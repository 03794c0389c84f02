"""Which form does a loss get, and why can it not have another?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tutelage.errors import ConfigurationError
from tutelage.losses import FULL_VOCABULARY, DistributionLoss, Loss, PairLoss, StudentTopK, TokenLoss
from tutelage.models import LanguageModel
from tutelage.targets import TargetRule
from tutelage.training.recipe import Recipe, window_of

__all__ = [
    "DEFAULT_LOSS_FORM",
    "LOSS_FORMS",
    "check_method_form",
    "check_models_form",
    "chosen_form",
    "is_sum_over_events",
    "share_with_kernels",
]

DEFAULT_LOSS_FORM: Final = "auto"
LOSS_FORMS = ("auto", "chunked", "tiled", "recomputed")


def chosen_form(
    wanted: str, recipe: Recipe, student: LanguageModel, teachers: Sequence[LanguageModel], *, is_one_chunk: bool
) -> str:
    """The form that a batch's loss is computed in: "chunked", "tiled" or "recomputed".

    Args:
      wanted: one of `LOSS_FORMS`.
      teachers: those that are asked for whole distributions, if some loss looks at these.
      is_one_chunk: the chunked form takes all tokens at once.
    Raises:
      ConfigurationError: another form than "chunked" is asked for by name, and the loss cannot be computed in it.
    """
    of_method = _obstacle_of_method("tiled" if wanted == "auto" else wanted, recipe)
    reason = of_method or _obstacle_of_models(recipe, student, teachers)
    if wanted == "auto":
        return "chunked" if is_one_chunk or reason is not None else "tiled"
    _check(wanted, reason)
    return wanted


def check_method_form(wanted: str, recipe: Recipe) -> None:
    """Refuse a form that is asked for by name and that no models' loss of this method has."""
    _check(wanted, _obstacle_of_method(wanted, recipe))


def check_models_form(wanted: str, recipe: Recipe, student: LanguageModel, teachers: Sequence[LanguageModel]) -> None:
    """Refuse a form that is asked for by name and that these models' loss does not have."""
    _check(wanted, _obstacle_of_models(recipe, student, teachers))


def _check(wanted: str, reason: str | None) -> None:
    if wanted not in LOSS_FORMS:
        raise ConfigurationError(f"runtime.loss is {wanted!r}; expected one of {', '.join(LOSS_FORMS)}.")
    if wanted in ("tiled", "recomputed") and reason is not None:
        raise ConfigurationError(
            f"runtime.loss is {wanted!r}, but {reason}. Use runtime.loss = 'auto', which takes tiles where it can."
        )


def _obstacle_of_method(form: str, recipe: Recipe) -> str | None:
    """Why a recipe's loss cannot be computed in tiles; None if it can."""
    windows = recipe.windows
    for loss in recipe.losses:
        if isinstance(loss, PairLoss):
            return f"the loss {_name(loss)} compares whole answers"
        if isinstance(loss, DistributionLoss) and loss.tokens_per_group is not None:
            return f"the divergence {_name(loss)} compares several tokens with each other"
        window = window_of(loss)
        if window is None or isinstance(window, StudentTopK):
            continue
        if window != FULL_VOCABULARY:
            return f"divergence.support is {window.name!r}, which looks for tokens in whole distributions"
        if isinstance(loss, TokenLoss):
            return f"the divergence {_name(loss)} is taken on sampled tokens and looks at whole distributions"
    if len(windows) > 1:
        return "its losses look through several supports"
    if windows != [FULL_VOCABULARY]:
        return None
    target = type(recipe.target).__name__
    if recipe.target.needs:
        return f"the target {target} looks at a third model's whole distribution"
    local = [is_sum_over_events(loss, recipe.target) for loss in recipe.losses if isinstance(loss, DistributionLoss)]
    if form == "recomputed" and not all(local):
        name = _name(next(loss for loss in recipe.losses if isinstance(loss, DistributionLoss)))
        return f"the divergence {name} with the target {target} is not a sum over events"
    return None


def _obstacle_of_models(recipe: Recipe, student: LanguageModel, teachers: Sequence[LanguageModel]) -> str | None:
    """Why these models' loss cannot be computed in tiles; None if it can."""
    if not student.has_plain_head:
        return f"the head of {student.name} is not one plain linear layer"
    if recipe.asks_whole_teacher and (len(teachers) != 1 or not teachers[0].has_plain_head):
        return "the teacher is several models, or its head is not one plain linear layer"
    if recipe.asks_whole_teacher and teachers[0].device != student.device:
        return f"the teacher is on {teachers[0].device} and the student on {student.device}"
    return None


def is_sum_over_events(loss: DistributionLoss, target: TargetRule) -> bool:
    """What is compared at an event depends on that event only, so that parts of a vocabulary can be added up."""
    return (
        loss.is_sum_over_events
        and target.acts_per_token
        and target.is_constant
        and not target.is_normalised
        and not target.needs
    )


def share_with_kernels(losses: Sequence[Loss], target: TargetRule) -> float | None:
    """The share of the generalised Jensen-Shannon divergence that a recipe's divergence is; None = it is another.

    There are kernels for these, on CUDA, where a single divergence compares with the teacher itself.
    """
    divergences = [loss for loss in losses if isinstance(loss, DistributionLoss)]
    return divergences[0].generalised_jsd_share if len(divergences) == 1 and target.is_teacher else None


def _name(loss: Loss) -> str:
    return type(loss).__name__
