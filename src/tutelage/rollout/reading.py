"""Let a model read answers that exist, in few large forwards.

This is what plain on-policy distillation does after sampling. It fills the same fields that the paired engine fills
while it samples, so the loss does not know which of the two happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.errors import DataError
from tutelage.kernels import Rows, read_rows
from tutelage.models import LanguageModel, Vocabulary
from tutelage.rollout.limits import check_readable
from tutelage.types import Rollout

__all__ = ["Reader", "Statistics", "batches_by_tokens", "response_hidden", "tokens_per_chunk"]

# Logits of one chunk stay below this many numbers (at 4 bytes each, 256 MiB). A handful live at once in backward.
CHUNK_NUMBERS = 64 * 2**20

Statistics = Callable[[Rows, Tensor, Tensor], dict[str, Tensor]]
"""(N distributions, tokens [N], the student's support [N, K]) -> fields of `Rollout` by their paths"""


@dataclass(frozen=True)
class Reader:
    """A model that reads answers.

    Fields:
      model: reads a prompt and then the response.
      vocabulary: the shared one.
      max_tokens: most tokens in one forward.
    """

    model: LanguageModel
    vocabulary: Vocabulary
    max_tokens: int

    @torch.no_grad()
    def read(
        self,
        rollouts: Sequence[Rollout],
        prompts: Sequence[Sequence[int]],
        statistics: Statistics,
        *,
        needs_support: bool = True,
        keep_hidden: bool = False,
    ) -> list[Rollout]:
        """Copies of the rollouts with what `statistics` finds in the model's distributions, in the same order.

        Args:
          prompts: read before each response.
          needs_support: `statistics` looks at the student's support; otherwise it is given an empty one.
          keep_hidden: keep the hidden states as the teacher's, on the CPU, [T, D] per rollout: 8 kB a token for a model
            of width 4,096 in bfloat16, where keeping all logits would take 300.
        Raises:
          DataError: an answer that the model cannot read, or a rollout without the support that is needed.
        """
        scored = list(rollouts)
        sequences = [(prompt, rollout.response_tokens) for prompt, rollout in zip(prompts, rollouts, strict=True)]
        for place, (prompt, response) in enumerate(sequences):
            check_readable(self.model, [*prompt, *response], 0, f"answer {place} with its prompt")
        supports = [_support(rollout) if needs_support else _no_support(rollout) for rollout in rollouts]
        for batch in batches_by_tokens(sequences, self.max_tokens):
            hidden_ND = response_hidden(self.model, [sequences[i] for i in batch])
            tokens_N = torch.tensor([t for i in batch for t in rollouts[i].response_tokens], device=hidden_ND.device)
            support_NK = torch.cat([supports[i] for i in batch]).to(hidden_ND.device)
            chunks: list[dict[str, Tensor]] = []
            chunk_tokens = tokens_per_chunk(self.vocabulary)
            for piece in range(0, len(tokens_N), chunk_tokens):
                span = slice(piece, piece + chunk_tokens)
                rows = read_rows(self.vocabulary.shared_logits(self.model.logits(hidden_ND[span])))
                chunks.append(statistics(rows, tokens_N[span], support_NK[span]))
            fields = {name: torch.cat([chunk[name] for chunk in chunks]).cpu() for name in chunks[0]}
            if keep_hidden:
                fields["teacher.hidden_TD"] = hidden_ND.cpu()
            first = 0
            for i in batch:
                span = slice(first, first + len(rollouts[i]))
                scored[i] = rollouts[i].with_tokenwise({path: values[span].clone() for path, values in fields.items()})
                first = span.stop
        return scored


def tokens_per_chunk(vocabulary: Vocabulary) -> int:
    """How many tokens may go through a language-model head at once."""
    return max(1, CHUNK_NUMBERS // vocabulary.size)


def batches_by_tokens(sequences: Sequence[tuple[Sequence[int], Sequence[int]]], max_tokens: int) -> Iterator[list[int]]:
    """Indices of sequences in batches of at most `max_tokens` tokens.

    Sequences with equal prompts stay together (their prompt is read, and counted, once per batch), and like lengths are
    neighbours. A sequence longer than the limit gets a batch of its own. Ties keep their order, so the batches are
    deterministic.
    """
    first_with: dict[tuple[int, ...], int] = {}
    groups = [first_with.setdefault(_head(prompt), i) for i, (prompt, _) in enumerate(sequences)]
    longest: dict[int, int] = {}
    for group, (prompt, response) in zip(groups, sequences, strict=True):
        longest[group] = max(longest.get(group, 0), len(prompt) + len(response))
    batch: list[int] = []
    num_tokens, last_group = 0, -1
    for i in sorted(range(len(sequences)), key=lambda i: (-longest[groups[i]], groups[i], -len(sequences[i][1]))):
        prompt, response = sequences[i]
        more = len(response) + (0 if groups[i] == last_group else len(prompt))
        if batch and num_tokens + more > max_tokens:
            yield batch
            batch, num_tokens, more = [], 0, len(response) + len(prompt)
        batch.append(i)
        num_tokens, last_group = num_tokens + more, groups[i]
    if batch:
        yield batch


def response_hidden(model: LanguageModel, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Tensor:
    """Hidden states that predict the response tokens, laid end to end: [N, D] for N response tokens.

    Args:
      model: reads all sequences in one packed forward, an equal prompt once, gradients included.
      sequences: (prompt, response) token ids.
    """
    # The last response token is predicted but never read; the last prompt token predicts the first of the response.
    read = [([*prompt, *response[:-1]], len(prompt) - 1) for prompt, response in sequences if len(response)]
    return model.hidden_packed([tokens for tokens, _ in read], [start for _, start in read])


def _head(prompt: Sequence[int]) -> tuple[int, ...]:
    return tuple(prompt[:-1])


def _support(rollout: Rollout) -> Tensor:
    if rollout.support_ids is None:
        raise DataError(
            "a rollout without the student's support cannot be scored; it was generated with "
            "`records_statistics=False`. Generate it with statistics."
        )
    return rollout.support_ids


def _no_support(rollout: Rollout) -> Tensor:
    return torch.empty(len(rollout), 0, dtype=torch.int32)
