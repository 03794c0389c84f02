"""Answers that are read when they are finished, changed at one place, and finished anew."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tutelage.kernels import Rows
from tutelage.models import ModelSet
from tutelage.policies import Intervention, Policy, Student
from tutelage.rollout.decoding.statistics import student_statistics
from tutelage.rollout.decoding.streams import derive_seed
from tutelage.rollout.engines.base import Engine, check_served
from tutelage.rollout.limits import DEFAULT_SUPPORT_SIZE, Limits
from tutelage.rollout.reading import Reader
from tutelage.rollout.request import Request
from tutelage.rollout.scorers import LocalScorer
from tutelage.types import Batch, Prompt, Rollout
from tutelage.weighting import recorded_kl

__all__ = ["EditingEngine"]


@dataclass(frozen=True)
class _Edited:
    """An answer so far: its tokens, which of them the teacher put there, and where the next change may be."""

    rollout: Rollout
    forced: frozenset[int] = frozenset()
    first: int = 0


@dataclass(frozen=True)
class _Branch:
    """Where an answer is changed: it keeps `kept`, and goes on after them for at most `room` tokens."""

    place: int
    kept: list[int]
    forced: frozenset[int]
    room: int


@dataclass(frozen=True)
class EditingEngine:
    """Serves `Intervention`: the student answers, its teacher reads, one token is replaced, the student goes on.

    Every draw is keyed by (seed, step, prompt, sample, place) and by the round, so the new tokens are independent of
    those that they replace, and neither batching nor resuming changes them.

    Fields:
      models: with teachers.
      draws: draws the student's answers.
      support_size, limits: as in `PairedEngine`.
    """

    models: ModelSet
    draws: Engine
    support_size: int = DEFAULT_SUPPORT_SIZE
    limits: Limits = field(default_factory=Limits)

    def refusal(self, policy: Policy) -> str | None:
        if not isinstance(policy, Intervention):
            return f"the policy {policy} changes no finished answers. Use the paired engine."
        if not self.models.teachers:
            return f"the policy {policy} asks the teacher, but this engine has only a student. Give it a teacher."
        return self.draws.refusal(Student())

    def sync(self, policy: Policy, step: int) -> None:
        self.draws.sync(Student(), step)

    @torch.no_grad()
    def answer(self, policy: Policy, request: Request) -> list[Rollout]:
        """See `Engine.answer`."""
        check_served(self, policy)
        assert isinstance(policy, Intervention)
        drawn = self.draws.answer(Student(), replace(request, records_statistics=True))
        answers = [_Edited(rollout) for rollout in drawn]
        for number in range(policy.rounds):
            answers = self._edited(policy, request, answers, number)
        return [_with_shares(each, policy.rounds) for each in answers]

    def _edited(self, policy: Intervention, request: Request, answers: Sequence[_Edited], number: int) -> list[_Edited]:
        """The answers after one more round."""
        branches = list(self._branches(policy, request, answers))
        continued = self._continued(request, answers, branches, number)
        changed = []
        for branch in branches:
            made, rest = answers[branch.place].rollout, continued.get(branch.place)
            tokens = branch.kept + ([] if rest is None else rest.response_tokens[: branch.room])
            is_whole = rest is not None and rest.finished and len(rest) <= branch.room
            finished = is_whole or branch.kept[-1] == self.models.vocabulary.stop_id
            places = {"prompt_index": made.prompt_index, "sample_index": made.sample_index}
            unread = torch.full((len(tokens),), math.nan)
            prompt = request.prompts[made.prompt_index]
            changed.append(Rollout.answer_to(prompt, tokens, unread, finished=finished, **places))
        found = list(answers)
        for branch, rollout in zip(branches, self._read(changed), strict=True):
            found[branch.place] = _Edited(rollout, branch.forced, len(branch.kept))
        return found

    def _branches(self, policy: Intervention, request: Request, answers: Sequence[_Edited]) -> Iterator[_Branch]:
        """Where each answer is changed; none for one that agrees with its teacher wherever it may be changed."""
        scorer = LocalScorer(self.models.teachers, self.models.vocabulary, self.limits.score_tokens)
        forces = policy.token == "teacher"
        read = scorer.score([each.rollout for each in answers], keep_hidden=forces)
        if not any(map(len, read)):
            return
        kl_N = recorded_kl(Batch(read), reverse=True, finite=False)  # what is infinite is the largest
        for place, kl_T in enumerate(torch.split(kl_N, [len(each) for each in read])):
            each = answers[place]
            if each.first >= len(kl_T):
                continue
            at = each.first + int(kl_T[each.first :].argmax())
            if not float(kl_T[at]) > policy.min_divergence:
                continue
            kept, forced = each.rollout.response_tokens[: at + 1], each.forced
            if forces:
                kept, forced = [*kept[:-1], self._favourite(read[place], at)], forced | {at}
            yield _Branch(place, kept, forced, request.max_new_tokens - len(kept))

    def _favourite(self, rollout: Rollout, at: int) -> int:
        """The teacher's most probable token at a place of an answer that it has read."""
        teacher, hidden_TD = self.models.teacher_named(rollout.teacher_name), rollout.tokenwise("teacher.hidden_TD")
        assert hidden_TD is not None
        logits_1V = teacher.logits(hidden_TD[at : at + 1].to(teacher.device))
        return int(self.models.vocabulary.shared_logits(logits_1V)[0].argmax())

    def _continued(
        self, request: Request, answers: Sequence[_Edited], branches: Sequence[_Branch], number: int
    ) -> dict[int, Rollout]:
        """What the student writes after the changed beginnings, by the answer's place; some goes beyond its room."""
        seed = derive_seed(request.seed, f"intervention/{number}")
        open_ones = [each for each in branches if each.room > 0 and each.kept[-1] != self.models.vocabulary.stop_id]
        found: dict[int, Rollout] = {}
        for group in self._groups(answers, sorted(open_ones, key=lambda each: -each.room)):
            prompts = []
            for branch in group:
                made = answers[branch.place].rollout
                stream = request.prompts[made.prompt_index].stream_at(made.prompt_index)
                own = stream * request.num_samples + made.sample_index
                prompts.append(Prompt([*made.prompt_tokens, *branch.kept], stream=own))
            asked = Request(prompts, group[0].room, seed=seed, step=request.step, records_statistics=False)
            drawn = self.draws.answer(Student(), asked)
            found |= {branch.place: rest for branch, rest in zip(group, drawn, strict=True)}
        return found

    def _groups(self, answers: Sequence[_Edited], branches: Sequence[_Branch]) -> Iterator[list[_Branch]]:
        """Beginnings that are continued together, those with most room first: what has less room must hold as much."""
        limit, group = self.models.student.context_length, list[_Branch]()
        for branch in branches:
            length = len(answers[branch.place].rollout.prompt_tokens) + len(branch.kept)
            if group and limit is not None and length + group[0].room > limit:
                yield group
                group = []
            group.append(branch)
        if group:
            yield group

    def _read(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """The rollouts with what the student thinks of them."""

        def statistics(student: Rows, tokens_N: Tensor, _: Tensor) -> dict[str, Tensor]:
            return student_statistics(student, tokens_N, self.support_size)

        reader = Reader(self.models.student, self.models.vocabulary, self.limits.score_tokens)
        return reader.read(rollouts, [each.prompt_tokens for each in rollouts], statistics, needs_support=False)


def _with_shares(answer: _Edited, rounds: int) -> Rollout:
    """The answer with the teacher's share of each token; one that it put there is certain."""
    rollout, forced = answer.rollout, sorted(answer.forced)
    logprobs_T = rollout.student_logprobs
    share_T, kl_T, behaviour_T = torch.zeros_like(logprobs_T), torch.zeros_like(logprobs_T), logprobs_T.clone()
    share_T[forced], behaviour_T[forced] = 1.0, 0.0
    kl_T[forced] = -logprobs_T[forced]
    return replace(rollout, behaviour_logprobs=behaviour_T, blend=share_T, kl_to_student=kl_T, teacher_forwards=rounds)
