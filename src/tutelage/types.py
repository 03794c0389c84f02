"""The records that travel between the parts: what goes into a rollout, what comes out, what a loss compares with.

Axis letters used throughout the library: P prompts, G samples per prompt, B rows (P*G), T positions, V vocabulary,
K kept support tokens, N response tokens of a batch laid end to end. All log-probabilities and entropies are in nats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Batch",
    "DenseTarget",
    "Fact",
    "Prompt",
    "Reading",
    "Rollout",
    "SparseTarget",
    "StepResult",
    "Target",
]


class Fact(StrEnum):
    """What may be known when an update is made. Parts say what they need, a run what it offers."""

    behaviour_token = "log mu of every sampled token"
    student_token = "log p of every sampled token at the rollout"
    student_support = "the student's entropy and its most probable tokens at the rollout"
    teacher_token = "log q of every sampled token"
    teacher_support = "the teacher's log-probabilities of the student's most probable tokens"
    teacher_top = "the teacher's own most probable tokens"
    teacher_full = "the teacher's distribution over the whole vocabulary"
    teacher_layers = "what the teacher's layers make of the tokens"
    teacher_step = "the teacher's distribution while a token is drawn"
    teacher_drawn = "tokens that the teacher helped to draw"
    reference = "a third model"
    moving_reference = "the student as it was at an earlier step"
    group = "several answers to one prompt"
    reward = "a number for every answer"
    pair = "a preferred and a rejected answer to one prompt"


@dataclass(frozen=True)
class Prompt:
    """What is read before the answer: the student's tokens, and the teacher's where it reads another context.

    Fields:
      student_tokens: token ids, at least one.
      teacher_tokens: token ids the teacher reads instead (own chat template, privileged context); None = the same.
      teacher_name: which of several teachers answers for this prompt; None = the unnamed one.
      stream: number of the prompt's random stream. None = its place in the list given to `generate`. Give it where the
        same prompt must draw the same randomness whatever batch it comes in.
    """

    student_tokens: Sequence[int]
    teacher_tokens: Sequence[int] | None = None
    stream: int | None = None
    teacher_name: str | None = None

    @property
    def tokens_for_teacher(self) -> Sequence[int]:
        """What the teacher reads."""
        return self.student_tokens if self.teacher_tokens is None else self.teacher_tokens

    @property
    def longest(self) -> int:
        """Most tokens that one of the two reads."""
        return max(len(self.student_tokens), len(self.tokens_for_teacher))

    def stream_at(self, place: int) -> int:
        """The random stream of the prompt at this place of its list."""
        return place if self.stream is None else self.stream


@dataclass(frozen=True)
class Reading:
    """The numbers of one model for the tokens of one answer.

    Every tensor has one entry per response token, on the CPU.

    Fields:
      logprobs_T: [T] log-probability of each token; NaN where it is not known.
      entropy_T: [T] entropy of the model's distribution over the whole vocabulary.
      support_logprobs_TK: [T, K] log-probabilities on `Rollout.support_ids`, normalised over the whole vocabulary.
      tail_logprobs_T: [T] log of the mass outside the support, summed there and not as 1 - mass; the student has none.
      top: the model's own K most probable tokens, if its scores come from a score cache or a server; an id may be there
        again, without mass.
      reverse_kl_T: [T] KL(student || this model) over the whole vocabulary, of held-out answers that a teacher reads.
      hidden_TD: [T, D] what the model's head turns into its distribution, kept where the loss will ask for all tokens.
    """

    logprobs_T: Tensor
    entropy_T: Tensor | None = None
    support_logprobs_TK: Tensor | None = None
    tail_logprobs_T: Tensor | None = None
    top: SparseTarget | None = None
    reverse_kl_T: Tensor | None = None
    hidden_TD: Tensor | None = field(default=None, repr=False)


@dataclass
class Rollout:
    """One sampled answer, with what was known about every token at the moment it was sampled.

    Every per-token tensor has one entry per response token, on the CPU; the stop token, where there is one, is the last
    response token and has an entry like any other.

    Fields:
      prompt_tokens, response_tokens: token ids the student reads and writes.
      behaviour_logprobs: [T] log mu of each token under the distribution that sampled it; NaN where it is not known.
      student: at evaluation temperatures this stays the student at temperature 1.
      teacher: None until the teacher has read the rollout: during sampling if the policy needs the teacher, afterwards
        through `rollout.scorers` otherwise.
      reference: of a third model, where a target needs one.
      finished: the answer ended with a stop token; False = it was cut by the length limit.
      prompt_index, sample_index: which prompt of the call, which sample of that prompt.
      teacher_prompt_tokens: what the teacher read, if other than `prompt_tokens`.
      teacher_name: which of several teachers answers for the prompt, see `Prompt`.
      support_ids: [T, K] the student's K most probable tokens when the token was sampled ("actor support").
      support_is_shared: [T, K] bool, which tokens of the support are in the teacher's own top K.
      blend: [T] the policy's teacher share (beta of TRB), or None where the policy has none.
      kl_to_student: [T] KL(mu || p), or None for the student's own rollouts, where it is 0.
      replaced: [T] bool, the student's drafted token was refused there and this one drawn in its place; None where
        nothing was drafted.
      rescored_logprobs: [T] log mu of each token as our own forward has it, where another engine sampled; greedy tokens
        are certain on both sides.
      teacher_forwards: forwards in which the teacher read on, its reading of the prompt not counted; None where the
        teacher took no part in the sampling.
    """

    prompt_tokens: list[int]
    response_tokens: list[int]
    behaviour_logprobs: Tensor
    student: Reading
    teacher: Reading | None = None
    reference: Reading | None = None
    finished: bool = False
    prompt_index: int = 0
    sample_index: int = 0
    teacher_prompt_tokens: list[int] | None = None
    teacher_name: str | None = None
    support_ids: Tensor | None = None
    support_is_shared: Tensor | None = None
    blend: Tensor | None = None
    kl_to_student: Tensor | None = None
    replaced: Tensor | None = None
    rescored_logprobs: Tensor | None = None
    teacher_forwards: int | None = None

    @classmethod
    def answer_to(cls, prompt: Prompt, tokens: Sequence[int], logprobs_T: Tensor, **fields: Any) -> Rollout:
        """An answer to a prompt, before more is recorded of its tokens.

        Args:
          logprobs_T: log-probability of each token, under the student and under the distribution that sampled it.
          fields: others of the rollout.
        """
        return cls(
            prompt_tokens=list(prompt.student_tokens),
            response_tokens=list(tokens),
            behaviour_logprobs=logprobs_T,
            student=Reading(logprobs_T),
            teacher_prompt_tokens=None if prompt.teacher_tokens is None else list(prompt.teacher_tokens),
            teacher_name=prompt.teacher_name,
            **fields,
        )

    def __len__(self) -> int:
        return len(self.response_tokens)

    @property
    def student_logprobs(self) -> Tensor:
        """[T] log p of each token."""
        return self.student.logprobs_T

    @property
    def teacher_logprobs(self) -> Tensor | None:
        """[T] log q of each token; None until the teacher has read it."""
        return None if self.teacher is None else self.teacher.logprobs_T

    @property
    def is_scored(self) -> bool:
        """The teacher has read this rollout, so it holds a sparse target."""
        teacher = self.teacher
        return teacher is not None and (teacher.support_logprobs_TK is not None or teacher.top is not None)

    @property
    def support_mass(self) -> Tensor | None:
        """[T] the student's mass on the support."""
        logprobs_TK = self.student.support_logprobs_TK
        return None if logprobs_TK is None else logprobs_TK.exp().sum(-1).clamp(max=1.0)

    @property
    def support_overlap(self) -> Tensor | None:
        """[T] share of the support that is in the teacher's own top K."""
        return None if self.support_is_shared is None else self.support_is_shared.to(self.student_logprobs).mean(-1)

    @property
    def tokens_for_teacher(self) -> list[int]:
        """Prompt as the teacher reads it."""
        return self.prompt_tokens if self.teacher_prompt_tokens is None else self.teacher_prompt_tokens

    def tokenwise(self, path: str) -> Tensor | None:
        """What is recorded of each token under a path such as "teacher.entropy_T"; None if it is not known."""
        found: Any = self
        for name in path.split("."):
            found = None if found is None else getattr(found, name)
        return found  # type: ignore[no-any-return]

    def with_tokenwise(self, values: Mapping[str, Tensor]) -> Rollout:
        """A copy in which these are recorded of each token, by their paths (see `tokenwise`); all else stays."""
        found: dict[str, Any] = {path: value for path, value in values.items() if "." not in path}
        for model in ("student", "teacher", "reference"):
            own = {
                path.removeprefix(f"{model}."): value for path, value in values.items() if path.startswith(f"{model}.")
            }
            if own:
                found[model] = _reading(getattr(self, model), own)
        return replace(self, **found)


@dataclass(frozen=True)
class Batch:
    """What one update sees: the global batch, ordered by prompt, then by sample; tokens are laid end to end.

    Fields:
      rollouts: scored. One without tokens has no part in anything per token.
      rewards: name -> [B], a number for each rollout: "correct", the verdict; in a run with rewards each of them by its
        label, and "reward", all of them combined.
      pairs: (preferred, rejected) places of rollouts.
      own: places of the rollouts whose gradient this process adds; None = all.
      prompt_numbers: which row of the data each prompt is; empty where there is none.
      num_redrawn: prompts that were answered because answers to others all had the same reward.
      weights_N: how much each token counts in the losses; None = the weighting was not asked yet, and all count.
      reward_gram_KK: inner products of the gradients of each reward alone, in the order of their labels; None = they
        were not measured.
    """

    rollouts: Sequence[Rollout]
    rewards: Mapping[str, Tensor] = field(default_factory=dict)
    pairs: Sequence[tuple[int, int]] = ()
    own: Sequence[int] | None = None
    prompt_numbers: Sequence[int] = ()
    num_redrawn: int = 0
    weights_N: Tensor | None = None
    reward_gram_KK: Tensor | None = None

    @property
    def lengths(self) -> list[int]:
        """Tokens per rollout."""
        return [len(rollout) for rollout in self.rollouts]

    @property
    def num_tokens(self) -> int:
        """N, response tokens of all rollouts."""
        return sum(self.lengths)

    @property
    def prompts_B(self) -> Tensor:
        """Which prompt each rollout answers; answers to one prompt are a group."""
        return torch.tensor([rollout.prompt_index for rollout in self.rollouts], dtype=torch.long)

    @property
    def positions_N(self) -> Tensor:
        """Place of each token in its answer, from 0."""
        return torch.cat([torch.arange(length) for length in self.lengths])

    @property
    def units(self) -> list[tuple[int, ...]]:
        """Places of answers that are compared with one another: those that pairs join, directly or through others."""
        joined = {place: {place} for place in range(len(self.rollouts))}
        for one, other in self.pairs:
            merged = joined[one] | joined[other]
            for place in merged:
                joined[place] = merged
        return list(dict.fromkeys(tuple(sorted(unit)) for unit in joined.values()))

    def joined(self, path: str) -> Tensor:
        """What is recorded of each token (see `Rollout.tokenwise`) over all tokens: [N] or [N, K]."""
        with_tokens = [rollout for rollout in self.rollouts if len(rollout)]
        parts = [part for rollout in with_tokens if (part := rollout.tokenwise(path)) is not None]
        assert len(parts) == len(with_tokens), f"rollouts were not scored: {path} is missing"
        return torch.cat(parts)


def _reading(known: Reading | None, values: Mapping[str, Tensor]) -> Reading:
    """A reading with these values, by their paths; all else as it is in `known`."""
    found: dict[str, Any] = {name: value for name, value in values.items() if "." not in name}
    top = {name.removeprefix("top."): value for name, value in values.items() if name.startswith("top.")}
    if top:
        found["top"] = SparseTarget(**top, whose="teacher")
    return Reading(**found) if known is None else replace(known, **found)


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
      rewards: name -> a number per rollout; empty in a run without rewards.
      prompt_numbers: which row of the data each prompt of the step is.
    """

    step: int
    metrics: dict[str, float]
    rollouts: Sequence[Rollout] = field(repr=False)
    correct: Sequence[bool] | None = field(default=None, repr=False)
    phase: str | None = None
    rewards: Mapping[str, Sequence[float]] = field(default_factory=dict, repr=False)
    prompt_numbers: Sequence[int] = field(default=(), repr=False)
