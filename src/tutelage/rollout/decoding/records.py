"""Per-token records of rollouts while they are being decoded, and the rollouts that they become.

Rows advance by different amounts once drafts are kept or refused, and change their rollout once it is finished, so
every record says where it belongs: to which rollout, and at which place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tutelage.types import Prompt, Rollout

__all__ = ["Records"]

# Records of this many rounds are joined and moved to the CPU together.
ROUNDS_PER_MOVE = 256


class Records:
    """Named values of tokens, in the order in which they were made.

    Args:
      num_rollouts: rollouts that are expected, ordered by prompt, then by sample.
    """

    def __init__(self, num_rollouts: int) -> None:
        self.num_rollouts = num_rollouts
        self.finished_N = torch.zeros(num_rollouts, dtype=torch.bool)
        self.teacher_forwards_N = torch.zeros(num_rollouts, dtype=torch.int64)
        self._recent: list[tuple[dict[str, Tensor], dict[str, Tensor], Tensor | None]] = []
        self._moved: list[dict[str, Tensor]] = []

    def write(
        self, rollouts_N: Tensor, places_N: Tensor, values: dict[str, Tensor], index_N: Tensor | None = None
    ) -> None:
        """Store what is known of N tokens: the place of each in its rollout, and named values.

        Args:
          values: [N, ...] each, on any device; or of more tokens than are kept.
          index_N: which of them are kept, in order; None = all.
        """
        self._recent.append(({"rollout": rollouts_N, "place": places_N}, values, index_N))
        if len(self._recent) == ROUNDS_PER_MOVE:
            self._move()

    def rollouts(self, prompts: Sequence[Prompt], num_samples: int, *, with_teacher: bool) -> list[Rollout]:
        """The rollouts, ordered by prompt, then by sample. `with_teacher`: the teacher took part in the sampling."""
        self._move()
        fields = _joined(self._moved)
        owner_N, place_N = fields.pop("rollout"), fields.pop("place")
        order_N = (owner_N * (place_N.max() + 1) + place_N).argsort()
        lengths = owner_N.bincount(minlength=self.num_rollouts).tolist()
        pieces = {name: torch.split(values[order_N], lengths) for name, values in fields.items()}
        tokens = pieces.pop("tokens")
        finished, forwards = self.finished_N.tolist(), self.teacher_forwards_N.tolist()
        rollouts = []
        for number in range(self.num_rollouts):
            prompt_index, sample_index = divmod(number, num_samples)
            known = {path: values[number].clone() for path, values in pieces.items()}
            rollout = Rollout.answer_to(
                prompts[prompt_index],
                tokens[number].tolist(),
                known["student.logprobs_T"],
                finished=finished[number],
                prompt_index=prompt_index,
                sample_index=sample_index,
                teacher_forwards=forwards[number] if with_teacher else None,
            )
            rollouts.append(rollout.with_tokenwise(known))
        return rollouts

    def _move(self) -> None:
        if not self._recent:
            return
        owners, values, indices = zip(*self._recent, strict=True)
        moved = {name: value.cpu() for name, value in _joined(values).items()}
        if indices[0] is not None:
            sizes = [len(value["tokens"]) for value in values]
            firsts = [sum(sizes[:place]) for place in range(len(sizes))]
            index_N = torch.cat([first + index for first, index in zip(firsts, indices, strict=True)])
            moved = {name: value[index_N] for name, value in moved.items()}
        self._moved.append(_joined(owners) | moved)
        self._recent = []


def _joined(records: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([record[name] for record in records]) for name in records[0]}
