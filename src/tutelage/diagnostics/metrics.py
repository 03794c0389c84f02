"""What happened in these rollouts, as named numbers: who picked the tokens, what both models thought of them, and how
the answers ended. Everything is read off the rollouts; no model runs here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tutelage.errors import DataError
from tutelage.types import Rollout

__all__ = ["METRICS", "Metric", "rollout_metrics"]


class Metric(NamedTuple):
    """Unit and one-line definition of a metric."""

    unit: str
    definition: str


METRICS: dict[str, Metric] = {
    "behaviour_logprob": Metric("nats/token", "mean log mu of the sampled tokens, mu being what sampled them"),
    "student_logprob": Metric("nats/token", "mean log p of the sampled tokens under the student"),
    "teacher_logprob": Metric("nats/token", "mean log q of the sampled tokens under the teacher"),
    "reference_logprob": Metric("nats/token", "mean log-probability of the sampled tokens under a target's reference"),
    "sampled_reverse_kl": Metric("nats/token", "mean log p - log q of the sampled tokens (k1 estimate of KL(p || q))"),
    "student_entropy": Metric("nats", "mean entropy of p on the visited prefixes, whole vocabulary"),
    "teacher_entropy": Metric("nats", "mean entropy of q on the visited prefixes, whole vocabulary"),
    "entropy_gap": Metric("nats", "mean absolute difference of the two entropies"),
    "blend_mean": Metric("share", "mean teacher share of the policy (beta of TRB)"),
    "blend_share_zero": Metric("share", "tokens drawn from the student alone (blend exactly 0)"),
    "blend_share_one": Metric("share", "tokens drawn from the teacher alone (blend exactly 1)"),
    "kl_used": Metric("nats/token", "mean KL(mu || p), how far the policy left the student"),
    "kl_used_share": Metric("share", "kl_used over the KL radius in force"),
    "sequence_kl": Metric("nats/rollout", "mean over rollouts of the summed KL(mu || p), estimates KL(P_mu || P_p)"),
    "acceptance_rate": Metric("share", "drafted tokens that were kept, of those that were judged"),
    "tokens_per_teacher_forward": Metric("tokens", "response tokens per forward of the teacher during sampling"),
    "support_mass_student": Metric("share", "mean student mass on the student's top-K support"),
    "support_mass_teacher": Metric("share", "mean teacher mass on the student's top-K support"),
    "support_overlap": Metric("share", "mean share of the student's top-K that is in the teacher's top-K"),
    "response_tokens": Metric("tokens", "mean response length, stop token included"),
    "stopped_share": Metric("share", "rollouts that ended with a stop token"),
    "truncated_share": Metric("share", "rollouts cut by the length limit"),
    "reward": Metric("reward", "mean reward of the rollouts"),
    "teacher_support_auroc": Metric("share", "AUROC of mean log q - log p as a score for correct rollouts"),
}
"""Every metric of this folder: name -> unit and definition. docs/usage/metrics.md is checked against it."""


def rollout_metrics(
    rollouts: Sequence[Rollout],
    *,
    kl_radius: float | None = None,
    rewards: Sequence[float] | None = None,
) -> dict[str, float]:
    """Average what is known about the rollouts, as defined in `METRICS`.

    A mean per token weighs every response token of all rollouts equally, a mean per rollout every rollout. A name is
    left out where any of the rollouts lacks an input, so that all numbers of one call speak of the same tokens; where
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
    student, teacher = _per_token(rollouts, "student_logprobs"), _per_token(rollouts, "teacher_logprobs")
    student_entropy, teacher_entropy = _per_token(rollouts, "student_entropy"), _per_token(rollouts, "teacher_entropy")
    blend, kl = _per_token(rollouts, "blend"), _per_token(rollouts, "kl_to_student")
    tail, replaced = _per_token(rollouts, "teacher_tail_logprobs"), _per_token(rollouts, "replaced")
    finished = torch.tensor([float(rollout.finished) for rollout in rollouts], dtype=torch.float64)

    values: dict[str, Tensor | None] = {
        "behaviour_logprob": _per_token(rollouts, "behaviour_logprobs"),
        "student_logprob": student,
        "teacher_logprob": teacher,
        "reference_logprob": _per_token(rollouts, "reference_logprobs"),
        "sampled_reverse_kl": None if student is None or teacher is None else student - teacher,
        "student_entropy": student_entropy,
        "teacher_entropy": teacher_entropy,
        "entropy_gap": (
            None if student_entropy is None or teacher_entropy is None else (teacher_entropy - student_entropy).abs()
        ),
        "blend_mean": blend,
        "blend_share_zero": None if blend is None else (blend == 0).double(),
        "blend_share_one": None if blend is None else (blend == 1).double(),
        "kl_used": kl,
        "kl_used_share": None if kl is None or kl_radius is None or kl_radius <= 0 else kl / kl_radius,
        "sequence_kl": None if kl is None else kl.sum() / len(rollouts),
        "acceptance_rate": None if replaced is None else 1 - replaced,
        "tokens_per_teacher_forward": _tokens_per_teacher_forward(rollouts),
        "support_mass_student": _per_token(rollouts, "support_mass"),
        "support_mass_teacher": None if tail is None else -torch.expm1(tail),
        "support_overlap": _per_token(rollouts, "support_overlap"),
        "response_tokens": torch.tensor([float(len(rollout)) for rollout in rollouts], dtype=torch.float64),
        "stopped_share": finished,
        "truncated_share": 1 - finished,
        "reward": None if rewards is None else torch.tensor([float(reward) for reward in rewards], dtype=torch.float64),
    }
    means = {name: float(value.mean()) for name, value in values.items() if value is not None and value.numel()}
    return {name: mean for name, mean in means.items() if abs(mean) < float("inf")}


def _tokens_per_teacher_forward(rollouts: Sequence[Rollout]) -> Tensor | None:
    forwards = [rollout.teacher_forwards for rollout in rollouts]
    known = [number for number in forwards if number]
    if not known or len(known) < len(forwards):
        return None
    return torch.tensor(sum(len(rollout) for rollout in rollouts) / sum(known), dtype=torch.float64)


def _per_token(rollouts: Sequence[Rollout], field: str) -> Tensor | None:
    """One field of all rollouts laid end to end, [N] in float64; None if a rollout lacks it or there is no token."""
    tensors: list[Tensor | None] = [getattr(rollout, field) for rollout in rollouts]
    present = [tensor.double() for tensor in tensors if tensor is not None]
    if len(present) < len(tensors) or not sum(len(tensor) for tensor in present):
        return None
    return torch.cat(present)
