"""Decode several answers at a time: draft, read, judge, record; a row whose answer has ended takes the next prompt.

Each row of the two caches decodes one rollout. In a round the student writes a few tokens in each row, the teacher
reads them all in one forward, and the policy says which of them stay (`drafts`). Rows therefore advance by different
amounts; tokens that were refused are overwritten in the next round. Neither model has read the last token of a row: the
next round reads it first, so no forward is spent on a replaced token alone.

A round that drafts nothing is lock-step decoding: one forward of each model, one draw from mu. A policy that does not
ask the teacher is decoded that way, without a teacher.

The state of each row (which rollout, how many tokens) is kept on the host, in tensors; the host waits for the device
once per round.

Axis letters: B rows, L places of a round, N tokens that stand, R some of the rows, V vocabulary.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.distributions import NO_TOKEN, gather_logprobs, normalise
from tutelage.errors import NonFiniteError
from tutelage.kernels import draw
from tutelage.models import LanguageModel, Vocabulary
from tutelage.policies import Policy, Softmax, Student
from tutelage.rollout.decoding import drafts
from tutelage.rollout.decoding.decoder import Decoder
from tutelage.rollout.decoding.draft_length import DraftLength
from tutelage.rollout.decoding.records import Records
from tutelage.rollout.decoding.statistics import student_statistics, teacher_statistics
from tutelage.rollout.decoding.streams import TokenStreams
from tutelage.rollout.request import Request
from tutelage.types import Rollout

__all__ = ["Decoding", "DecodingSettings", "slots_of"]

# Rows are refilled, or dropped from the caches, once at least this share of them is finished: either costs about as
# much as a round.
SHARE_WORTH_MOVING = 0.125
# Slots reserved for answers at first; the caches grow as answers get longer.
FIRST_SLOTS = 64


@dataclass(frozen=True)
class DecodingSettings:
    """How a request is decoded.

    Fields:
      num_rows: answers decoded at once.
      support_size: K of the recorded statistics; 0 = only tokens and their log-probabilities are kept.
      prefill_tokens: most padded tokens in one forward over prompts.
      draft_length: how long each round is; None = lock-step.
    """

    num_rows: int
    support_size: int
    prefill_tokens: int
    draft_length: DraftLength | None = None


def slots_of(num_prompt_tokens: int, max_new_tokens: int, num_drafted: int) -> int:
    """Most cache slots of a row: a draft goes on beyond an answer's limit while other answers have more to come."""
    return num_prompt_tokens + max_new_tokens + num_drafted - 1


class Decoding:
    """The rows of one request, from the first prompt to the last answer.

    Args:
      student, teacher: the teacher is None where the policy does not ask it.
    """

    def __init__(
        self,
        student: LanguageModel,
        teacher: LanguageModel | None,
        vocabulary: Vocabulary,
        policy: Policy,
        request: Request,
        settings: DecodingSettings,
    ) -> None:
        num_rows, draft_length = settings.num_rows, settings.draft_length
        self.policy, self.request, self.settings, self.draft_length = policy, request, settings, draft_length
        self.device = student.device
        self.stop_id = vocabulary.stop_id
        longest = max(prompt.longest for prompt in request.prompts)
        num_drafted = 1 if draft_length is None else min(draft_length.longest, request.max_new_tokens)
        slots = (
            longest + min(request.max_new_tokens, FIRST_SLOTS),
            slots_of(longest, request.max_new_tokens, num_drafted),
        )
        self.student = Decoder(student, vocabulary, num_rows, *slots)
        self.teacher = None if teacher is None else Decoder(teacher, vocabulary, num_rows, *slots)
        self.streams = TokenStreams(request.seed, request.step, num_rows, self.device)
        self.records = Records(request.num_rollouts)
        self.num_started = 0
        self.rollouts_B = torch.zeros(num_rows, dtype=torch.int64)
        self.produced_B = torch.zeros(num_rows, dtype=torch.int64)
        self.is_alive_B = torch.zeros(num_rows, dtype=torch.bool)

    def run(self) -> list[Rollout]:
        """Decode everything."""
        while self.num_started < self.request.num_rollouts or bool(self.is_alive_B.any()):
            num_finished = len(self.is_alive_B) - int(self.is_alive_B.sum())
            if num_finished >= max(1, SHARE_WORTH_MOVING * len(self.is_alive_B)):
                if self.num_started < self.request.num_rollouts:
                    self._refill()
                else:
                    self._drop_finished()
            self._round()
        return self.records.rollouts(
            self.request.prompts, self.request.num_samples, with_teacher=self.teacher is not None
        )

    def _round(self) -> None:
        """One round of all rows: up to `length` tokens each."""
        num_rows = len(self.is_alive_B)
        most = int((self.request.max_new_tokens - self.produced_B[self.is_alive_B]).max())
        length = 1 if self.draft_length is None else self.draft_length.choose(num_rows, most)
        draws_BL, keeps_BL = self.streams.take(self.produced_B.to(self.device), length)

        started = time.perf_counter()
        student_logits_BLV, drafts_BL = self._write(length, draws_BL)
        drafted = self._now()
        teacher_logits_BLV = None
        if self.teacher is not None:
            # The last draft is judged by what the token before it predicts; the teacher need not read it yet.
            last_B1 = self.teacher.last_tokens_B[:, None]
            tokens_BL = torch.cat([last_B1, drafts_BL[:, :-1].to(last_B1.device)], dim=1)
            teacher_logits_BLV = self.teacher.read(tokens_BL).to(self.device)
        positions_BL = (self.produced_B[:, None] + torch.arange(length)).to(self.device)
        behaviour = self.policy.propose(student_logits_BLV, teacher_logits_BLV, positions_BL)
        # Bitwise the same for the student itself, and one pass over the vocabulary less.
        student = behaviour if isinstance(self.policy, Student) else Softmax(student_logits_BLV)
        replaced_BL = None
        if self.draft_length is None:
            tokens_BL = behaviour.draw(draws_BL)
            lengths_B = torch.ones(num_rows, dtype=torch.int64)
        else:
            tokens_BL, lengths_B, replaced_BL = drafts.judge_drafts(student, behaviour, drafts_BL, keeps_BL)
        host_tokens_BL, host_lengths_B = tokens_BL.cpu(), lengths_B.cpu()  # the one wait of the round
        if self.draft_length is not None:
            self.draft_length.costs.time(num_rows, length, drafted - started, time.perf_counter() - drafted)

        lengths_B, is_finished_B = self._standing(host_tokens_BL, host_lengths_B)
        stands_BL = torch.arange(length) < lengths_B[:, None]
        if self.draft_length is not None:
            assert replaced_BL is not None
            # A round ends for an answer at a refusal, and at its last token.
            is_end_B = is_finished_B | (replaced_BL.cpu() & stands_BL).any(1)
            num_judged = int(stands_BL.sum())
            self.draft_length.continuation.count(num_judged - int(is_end_B.sum()), num_judged)
        rows_N, places_N = stands_BL.nonzero(as_tuple=True)
        self._check_drawn(host_tokens_BL[rows_N, places_N], self.produced_B[rows_N] + places_N)
        index = (rows_N.to(self.device), places_N.to(self.device))
        values = {
            "tokens": host_tokens_BL[rows_N, places_N],
            "behaviour_logprobs": behaviour.logprobs_of(tokens_BL.clamp_min(0))[index],
            **{name: value_BL[index] for name, value_BL in behaviour.diagnostics.items()},
            **({} if replaced_BL is None else {"replaced": replaced_BL[index]}),
            **self._statistics(
                student.rows(index), None if teacher_logits_BLV is None else teacher_logits_BLV[index], tokens_BL[index]
            ),
        }
        self.records.write(self.rollouts_B[rows_N], self.produced_B[rows_N] + places_N, values)
        self.records.teacher_forwards_N[self.rollouts_B[self.is_alive_B]] += 1
        self.records.finished_N[self.rollouts_B[is_finished_B]] = True
        self.produced_B += lengths_B
        self.is_alive_B &= ~is_finished_B & (self.produced_B < self.request.max_new_tokens)
        last_B1 = tokens_BL.gather(1, (lengths_B - 1).clamp_min(0).to(self.device)[:, None]).clamp_min(0)
        for decoder in self._decoders():
            decoder.advance(lengths_B, last_B1[:, 0], self.is_alive_B)

    def _write(self, length: int, draws_BL: Tensor) -> tuple[Tensor, Tensor]:
        """The student's logits [B, L, V] at each place, and its drafts [B, L], each read to get the next one."""
        tokens_B, logits, drawn = self.student.last_tokens_B, [], []
        for place in range(length):
            logits.append(self.student.read(tokens_B[:, None], ahead=place))
            if self.draft_length is not None:
                # NO_TOKEN, where the student's logits are NaN, is refused once it is known to stand.
                tokens_B = draw(logits[-1][:, 0], draws_BL[:, place]).clamp_min(0)
            drawn.append(tokens_B)
        return torch.cat(logits, dim=1), torch.stack(drawn, dim=1)

    def _standing(self, tokens_BL: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor]:
        """How many of a round's tokens each row keeps: nothing after a stop token, nothing beyond the limit."""
        is_stop_BL = tokens_BL == (self.stop_id if self.stop_id is not None else NO_TOKEN - 1)
        before_stop_B = (is_stop_BL.cumsum(1) == 0).sum(1)
        lengths_B = torch.minimum(lengths_B, before_stop_B + 1)
        lengths_B = torch.minimum(lengths_B, self.request.max_new_tokens - self.produced_B)
        lengths_B = lengths_B.where(self.is_alive_B, 0)
        return lengths_B, self.is_alive_B & (lengths_B > before_stop_B)

    def _statistics(self, student_NV: Tensor, teacher_logits_NV: Tensor | None, tokens_N: Tensor) -> dict[str, Tensor]:
        if not self.settings.support_size:
            return {"student.logprobs_T": gather_logprobs(student_NV, tokens_N)}
        values = student_statistics(student_NV, tokens_N, self.settings.support_size)
        if teacher_logits_NV is not None:
            values |= teacher_statistics(normalise(teacher_logits_NV), tokens_N, values["support_ids"])
        return values

    def _refill(self) -> None:
        """Finished rows take the next rollouts of the queue; samples of one prompt share its reading."""
        rows_R = (~self.is_alive_B).nonzero()[:, 0][: self.request.num_rollouts - self.num_started]
        rollouts_R = torch.arange(self.num_started, self.num_started + len(rows_R))
        self.num_started += len(rows_R)
        numbers_R = rollouts_R // self.request.num_samples
        first, last = int(numbers_R[0]), int(numbers_R[-1])
        prompts, sources_R = self.request.prompts[first : last + 1], numbers_R - first
        self.student.start(rows_R, [p.student_tokens for p in prompts], sources_R, self.settings.prefill_tokens)
        if self.teacher is not None:
            self.teacher.start(rows_R, [p.tokens_for_teacher for p in prompts], sources_R, self.settings.prefill_tokens)
        streams = [p.stream_at(first + place) for place, p in enumerate(prompts)]
        device_rows_R = rows_R.to(self.device)
        self.streams.start(
            device_rows_R,
            torch.tensor(streams)[sources_R].to(self.device),
            (rollouts_R % self.request.num_samples).to(self.device),
        )
        self.rollouts_B[rows_R], self.produced_B[rows_R], self.is_alive_B[rows_R] = rollouts_R, 0, True

    def _drop_finished(self) -> None:
        rows_B = self.is_alive_B.nonzero()[:, 0]
        for decoder in self._decoders():
            decoder.select(rows_B)
        self.streams.select(rows_B.to(self.device))
        self.rollouts_B, self.produced_B = self.rollouts_B[rows_B], self.produced_B[rows_B]
        self.is_alive_B = self.is_alive_B[rows_B]

    def _decoders(self) -> list[Decoder]:
        return [self.student] if self.teacher is None else [self.student, self.teacher]

    def _now(self) -> float:
        """The clock, once what was asked of the device is done; only where it is read."""
        is_timed = self.draft_length is not None and self.draft_length.costs.is_measured
        if is_timed and self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _check_drawn(self, tokens_N: Tensor, places_N: Tensor) -> None:
        is_missing_N = tokens_N == NO_TOKEN
        if bool(is_missing_N.any()):
            raise NonFiniteError(
                f"{int(is_missing_N.sum())} answers have no next token at position {int(places_N[is_missing_N][0])}: "
                f"logits of the student{'' if self.teacher is None else ' or the teacher'} are NaN or all -inf there"
            )
