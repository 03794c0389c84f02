"""The names of all metrics of rollouts, with unit and definition; nothing is computed here."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["METRICS", "POSITIONS", "Metric"]

POSITIONS = (0, 4, 16, 64, 256, 1024, 4096)
"""First places of the stretches by which a metric by position is averaged; each ends where the next begins."""

SOLVED = {"unsolved": "no answer", "hard": "up to half", "easy": "more than half, not all", "solved": "every answer"}
TRAIN_PASS_AT = (1, 2, 4, 8, 16, 32, 64)


class Metric(NamedTuple):
    """Unit and one-line definition of a metric."""

    unit: str
    definition: str


METRICS: dict[str, Metric] = {
    "behaviour_logprob": Metric("nats/token", "mean log mu of the sampled tokens under the policy that sampled them"),
    "student_logprob": Metric("nats/token", "mean log p of the sampled tokens under the student"),
    "teacher_logprob": Metric("nats/token", "mean log q of the sampled tokens under the teacher"),
    "reference_logprob": Metric("nats/token", "mean log-probability of the sampled tokens under a target's reference"),
    "sampled_reverse_kl": Metric("nats/token", "mean log p - log q of the sampled tokens (k1 estimate of KL(p || q))"),
    "sampled_reference_kl": Metric("nats/token", "mean log p - log reference of the sampled tokens (k1 estimate)"),
    "student_entropy": Metric("nats", "mean entropy of p on the visited prefixes, whole vocabulary"),
    "teacher_entropy": Metric("nats", "mean entropy of q on the visited prefixes, whole vocabulary"),
    "entropy_gap": Metric("nats", "mean absolute difference of the two entropies"),
    "blend_mean": Metric("share", "mean teacher share of the policy (beta of TRB)"),
    "blend_share_zero": Metric("share", "tokens drawn from the student alone (blend exactly 0)"),
    "blend_share_one": Metric("share", "tokens drawn from the teacher alone (blend exactly 1)"),
    "blend_share_inside": Metric("share", "tokens drawn from a blend of both (blend inside (0, 1))"),
    "kl_used": Metric("nats/token", "mean KL(mu || p), the distance of the policy from the student"),
    "kl_used_share": Metric("share", "kl_used over the KL radius in force"),
    "sequence_kl": Metric("nats/rollout", "mean over rollouts of the summed KL(mu || p), estimates KL(P_mu || P_p)"),
    "replaced_share": Metric("share", "tokens drawn in the place of a refused draft of the student"),
    "acceptance_rate": Metric("share", "drafted tokens that were kept, of those that were judged"),
    "tokens_per_teacher_forward": Metric("tokens", "response tokens per forward of the teacher during sampling"),
    "support_mass_student": Metric("share", "mean student mass on the student's top-K support"),
    "support_mass_teacher": Metric("share", "mean teacher mass on the student's top-K support"),
    "support_overlap": Metric("share", "mean share of the student's top-K that is in the teacher's top-K"),
    "response_tokens": Metric("tokens", "mean response length, stop token included"),
    "stopped_share": Metric("share", "rollouts that ended with a stop token"),
    "truncated_share": Metric("share", "rollouts cut by the length limit"),
    "reward": Metric("reward", "mean reward of the rollouts"),
    "teacher_support": Metric("nats/token", "mean over rollouts of their mean log q - log p"),
    "teacher_support_auroc": Metric("share", "AUROC of mean log q - log p as a score for correct rollouts"),
    "vllm_logprob_mismatch": Metric("nats/token", "mean |log mu of vLLM - log mu as we read it| of the sampled tokens"),
    "vllm_logprob_mismatch_max": Metric("nats", "the largest of these differences in the step"),
    # Of groups, the answers to one prompt; see `training.group_metrics`.
    "zero_spread_share": Metric("share", "prompts of several answers whose rewards are all equal"),
    **{f"group_share_{name}": Metric("share", f"prompts of which {what} is right") for name, what in SOLVED.items()},
    **{
        f"train_pass_at_{k}": Metric("share", f"unbiased pass@{k} of the step's answers, mean over prompts")
        for k in TRAIN_PASS_AT
    },
    # Of token losses, at the weights of the update; see `losses.TokenLoss.statistics`.
    **{
        f"advantage_{name}": Metric("advantage", f"mean |A| of the tokens of prompts of which {what} is right")
        for name, what in SOLVED.items()
    },
    "ratio_min": Metric("ratio", "smallest ratio of a token in a clipped loss"),
    "ratio_max": Metric("ratio", "largest ratio of a token in a clipped loss"),
    "sequence_ratio_min": Metric("ratio", "smallest exp of an answer's mean log p now - log p at the rollout"),
    "sequence_ratio_max": Metric("ratio", "largest exp of an answer's mean log p now - log p at the rollout"),
    "clip_share_high": Metric("share", "tokens with A > 0 and a ratio above its upper bound"),
    "clip_share_low": Metric("share", "tokens with A < 0 and a ratio below its lower bound"),
    "clip_share_dual": Metric("share", "tokens with A < 0 and a ratio above dual_clip"),
    "correction_cut_share": Metric("share", "tokens whose weight p / mu was cut"),
    "correction_effective_share": Metric("share", "effective sample size of these weights over their number"),
    "memory_gib": Metric("GiB", "most memory that torch held on the GPU during the step"),
    # From here on: every `logging.diagnostics_every` steps, see `diagnostics.details`.
    **{
        f"{name}_at_{first}": Metric("nats", f"mean {what} from place {first} of the answers to the next stretch")
        for name, what in {
            "reverse_kl": "KL(p || q) on the recorded support and its tail",
            "student_entropy": "H(p)",
            "teacher_entropy": "H(q)",
        }.items()
        for first in POSITIONS
    },
    "overlap_advantage": Metric("nats", "mean -KL(p || q) / |I|, both renormalised on the shared top-K tokens I"),
    "overlap_advantage_teacher_weighted": Metric("nats", "mean over I of q (log p - log q), not renormalised"),
    "overlap_mass_student": Metric("share", "mean student mass on the shared top-K tokens"),
    "overlap_mass_teacher": Metric("share", "mean teacher mass on the shared top-K tokens"),
    "blend_inside_quartile_1": Metric("share", "a quarter of the blends inside (0, 1) are at most this"),
    "blend_inside_median": Metric("share", "half of the blends inside (0, 1) are at most this"),
    "blend_inside_quartile_3": Metric("share", "three quarters of the blends inside (0, 1) are at most this"),
    "repeated_4grams": Metric("share", "mean over rollouts of 1 - distinct 4-grams / 4-grams"),
    "longest_repeat": Metric("tokens", "mean length of the longest stretch that stands twice in a rollout"),
    "teacher_logprob_drift": Metric("nats/token", "mean log q of a rollout's last quarter less that of its first"),
}
"""Every metric of this folder: name -> unit and definition. docs/usage/metrics.md is checked against it."""
