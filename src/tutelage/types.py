"""The records that travel between the parts: what goes into a rollout, what comes out, what a loss compares with.

Axis letters used throughout the library: P prompts, G samples per prompt, B rows (P*G), T positions, V vocabulary,
K kept support tokens, N response tokens of a batch laid end to end. All log-probabilities and entropies are in nats.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

__all__ = ["DenseTarget", "Prompt", "Rollout", "SampledTokens", "SparseTarget", "StepResult", "Target", "TokenRecords"]


@dataclass(frozen=True)
class Prompt:
    """What is read before the answer: the student's tokens, and the teacher's where it reads another context.

    Fields:
      student_tokens: token ids, at least one.
      teacher_tokens: token ids the teacher reads instead (own chat template, privileged context); None = the same.
      teacher_name: which of several teachers answers for this prompt; None = the one that there is anyway.
      stream: number of the prompt's random stream. None = its place in the list given to `generate`. Give it where the
        same prompt must draw the same randomness whatever batch it comes in.
    """

    student_tokens: Sequence[int]
    teacher_tokens: Sequence[int] | None = None
    stream: int | None = None
    teacher_name: str | None = None


@dataclass
class Rollout:
    """One sampled answer, with what was known about every token at the moment it was sampled.

    Every per-token tensor has one entry per response token, on the CPU; the stop token, where there is one, is the last
    response token and has an entry like any other. Teacher fields are None until the teacher has seen the rollout:
    during sampling if the policy needs the teacher, afterwards through `rollout.scoring` otherwise.

    Fields:
      prompt_tokens, response_tokens: token ids the student reads and writes.
      behaviour_logprobs: [T] log mu of each token under the distribution that sampled it; NaN where nobody knows it.
      student_logprobs: [T] log p of each token. At evaluation temperatures this stays the student at temperature 1. NaN
        where the student was not asked, as in an answer that was given.
      teacher_logprobs: [T] log q of each token, or None.
      finished: the answer ended with a stop token; False = it was cut by the length limit.
      prompt_index, sample_index: which prompt of the call, which sample of that prompt.
      teacher_prompt_tokens: what the teacher read, if other than `prompt_tokens`.
      blend: [T] the policy's teacher share (beta of TRB), or None where the policy has none.
      kl_to_student: [T] KL(mu || p), or None for the student's own rollouts, where it is 0.
      student_entropy, teacher_entropy: [T] entropy of p and of q over the whole vocabulary.
      support_ids: [T, K] the student's K most probable tokens when the token was sampled ("actor support").
      support_mass: [T] student mass on them.
      student_support_logprobs: [T, K] log p on the support, normalised over the whole vocabulary.
      teacher_support_logprobs: [T, K] log q on the support, normalised over the whole vocabulary.
      teacher_tail_logprobs: [T] log of the teacher's mass outside the support, summed there and not as 1 - mass.
      support_overlap: [T] share of the support that is in the teacher's own top K.
      support_is_shared: [T, K] bool, which tokens of the support these are.
      teacher_hidden: [T, D] what the teacher's head turns into log q, kept where the loss will ask for all tokens.
      reference_logprobs: [T] log-probability of each token under the reference, where a target needs one.
      reference_support_logprobs, reference_tail_logprobs: as those of the teacher.
      reread_logprobs: [T] log mu of each token as our own forward has it, where another engine sampled; greedy tokens
        are certain on both sides.
      teacher_top_ids: [T, K] the teacher's own K most probable tokens, where it wrote them down or is a server; an id
        may stand there again, without mass.
      teacher_top_logprobs: [T, K] log q on them, normalised over the whole vocabulary.
      teacher_top_tail: [T] log of the teacher's mass on all others.
      teacher_name: which of several teachers answers for the prompt, see `Prompt`.
      replaced: [T] bool, the student's drafted token was refused there and this one drawn in its place; None where
        nothing was drafted.
      teacher_forwards: forwards in which the teacher read on, its reading of the prompt not counted; None where the
        teacher took no part in the sampling.
    """

    prompt_tokens: list[int]
    response_tokens: list[int]
    behaviour_logprobs: Tensor
    student_logprobs: Tensor
    teacher_logprobs: Tensor | None = None
    finished: bool = False
    prompt_index: int = 0
    sample_index: int = 0
    teacher_prompt_tokens: list[int] | None = None
    blend: Tensor | None = None
    kl_to_student: Tensor | None = None
    student_entropy: Tensor | None = None
    teacher_entropy: Tensor | None = None
    support_ids: Tensor | None = None
    support_mass: Tensor | None = None
    student_support_logprobs: Tensor | None = None
    teacher_support_logprobs: Tensor | None = None
    teacher_tail_logprobs: Tensor | None = None
    support_overlap: Tensor | None = None
    support_is_shared: Tensor | None = None
    teacher_hidden: Tensor | None = field(default=None, repr=False)
    replaced: Tensor | None = None
    teacher_forwards: int | None = None
    reference_logprobs: Tensor | None = None
    reference_support_logprobs: Tensor | None = None
    reference_tail_logprobs: Tensor | None = None
    teacher_name: str | None = None
    reread_logprobs: Tensor | None = None
    teacher_top_ids: Tensor | None = None
    teacher_top_logprobs: Tensor | None = None
    teacher_top_tail: Tensor | None = None

    def __len__(self) -> int:
        return len(self.response_tokens)

    @property
    def is_scored(self) -> bool:
        """The teacher has seen this rollout, so a sparse target can be read off it."""
        return self.teacher_support_logprobs is not None or self.teacher_top_ids is not None

    @property
    def tokens_for_teacher(self) -> list[int]:
        """Prompt as the teacher reads it."""
        return self.prompt_tokens if self.teacher_prompt_tokens is None else self.teacher_prompt_tokens


@dataclass(frozen=True)
class TokenRecords:
    """The records of a batch of rollouts, answer after answer: what is known of every token before the update.

    Fields:
      rollouts: scored, each with at least one token.
    """

    rollouts: Sequence[Rollout]

    def __len__(self) -> int:
        return sum(self.lengths)

    @property
    def lengths(self) -> list[int]:
        """Tokens per rollout."""
        return [len(rollout) for rollout in self.rollouts]

    @property
    def positions_N(self) -> Tensor:
        """Place of each token in its answer, from 0."""
        return torch.cat([torch.arange(length) for length in self.lengths])

    def joined(self, name: str) -> Tensor:
        """A per-token field of `Rollout` over all tokens: [N] or [N, K]."""
        parts = [getattr(rollout, name) for rollout in self.rollouts]
        assert all(part is not None for part in parts), f"rollouts were not scored: {name} is missing"
        return torch.cat(parts)


@dataclass(frozen=True)
class SampledTokens:
    """What a loss on sampled tokens is given about n of them; only the first field has a gradient.

    Fields:
      logprobs: [n] log p of the sampled token, of the student that is being updated.
      student_logprobs, behaviour_logprobs, target_logprobs: [n] log p, log mu and log target at the rollout.
      credits: [n] see `Divergence.credits`.
      uniforms: [n] in [0, 1); a random number that belongs to the token.
      is_teachers: [n] bool, the teacher alone drew the token (the policy's blend is 1).
    """

    logprobs: Tensor
    student_logprobs: Tensor
    behaviour_logprobs: Tensor
    target_logprobs: Tensor
    credits: Tensor
    uniforms: Tensor
    is_teachers: Tensor


@dataclass(frozen=True)
class SparseTarget:
    """What to imitate, on K support tokens per position and, as one more event, everything else.

    Fields:
      support_ids: [..., K] token ids.
      logprobs: [..., K] target log-probability of each, normalised over the whole vocabulary.
      tail_logprobs: [...] log of the target's mass on all other tokens.
      whose: most probable tokens they are, "student" or "teacher".
    """

    support_ids: Tensor
    logprobs: Tensor
    tail_logprobs: Tensor
    whose: str = "student"


@dataclass(frozen=True)
class DenseTarget:
    """What to imitate, on the whole vocabulary.

    Fields:
      logits: [..., V] logits or log-probabilities; they need not be normalised.
    """

    logits: Tensor = field(repr=False)


Target = SparseTarget | DenseTarget


@dataclass(frozen=True)
class StepResult:
    """What one training step did.

    Fields:
      step: k = 0, 1, ...: the rollouts were made by the weights after k updates.
      metrics: named numbers, see `diagnostics.METRICS`.
      rollouts: scored.
      correct: right or wrong per rollout, or None without a verifier.
      phase: name of the run's phase, or None in a run without phases.
    """

    step: int
    metrics: dict[str, float]
    rollouts: Sequence[Rollout] = field(repr=False)
    correct: Sequence[bool] | None = field(default=None, repr=False)
    phase: str | None = None
