"""Are a policy's prefixes better starting points than the student's own?

Answers of both are cut after t tokens and continued by the teacher and by the student (the continuation gain of TRB,
arXiv 2605.31159, figure 5). Nothing is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from tutelage.errors import ConfigurationError
from tutelage.evaluation import bootstrap_interval, relative_gain_interval
from tutelage.policies import Policy, Student, Teacher
from tutelage.probes.parts import ProbeParts
from tutelage.rollout import derive_seed
from tutelage.types import Prompt, Reading, Rollout

__all__ = ["ContinuationGain", "probe_continuation"]

CONTINUERS: dict[str, Policy] = {"teacher": Teacher(), "student": Student()}


@dataclass(frozen=True)
class ContinuationGain:
    """How often answers from two kinds of prefixes are right, under one continuer.

    Fields:
      length: t, tokens that are kept of each answer.
      continuer: the model that wrote the rest, teacher or student.
      policy_success, student_success: shares of right answers that continue the policy's prefixes and the student's.
      difference, difference_interval: policy_success - student_success, and its 95% bootstrap interval over problems.
      relative_gain: difference / student_success, our reading of the paper, which gives no formula; None where that
        is 0.
      relative_gain_interval: 95%, over problems; None where it is unknown.
    """

    length: int
    continuer: str
    policy_success: float
    student_success: float
    difference: float
    difference_interval: tuple[float, float]
    relative_gain: float | None
    relative_gain_interval: tuple[float, float] | None


def probe_continuation(
    parts: ProbeParts, policy: Policy, lengths: Sequence[int], *, num_samples: int, step: int = 0
) -> list[ContinuationGain]:
    """Continue prefixes of `policy` and of the student with both models.

    Both policies draw with the same random numbers, and so do the continuers. An answer that ends within its first t
    tokens is judged as it is.

    Args:
      policy: with its schedules resolved.
      lengths: tokens kept, each at least 1 and below the run's length limit.
      num_samples: answers per prompt and policy.
      step: keys the random numbers of the answers.
    """
    for length in lengths:
        if not 1 <= length < parts.max_new_tokens:
            raise ConfigurationError(
                f"a length is {length}; expected 1 to {parts.max_new_tokens - 1}, so that something is kept and "
                "something is left to write. Change --lengths, or raise rollout.max_new_tokens."
            )
    whole = {
        is_student: parts.engine.generate(
            Student() if is_student else policy,
            parts.prompts,
            max_new_tokens=parts.max_new_tokens,
            num_samples=num_samples,
            seed=derive_seed(parts.seed, "probe"),
            step=step,
            records_statistics=False,
        )
        for is_student in (False, True)
    }
    return [
        _gain(
            length,
            name,
            *(_success(parts, continued(parts, answers, length, continuer)) for answers in whole.values()),
        )
        for length in lengths
        for name, continuer in CONTINUERS.items()
    ]


def continued(parts: ProbeParts, answers: Sequence[Rollout], length: int, continuer: Policy) -> list[Rollout]:
    """Answers whose tokens after the first `length` are sampled again; shorter answers stay as they are."""
    finished = list(answers)
    # A stream of its own for each answer: two samples of one prompt must not continue with the same numbers.
    cut = [place for place, answer in enumerate(answers) if len(answer) > length]
    prompts = [
        Prompt(
            [*answers[i].prompt_tokens, *answers[i].response_tokens[:length]],
            teacher_tokens=[*answers[i].tokens_for_teacher, *answers[i].response_tokens[:length]],
            teacher_name=answers[i].teacher_name,
            stream=i,
        )
        for i in cut
    ]
    rest = parts.engine.generate(
        continuer,
        prompts,
        max_new_tokens=parts.max_new_tokens - length,
        seed=derive_seed(parts.seed, "probe continuation"),
        step=length,
        records_statistics=False,
    )
    for place, written in zip(cut, rest, strict=True):
        answer = answers[place]
        finished[place] = Rollout(
            prompt_tokens=answer.prompt_tokens,
            response_tokens=[*answer.response_tokens[:length], *written.response_tokens],
            behaviour_logprobs=torch.cat([answer.behaviour_logprobs[:length], written.behaviour_logprobs]),
            student=Reading(torch.cat([answer.student_logprobs[:length], written.student_logprobs])),
            finished=written.finished,
            prompt_index=answer.prompt_index,
            sample_index=answer.sample_index,
        )
    return finished


def _success(parts: ProbeParts, answers: Sequence[Rollout]) -> list[float]:
    """Share of right answers per prompt."""
    correct = parts.judge(answers)
    marks: dict[int, list[bool]] = {}
    for answer, is_correct in zip(answers, correct, strict=True):
        marks.setdefault(answer.prompt_index, []).append(is_correct)
    return [fmean(marks[place]) for place in sorted(marks)]


def _gain(length: int, continuer: str, policy_P: Sequence[float], student_P: Sequence[float]) -> ContinuationGain:
    policy, student = fmean(policy_P), fmean(student_P)
    return ContinuationGain(
        length=length,
        continuer=continuer,
        policy_success=policy,
        student_success=student,
        difference=policy - student,
        difference_interval=bootstrap_interval([a - b for a, b in zip(policy_P, student_P, strict=True)]),
        relative_gain=(policy - student) / student if student > 0 else None,
        relative_gain_interval=relative_gain_interval(policy_P, student_P),
    )
