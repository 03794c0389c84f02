"""What happened in these rollouts, as named numbers: the policy, both models' probabilities of the tokens, and how the
answers ended. Everything is read off the rollouts; no model runs here. All of it is cheap enough for every step;
`diagnostics.details` has the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tutelage.diagnostics.teacher_support import support_score
from tutelage.errors import DataError
from tutelage.types import Rollout

__all__ = ["finite_means", "per_token", "rollout_metrics"]


def rollout_metrics(
    rollouts: Sequence[Rollout],
    *,
    kl_radius: float | None = None,
    rewards: Sequence[float] | None = None,
) -> dict[str, float]:
    """Average what is known about the rollouts, as defined in `table.METRICS`.

    A mean per token weighs every response token of all rollouts equally, a mean per rollout every rollout. A name is
    left out where any of the rollouts lacks an input, so that all numbers of one call are about the same tokens; where
    there is no token to average over; and where the mean is not finite (the teacher rules out a sampled token).

    `sampled_reverse_kl` is an unbiased estimate of KL(p || q) on the visited prefixes if the student itself sampled at
    temperature 1. Under another policy its mean is KL(mu || q) - KL(mu || p): for a blend towards the teacher it is too
    low, and can be negative.

    Args:
      rollouts: any number, of any lengths.
      kl_radius: KL budget in force, in nats; `kl_used_share` needs it above 0.
      rewards: one number per rollout, in the same order.
    """
    if rewards is not None and len(rewards) != len(rollouts):
        raise DataError(
            f"Got {len(rewards)} rewards for {len(rollouts)} rollouts; expected one each. Pass them in rollout order."
        )
    student, teacher = per_token(rollouts, "student.logprobs_T"), per_token(rollouts, "teacher.logprobs_T")
    reference = per_token(rollouts, "reference.logprobs_T")
    student_entropy, teacher_entropy = (
        per_token(rollouts, "student.entropy_T"),
        per_token(rollouts, "teacher.entropy_T"),
    )
    blend, kl = per_token(rollouts, "blend"), per_token(rollouts, "kl_to_student")
    tail, replaced = per_token(rollouts, "teacher.tail_logprobs_T"), per_token(rollouts, "replaced")
    behaviour, rescored = per_token(rollouts, "behaviour_logprobs"), per_token(rollouts, "rescored_logprobs")
    gaps = None if behaviour is None or rescored is None else (behaviour - rescored).abs()
    finished = torch.tensor([float(rollout.finished) for rollout in rollouts], dtype=torch.float64)

    values: dict[str, Tensor | None] = {
        "behaviour_logprob": behaviour,
        "student_logprob": student,
        "teacher_logprob": teacher,
        "reference_logprob": reference,
        "sampled_reference_kl": None if student is None or reference is None else student - reference,
        "sampled_reverse_kl": None if student is None or teacher is None else student - teacher,
        "student_entropy": student_entropy,
        "teacher_entropy": teacher_entropy,
        "entropy_gap": (
            None if student_entropy is None or teacher_entropy is None else (teacher_entropy - student_entropy).abs()
        ),
        "blend_mean": blend,
        "blend_share_zero": None if blend is None else (blend == 0).double(),
        "blend_share_one": None if blend is None else (blend == 1).double(),
        "blend_share_inside": None if blend is None else ((blend > 0) & (blend < 1)).double(),
        "kl_used": kl,
        "kl_used_share": None if kl is None or kl_radius is None or kl_radius <= 0 else kl / kl_radius,
        "sequence_kl": None if kl is None else kl.sum() / len(rollouts),
        "replaced_share": replaced,
        "acceptance_rate": None if replaced is None else 1 - replaced,
        "tokens_per_teacher_forward": _tokens_per_teacher_forward(rollouts),
        "support_mass_student": per_token(rollouts, "support_mass"),
        "support_mass_teacher": None if tail is None else -torch.expm1(tail),
        "support_overlap": per_token(rollouts, "support_overlap"),
        "response_tokens": torch.tensor([float(len(rollout)) for rollout in rollouts], dtype=torch.float64),
        "stopped_share": finished,
        "truncated_share": 1 - finished,
        "teacher_support": _teacher_support(rollouts),
        "vllm_logprob_mismatch": gaps,
        "vllm_logprob_mismatch_max": None if gaps is None else gaps.max(),
        "reward": None if rewards is None else torch.tensor([float(reward) for reward in rewards], dtype=torch.float64),
    }
    return finite_means(values)


def finite_means(values: Mapping[str, Tensor | None]) -> dict[str, float]:
    """Means of those that have one: a name whose values are unknown, none or not finite is left out."""
    means = {name: float(value.mean()) for name, value in values.items() if value is not None and value.numel()}
    return {name: mean for name, mean in means.items() if abs(mean) < float("inf")}


def _teacher_support(rollouts: Sequence[Rollout]) -> Tensor | None:
    """Scores of the rollouts that have a token; None if the teacher has not read one of them."""
    if any(rollout.teacher_logprobs is None for rollout in rollouts):
        return None
    scores = [support_score(rollout) for rollout in rollouts if len(rollout)]
    return torch.tensor(scores, dtype=torch.float64)


def _tokens_per_teacher_forward(rollouts: Sequence[Rollout]) -> Tensor | None:
    forwards = [rollout.teacher_forwards for rollout in rollouts]
    known = [number for number in forwards if number]
    if not known or len(known) < len(forwards):
        return None
    return torch.tensor(sum(len(rollout) for rollout in rollouts) / sum(known), dtype=torch.float64)


def per_token(rollouts: Sequence[Rollout], path: str) -> Tensor | None:
    """What is recorded of all tokens, laid end to end: [N] in float64; None if a rollout lacks it or there is no token.

    `path`: see `Rollout.tokenwise`.
    """
    tensors: list[Tensor | None] = [rollout.tokenwise(path) for rollout in rollouts]
    present = [tensor.double() for tensor in tensors if tensor is not None]
    if len(present) < len(tensors) or not sum(len(tensor) for tensor in present):
        return None
    return torch.cat(present)
