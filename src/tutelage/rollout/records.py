"""Per-token records of a batch while it is being decoded, and the rollouts that they become.

Rows advance by different amounts once drafts are accepted or refused, so a record is written by (row, position) pairs
and never appended.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tutelage.types import Prompt, Rollout

__all__ = ["Records"]


class Records:
    """Buffers [B, T, ...] for every recorded field, grown as answers get longer.

    Args:
      num_rows: rows of the whole batch, finished ones included.
      max_new_tokens: length limit.
      device: where the values come from; they move to the CPU once, at the end.
    """

    def __init__(self, num_rows: int, max_new_tokens: int, device: torch.device) -> None:
        self.max_new_tokens = max_new_tokens
        self.lengths_B = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.finished_B = torch.zeros(num_rows, dtype=torch.bool, device=device)
        self.fields: dict[str, Tensor] = {}

    def write(self, rows_B: Tensor, position: int, alive_B: Tensor, values: dict[str, Tensor]) -> None:
        """Store what is known of the token at `position`, for the rows that are still alive."""
        for name, value_B in values.items():
            buffer = self._buffer(name, value_B, position)
            # Dead rows write too (a fixed shape needs no wait for the device), but behind their length, where
            # nothing is read.
            buffer[rows_B, position] = value_B
        self.lengths_B[rows_B] += alive_B.long()

    def finish(self, rows_B: Tensor, stopped_B: Tensor) -> None:
        """Mark rows that ended with a stop token."""
        self.finished_B[rows_B] |= stopped_B

    def rollouts(self, prompts: list[Prompt], first_prompt: int, num_samples: int) -> list[Rollout]:
        """The finished rollouts, ordered by prompt, then by sample."""
        fields = {name: buffer.cpu() for name, buffer in self.fields.items()}
        tokens_BT = fields.pop("tokens")
        lengths, finished = self.lengths_B.tolist(), self.finished_B.tolist()
        rollouts = []
        for row, (length, is_finished) in enumerate(zip(lengths, finished, strict=True)):
            place, sample_index = divmod(row, num_samples)
            prompt = prompts[place]
            rollouts.append(
                Rollout(
                    prompt_tokens=list(prompt.student_tokens),
                    response_tokens=tokens_BT[row, :length].tolist(),
                    finished=is_finished,
                    prompt_index=first_prompt + place,
                    sample_index=sample_index,
                    teacher_prompt_tokens=None if prompt.teacher_tokens is None else list(prompt.teacher_tokens),
                    **{name: buffer[row, :length].clone() for name, buffer in fields.items()},
                )
            )
        return rollouts

    def _buffer(self, name: str, value_B: Tensor, position: int) -> Tensor:
        buffer = self.fields.get(name)
        if buffer is None or buffer.shape[1] <= position:
            capacity = min(self.max_new_tokens, max(64, 2 * position))
            grown = value_B.new_zeros(len(self.lengths_B), capacity, *value_B.shape[1:])
            if buffer is not None:
                grown[:, : buffer.shape[1]] = buffer
            self.fields[name] = buffer = grown
        return buffer
