"""In which form is the loss computed? All give the same numbers, up to rounding; time and memory differ.

chunked      chunks of tokens through both heads, in autograd, each computed again in backward; any loss.
tiled        tiles of tokens and vocabulary, gradients taken on the way; a block's logits are kept through its passes.
recomputed   the same, but a tile is computed again in every pass: nothing wider than a tile is ever held.
auto         tiled where the chunked form would need more than one chunk, and where it can be; chunked otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

from tutelage.divergences import FULL_VOCABULARY, Divergence
from tutelage.errors import ConfigurationError
from tutelage.models import LanguageModel
from tutelage.targets import TargetRule

__all__ = ["LOSS_FORMS", "check_method_form", "check_models_form", "is_sum_over_events", "loss_form"]

LOSS_FORMS = ("auto", "chunked", "tiled", "recomputed")


def loss_form(
    wanted: str,
    divergence: Divergence,
    target: TargetRule,
    student: LanguageModel,
    teachers: Sequence[LanguageModel],
    *,
    is_one_chunk: bool,
) -> str:
    """The form that a batch's loss is computed in: "chunked", "tiled" or "recomputed".

    Args:
      wanted: one of `LOSS_FORMS`.
      teachers: those that are asked for whole distributions, if the divergence needs any.
      is_one_chunk: the chunked form takes all tokens at once.
    Raises:
      ConfigurationError: another form than "chunked" is asked for by name, and the loss cannot be computed in it.
    """
    of_method = obstacle_of_method("tiled" if wanted == "auto" else wanted, divergence, target)
    reason = of_method or obstacle_of_models(divergence, student, teachers)
    if wanted == "auto":
        return "chunked" if is_one_chunk or reason is not None else "tiled"
    _check_form(wanted, reason)
    return wanted


def check_method_form(wanted: str, divergence: Divergence, target: TargetRule) -> None:
    """Refuse a form that is asked for by name and that no models' loss of this method has."""
    _check_form(wanted, obstacle_of_method(wanted, divergence, target))


def check_models_form(
    wanted: str, divergence: Divergence, student: LanguageModel, teachers: Sequence[LanguageModel]
) -> None:
    """Refuse a form that is asked for by name and that these models' loss does not have."""
    _check_form(wanted, obstacle_of_models(divergence, student, teachers))


def _check_form(wanted: str, reason: str | None) -> None:
    if wanted not in LOSS_FORMS:
        raise ConfigurationError(f"runtime.loss is {wanted!r}; expected one of {', '.join(LOSS_FORMS)}.")
    if wanted in ("tiled", "recomputed") and reason is not None:
        raise ConfigurationError(
            f"runtime.loss is {wanted!r}, but {reason}. Use runtime.loss = 'auto', which takes tiles where it can."
        )


def obstacle_of_method(form: str, divergence: Divergence, target: TargetRule) -> str | None:
    """Why a divergence from a target cannot be computed in tiles; None if it can."""
    name = type(divergence).__name__
    if divergence.tokens_per_group is not None:
        return f"the divergence {name} compares several tokens with each other"
    if not divergence.needs_full_target:
        return None
    if divergence.window != FULL_VOCABULARY:
        return f"divergence.support is {divergence.support!r}, which looks for tokens in whole distributions"
    if divergence.needs_rollouts:
        return f"the divergence {name} is taken on sampled tokens and looks at whole distributions"
    if target.needs is not None:
        return f"the target {type(target).__name__} looks at a third model's whole distribution"
    if form == "recomputed" and not is_sum_over_events(divergence, target):
        return f"the divergence {name} with the target {type(target).__name__} is not a sum over events"
    return None


def obstacle_of_models(divergence: Divergence, student: LanguageModel, teachers: Sequence[LanguageModel]) -> str | None:
    """Why these models' loss cannot be computed in tiles; None if it can."""
    if not student.has_plain_head:
        return f"the head of {student.name} is not one plain linear layer"
    if divergence.needs_full_target and (len(teachers) != 1 or not teachers[0].has_plain_head):
        return "the teacher is several models, or its head is not one plain linear layer"
    return None


def is_sum_over_events(divergence: Divergence, target: TargetRule) -> bool:
    """What is compared at an event depends on that event only, so that parts of a vocabulary can be added up."""
    return (
        divergence.is_sum_over_events
        and target.acts_per_token
        and target.is_constant
        and not target.is_normalised
        and target.needs is None
    )
