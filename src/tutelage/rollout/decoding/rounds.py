"""Decode several answers at a time: draft, read, judge, record; a row whose answer has ended takes the next prompt.

Each row of the two caches decodes one rollout. In a round the student writes a few tokens in each row, the teacher
reads them all in one forward, and the policy says which of them stay (`drafts`). Rows therefore advance by different
amounts; tokens that were refused are overwritten in the next round. Neither model has read the last token of a row: the
next round reads it first, so no forward is spent on a replaced token alone.

A round that drafts nothing is lock-step decoding: one forward of each model, one draw from mu. A policy that does not
ask the teacher is decoded that way, without a teacher.

How far the rows are follows on the device from what was drawn, so a round can begin before the host has seen the last
one. On CUDA the host reads a round's outcome while the next one is under way. So it learns one round later that an
answer has ended, and the answer's row computes one round in vain. Rows are refilled or dropped only after the host has
read every round. On a CPU there is nothing to wait for, and each outcome is read at once.

Axis letters: B rows, L places of a round, N tokens that stand, R some of the rows, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.distributions import NO_TOKEN
from tutelage.errors import NonFiniteError
from tutelage.kernels import Rows, draw, has_kernels, read_rows
from tutelage.models import LanguageModel, Vocabulary
from tutelage.policies import Policy
from tutelage.rollout.decoding import drafts
from tutelage.rollout.decoding.decoder import Decoder
from tutelage.rollout.decoding.draft_length import DraftLength
from tutelage.rollout.decoding.late import HostCopy, Marks, rounds_late
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


@dataclass(frozen=True)
class Progress:
    """How far the rows are.

    Fields:
      produced_B: tokens that each row's answer has.
      is_alive_B: whether the answer goes on.
    """

    produced_B: Tensor
    is_alive_B: Tensor

    def to(self, device: torch.device) -> Progress:
        """The same on a device."""
        return Progress(self.produced_B.to(device), self.is_alive_B.to(device))


@dataclass(frozen=True)
class Outcome:
    """What a round has made, which the host reads later.

    Fields:
      length: L, tokens that were drafted in each row.
      seen: what the host reads of each row: the tokens, how many of them stand, whether a stop token is among these,
        whether that or a replacement is, and the progress after the round.
      index: rows and places of the tokens that stand; None where the host has yet to learn which.
      values: what is recorded of these tokens; of all B · L, row by row, where the index is None.
      marks: the beginning, when the drafts were there, and when the verdict was.
      taken_back: tokens that were drafted in the round before, which this one began by taking back; 0 = none.
    """

    length: int
    seen: HostCopy
    index: tuple[Tensor, ...] | None
    values: dict[str, Tensor]
    marks: Marks
    taken_back: int


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
        self.num_late = rounds_late(self.device)
        self.unread: deque[Outcome] = deque()
        self.last_length = 0
        # After the last round that the host has read, on the host; after the last one that was begun, on the device.
        self.known = Progress(torch.zeros(num_rows, dtype=torch.int64), torch.zeros(num_rows, dtype=torch.bool))
        self.now = self.known.to(self.device)

    def run(self) -> list[Rollout]:
        """Decode everything."""
        while self.unread or self.num_started < self.request.num_rollouts or bool(self.known.is_alive_B.any()):
            if len(self.unread) > self.num_late:
                self._read_outcome()
            elif self.unread and (self._is_worth_moving() or self._most_tokens() < 1):
                self._read_outcome()  # all of them, for by then more answers may have ended
            else:
                if self._is_worth_moving():
                    self._move_rows()
                self._begin_round()
        return self.records.rollouts(
            self.request.prompts, self.request.num_samples, with_teacher=self.teacher is not None
        )

    def _is_worth_moving(self) -> bool:
        num_rows, num_alive = len(self.known.is_alive_B), int(self.known.is_alive_B.sum())
        return num_rows - num_alive >= max(1, SHARE_WORTH_MOVING * num_rows)

    def _most_tokens(self) -> int:
        """Most tokens that any answer may still get; each round that was not read has given it one at least."""
        left_R = self.request.max_new_tokens - self.known.produced_B[self.known.is_alive_B]
        return int(left_R.max()) - len(self.unread) if len(left_R) else 0

    def _begin_round(self) -> None:
        """Ask the device for one round of all rows: up to `length` tokens each."""
        num_rows, now = len(self.rollouts_B), self.now
        length = 1 if self.draft_length is None else self.draft_length.choose(num_rows, self._most_tokens())
        draws_BL, keeps_BL = self.streams.take(now.produced_B, length)

        is_timed = self.draft_length is not None and self.draft_length.costs.is_measured
        marks = Marks(self.device if is_timed else None)
        marks.add()
        self.student.place(now.produced_B, now.is_alive_B, self._furthest(self.student))
        student_logits_BLV, drafts_BL = self._write(length, draws_BL)
        marks.add()
        teacher_logits_BLV = None
        if self.teacher is not None:
            self.teacher.place(now.produced_B, now.is_alive_B, self._furthest(self.teacher))
            # The last draft is judged by what the token before it predicts; the teacher need not read it yet.
            last_B1 = self.teacher.last_tokens_B[:, None]
            tokens_BL = torch.cat([last_B1, drafts_BL[:, :-1].to(last_B1.device)], dim=1)
            teacher_logits_BLV = self.teacher.read(tokens_BL).to(self.device)
        places_L = torch.arange(length, device=self.device)
        behaviour = self.policy.propose(student_logits_BLV, teacher_logits_BLV, now.produced_B[:, None] + places_L)
        student = behaviour.student(student_logits_BLV)
        replaced_BL = None
        if self.draft_length is None:
            tokens_BL = behaviour.draw(draws_BL)
            lengths_B = torch.ones_like(now.produced_B)
        else:
            tokens_BL, lengths_B, replaced_BL = drafts.judge_drafts(student, behaviour, drafts_BL, keeps_BL)
        marks.add()

        lengths_B, is_finished_B = self._standing(tokens_BL, lengths_B)
        stands_BL = places_L < lengths_B[:, None]
        # A round ends for an answer at a refusal, and at its last token.
        is_end_B = is_finished_B if replaced_BL is None else is_finished_B | (replaced_BL & stands_BL).any(1)
        produced_B = now.produced_B + lengths_B
        is_alive_B = now.is_alive_B & ~is_finished_B & (produced_B < self.request.max_new_tokens)
        self.now = Progress(produced_B, is_alive_B)
        seen = HostCopy(tokens_BL, lengths_B, is_finished_B, is_end_B, produced_B, is_alive_B)
        known_index = None if self.num_late else stands_BL.nonzero(as_tuple=True)

        def places(values_BL: Tensor) -> Tensor:
            """One row of what is known of each token, or of all places until it is known which stand."""
            return values_BL.flatten(0, 1) if known_index is None else values_BL[known_index]

        is_read_once = has_kernels(self.device)
        if is_read_once:
            student_rows = read_rows(places(student_logits_BLV))
        else:
            student_rows = Rows(places(student.logprobs_BV) if known_index is None else student.rows(known_index))
        drawn_BL = tokens_BL.clamp_min(0)  # NO_TOKEN, where nothing could be drawn, is refused when it is read
        drawn_N = places(drawn_BL)
        # The student's rows are read anyway.
        is_known = behaviour is student and is_read_once
        drawn_logprobs_N = student_rows.logprobs_of(drawn_N) if is_known else places(behaviour.logprobs_of(drawn_BL))
        values = {
            "tokens": places(tokens_BL),
            "behaviour_logprobs": drawn_logprobs_N,
            **{name: places(value_BL) for name, value_BL in behaviour.diagnostics.items()},
            **({} if replaced_BL is None else {"replaced": places(replaced_BL)}),
            **self._statistics(
                student_rows, None if teacher_logits_BLV is None else places(teacher_logits_BLV), drawn_N
            ),
        }
        self.unread.append(Outcome(length, seen, known_index, values, marks, self.last_length))
        self.last_length = length
        last_B1 = drawn_BL.gather(1, (lengths_B - 1).clamp_min(0)[:, None])
        for decoder in self._decoders():
            decoder.advance(last_B1[:, 0])

    def _furthest(self, decoder: Decoder) -> int:
        """A place that no row of a decoder is beyond: as far as is known, and all that was drafted since."""
        known = int((decoder.starts_B + self.known.produced_B).where(self.known.is_alive_B, 0).max())
        if not self.unread:
            return known
        last = int(decoder.starts_B.max()) + self.request.max_new_tokens - 1
        return min(known + sum(outcome.length for outcome in self.unread), last)

    def _read_outcome(self) -> None:
        """Learn what the oldest unread round has made, and keep its records."""
        outcome, known = self.unread.popleft(), self.known
        length = outcome.length
        tokens_BL, lengths_B, is_finished_B, is_end_B, *progress = outcome.seen.wait()
        if self.draft_length is not None:
            costs = self.draft_length.costs
            if costs.is_measured and (outcome.taken_back == length or not costs.takes_back):
                costs.time(len(lengths_B), length, *outcome.marks.seconds())
            num_judged = int(lengths_B.sum())
            self.draft_length.continuation.count(num_judged - int(is_end_B.sum()), num_judged)
        rows_N, places_N = outcome.index or (torch.arange(length) < lengths_B[:, None]).nonzero(as_tuple=True)
        own_places_N = known.produced_B[rows_N] + places_N
        self._check_drawn(tokens_BL[rows_N, places_N], own_places_N)
        kept_N = None if outcome.index is not None else rows_N * length + places_N
        self.records.write(self.rollouts_B[rows_N], own_places_N, outcome.values, kept_N)
        self.records.teacher_forwards_N[self.rollouts_B[known.is_alive_B]] += 1
        self.records.finished_N[self.rollouts_B[is_finished_B]] = True
        self.known = Progress(*progress)

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
        lengths_B = torch.minimum(lengths_B, self.request.max_new_tokens - self.now.produced_B)
        lengths_B = lengths_B.where(self.now.is_alive_B, 0)
        return lengths_B, self.now.is_alive_B & (lengths_B > before_stop_B)

    def _statistics(self, student: Rows, teacher_logits_NV: Tensor | None, tokens_N: Tensor) -> dict[str, Tensor]:
        if not self.settings.support_size:
            return {"student.logprobs_T": student.logprobs_of(tokens_N)}
        values = student_statistics(student, tokens_N, self.settings.support_size)
        if teacher_logits_NV is not None:
            values |= teacher_statistics(read_rows(teacher_logits_NV), tokens_N, values["support_ids"])
        return values

    def _move_rows(self) -> None:
        """Rows whose answers have ended are put to use, or dropped; every round was read before."""
        if self.num_started < self.request.num_rollouts:
            self._refill()
        else:
            self._drop_finished()
        self.now = self.known.to(self.device)

    def _refill(self) -> None:
        """Finished rows take the next rollouts of the queue; samples of one prompt share its reading."""
        rows_R = (~self.known.is_alive_B).nonzero()[:, 0][: self.request.num_rollouts - self.num_started]
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
        self.rollouts_B[rows_R] = rollouts_R
        self.known = Progress(
            self.known.produced_B.index_fill(0, rows_R, 0), self.known.is_alive_B.index_fill(0, rows_R, True)
        )

    def _drop_finished(self) -> None:
        rows_B = self.known.is_alive_B.nonzero()[:, 0]
        for decoder in self._decoders():
            decoder.select(rows_B)
        self.streams.select(rows_B.to(self.device))
        self.rollouts_B = self.rollouts_B[rows_B]
        self.known = Progress(self.known.produced_B[rows_B], self.known.is_alive_B[rows_B])

    def _decoders(self) -> list[Decoder]:
        return [self.student] if self.teacher is None else [self.student, self.teacher]

    def _check_drawn(self, tokens_N: Tensor, places_N: Tensor) -> None:
        is_missing_N = tokens_N == NO_TOKEN
        if bool(is_missing_N.any()):
            raise NonFiniteError(
                f"{int(is_missing_N.sum())} answers have no next token at position {int(places_N[is_missing_N][0])}: "
                f"logits of the student{'' if self.teacher is None else ' or the teacher'} are NaN or all -inf there"
            )
