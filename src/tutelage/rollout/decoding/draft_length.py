"""How many tokens should a round draft? As many as give the most tokens per second.

A round of length L costs L forwards of the student, one forward of the teacher over L tokens, and as many draws, solves
and judgements, each of which reads the whole vocabulary. If the answer goes on
after a draft with probability c, it yields 1 + c + ... + c^(L-1) = (1 - c^L) / (1 - c) tokens. It goes on unless the
draft is refused or is the answer's last token. c is counted while running; what the forwards cost is either estimated
from the models' sizes or measured while running. Recurrent layers cost more: a forward of their own for each token or a
block of 64, and what was refused is taken back, which writing over it does for keys and values.

Measuring finds the better length. Estimating gives the same lengths, and so the same rounding and the same bytes, in
every run. The tokens' distribution is the same for all lengths.
"""

from __future__ import annotations

import statistics
from collections import defaultdict, deque

from tutelage.errors import ConfigurationError
from tutelage.models import LanguageModel, ModelSet
from tutelage.rollout.decoding.forward_costs import ForwardCosts, judging_cost

__all__ = [
    "DEFAULT_DRAFT_LENGTH",
    "MAX_DRAFT_LENGTH",
    "Continuation",
    "Costs",
    "DraftLength",
    "DraftLengths",
    "draft_length_named",
]

DEFAULT_DRAFT_LENGTH = "estimated"
LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
MAX_DRAFT_LENGTH = LENGTHS[-1]

# Before anything is counted: after this share of this many drafts the answer went on.
PRIOR_SHARE, PRIOR_DRAFTS = 0.8, 16
# The share drifts with the place in the answer; counts of the past fade once there are this many.
REMEMBERED_DRAFTS = 4096

# Newest timings of a kind that are kept; their median is used, since single ones are disturbed by what else runs.
TIMINGS = 5
# Lengths tried first, so that the teacher's cost is known at both ends before it is interpolated.
TRIED_FIRST = (4, 1, 8)


class Continuation:
    """The share of drafts after which their answer goes on, counted with a fading memory."""

    def __init__(self) -> None:
        self.num_going_on = PRIOR_SHARE * PRIOR_DRAFTS
        self.num_judged = float(PRIOR_DRAFTS)

    @property
    def rate(self) -> float:
        return self.num_going_on / self.num_judged

    def count(self, num_going_on: int, num_judged: int) -> None:
        """Add what a round has shown. Drafts after a refusal or a stop token are not judged."""
        self.num_going_on += num_going_on
        self.num_judged += num_judged
        if self.num_judged > REMEMBERED_DRAFTS:
            fade = REMEMBERED_DRAFTS / self.num_judged
            self.num_going_on, self.num_judged = self.num_going_on * fade, self.num_judged * fade


class Costs:
    """What a round costs: as estimated from the models' sizes, or better, once rounds have been timed.

    Args:
      student, teacher: what runs.
      is_measured: timings given to `time` are used; otherwise the estimate stands.
    """

    def __init__(self, student: LanguageModel, teacher: LanguageModel, *, is_measured: bool) -> None:
        self.is_measured = is_measured
        self._student, self._drafting = student, ForwardCosts(student)
        # Of all members of a fused one together.
        self._reading = [ForwardCosts(member) for member in teacher.members]
        self._seconds: dict[tuple[int, int, bool], deque[float]] = defaultdict(lambda: deque(maxlen=TIMINGS))

    @property
    def takes_back(self) -> bool:
        """Taking refused drafts back costs something: a model has recurrent layers."""
        return any(forwards.recurrent for forwards in (self._drafting, *self._reading))

    def of_round(self, num_rows: int, length: int, share: float) -> float:
        """Cost of a round, in seconds once something was timed, in parameters · tokens before.

        Args:
          share: of drafts after which their answer goes on; refused ones must be taken back.
        """
        bucket = _bucket(num_rows)
        timed = [known for known in LENGTHS if (bucket, known, True) in self._seconds]
        if not timed:
            return self._estimate(num_rows, length, share)
        drafting = statistics.median(self._drafting_seconds(bucket))
        return length * drafting + self._reading_seconds(bucket, timed, num_rows, length)

    def time(self, num_rows: int, length: int, drafting_seconds: float, reading_seconds: float) -> None:
        """Keep what a round took: all its student forwards together, and all the rest."""
        if self.is_measured and length in LENGTHS:
            self._seconds[_bucket(num_rows), length, False].append(drafting_seconds / length)
            self._seconds[_bucket(num_rows), length, True].append(reading_seconds)

    def untried(self, num_rows: int) -> list[int]:
        """Lengths that should be timed once before costs of this many rows are trusted."""
        if not self.is_measured:
            return []
        return [length for length in TRIED_FIRST if (_bucket(num_rows), length, True) not in self._seconds]

    def _drafting_seconds(self, bucket: int) -> list[float]:
        known = [times for (rows, _, is_reading), times in self._seconds.items() if rows == bucket and not is_reading]
        return [seconds for times in known for seconds in times]

    def _reading_seconds(self, bucket: int, timed: list[int], num_rows: int, length: int) -> float:
        """On the line through the two timed lengths nearest to this one, or in proportion to the estimate."""

        def seconds(known: int) -> float:
            return statistics.median(self._seconds[bucket, known, True])

        if length in timed:
            return seconds(length)
        if len(timed) == 1:

            def estimate(known: int) -> float:
                return self._estimated_reading(num_rows, known)

            return seconds(timed[0]) * estimate(length) / estimate(timed[0])
        last = next((place for place, known in enumerate(timed) if known > length), len(timed) - 1)
        first, second = timed[max(0, last - 1)], timed[max(1, last)]
        slope = (seconds(second) - seconds(first)) / (second - first)
        # More tokens never cost less; timings that say so are noise.
        return seconds(first) + max(slope, 0.0) * (length - first)

    def _estimate(self, num_rows: int, length: int, share: float) -> float:
        drafting = length * self._drafting.reading(num_rows, 1)
        taking_back = self._drafting.taking_back(num_rows, length, share, is_one_by_one=True)
        taking_back += sum(
            forwards.taking_back(num_rows, length, share, is_one_by_one=False) for forwards in self._reading
        )
        return drafting + self._estimated_reading(num_rows, length) + taking_back

    def _estimated_reading(self, num_rows: int, length: int) -> float:
        reading = sum(forwards.reading(num_rows, length) for forwards in self._reading)
        return reading + judging_cost(self._student, num_rows * length)


class DraftLength:
    """Chooses the length of every round of one call.

    Args:
      fixed: always this many; None = chosen.
      costs: of the rounds; kept from call to call, see `DraftLengths`.
    """

    def __init__(self, fixed: int | None, costs: Costs) -> None:
        self.fixed, self.costs = fixed, costs
        self.longest = MAX_DRAFT_LENGTH if fixed is None else fixed
        self.continuation = Continuation()

    def choose(self, num_rows: int, most: int) -> int:
        """Tokens of the next round, for rows of which none may get more than `most`."""
        if self.fixed is not None:
            return min(self.fixed, most)
        possible = [length for length in LENGTHS if length <= most]
        untried = [length for length in self.costs.untried(num_rows) if length <= most]
        return untried[0] if untried else max(possible, key=lambda length: self.tokens_per_cost(num_rows, length))

    def tokens_per_cost(self, num_rows: int, length: int) -> float:
        """Expected tokens of a row over the round's cost."""
        share = self.continuation.rate
        tokens = sum(share**place for place in range(length))
        return tokens / self.costs.of_round(num_rows, length, share)


class DraftLengths:
    """How many tokens the rounds of an engine draft.

    It owns what changes in an engine from call to call, and nothing else there does: what rounds have cost with each
    teacher, where that is measured.

    Args:
      models: the student and its teachers.
      wanted: a number of tokens, "estimated" or "auto"; see `draft_length_named`.
    """

    def __init__(self, models: ModelSet, wanted: int | str) -> None:
        self.fixed, is_measured = draft_length_named(wanted)
        self._costs = {
            name: Costs(models.student, teacher, is_measured=is_measured) for name, teacher in models.teachers.items()
        }

    @property
    def longest(self) -> int:
        """Most tokens of a round."""
        return MAX_DRAFT_LENGTH if self.fixed is None else self.fixed

    def for_call(self, teacher: str | None) -> DraftLength | None:
        """Chooses the lengths of one call with the teacher of this name; None = lock-step."""
        return None if self.fixed == 1 else DraftLength(self.fixed, self._costs[teacher])


def draft_length_named(value: int | str) -> tuple[int | None, bool]:
    """What `rollout.draft_length` means: the fixed length or None, and whether costs are measured."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1:
        return value, False
    if value in ("estimated", "auto"):
        return None, value == "auto"
    raise ConfigurationError(
        f"rollout.draft_length is {value!r}; expected 'estimated' (chosen from the models' sizes, the same in every "
        "run), 'auto' (chosen from measured costs), or a number of tokens per round, 1 for lock-step."
    )


def _bucket(num_rows: int) -> int:
    return max(1, num_rows - 1).bit_length()
