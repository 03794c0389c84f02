"""Let a teacher, or a reference, read rollouts that already exist, in few large forwards.

This is what plain on-policy distillation does after sampling. It fills the same teacher fields that the paired engine
fills while it samples, so the loss does not know which of the two happened.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from tutelage.distributions import gather_logprobs, normalise
from tutelage.errors import DataError
from tutelage.models import LanguageModel, Vocabulary
from tutelage.policies import Policy
from tutelage.rollout.limits import check_readable
from tutelage.rollout.statistics import (
    reference_statistics,
    student_statistics,
    teacher_statistics,
    teacher_top_statistics,
)
from tutelage.types import Rollout

__all__ = [
    "batches_by_tokens",
    "response_hidden",
    "score",
    "score_reference",
    "score_student",
    "score_top",
    "tokens_per_chunk",
]

# Logits of one chunk stay below this many numbers (at 4 bytes each, 256 MiB). A handful live at once in backward.
CHUNK_NUMBERS = 64 * 2**20


@torch.no_grad()
def score(
    teacher: LanguageModel,
    vocabulary: Vocabulary,
    rollouts: Sequence[Rollout],
    *,
    max_tokens: int,
    keep_hidden: bool = False,
) -> list[Rollout]:
    """Copies of the rollouts with their teacher fields filled in, in the same order.

    Args:
      teacher: reads `tokens_for_teacher` and then the response.
      vocabulary: the shared one.
      rollouts: must carry the student's support.
      max_tokens: most tokens in one forward.
      keep_hidden: keep the teacher's hidden states as well, on the CPU, [T, D] per rollout: 8 kB a token for a model of
        width 4,096 in bfloat16, where keeping all logits would take 300.
    """
    prompts = [rollout.tokens_for_teacher for rollout in rollouts]
    return _read(teacher, vocabulary, rollouts, prompts, teacher_statistics, max_tokens, keep_hidden)


@torch.no_grad()
def score_reference(
    reference: LanguageModel,
    vocabulary: Vocabulary,
    rollouts: Sequence[Rollout],
    *,
    reads: str = "student",
    max_tokens: int,
) -> list[Rollout]:
    """Copies of the rollouts with their reference fields filled in, in the same order.

    Args:
      reference: reads a prompt and then the response.
      reads: whose prompt, "student" or "teacher".
      (the others as in `score`)
    """
    prompts = [r.tokens_for_teacher if reads == "teacher" else r.prompt_tokens for r in rollouts]
    return _read(reference, vocabulary, rollouts, prompts, reference_statistics, max_tokens)


@torch.no_grad()
def score_top(
    teacher: LanguageModel, vocabulary: Vocabulary, rollouts: Sequence[Rollout], *, top_k: int, max_tokens: int
) -> list[Rollout]:
    """Copies of the rollouts with the teacher's own top K of every token, in the same order; no student is needed.

    Args:
      top_k: K.
      (the others as in `score`; a student's support is not looked at)
    """

    def statistics(logprobs_NV: Tensor, tokens_N: Tensor, _: Tensor) -> dict[str, Tensor]:
        return teacher_top_statistics(logprobs_NV, tokens_N, top_k)

    prompts = [rollout.tokens_for_teacher for rollout in rollouts]
    return _read(teacher, vocabulary, rollouts, prompts, statistics, max_tokens, support=_no_support)


@torch.no_grad()
def score_student(
    student: LanguageModel,
    vocabulary: Vocabulary,
    rollouts: Sequence[Rollout],
    policy: Policy,
    *,
    support_size: int,
    max_tokens: int,
) -> list[Rollout]:
    """Copies of the rollouts of another engine with what the student thinks of them, in the same order.

    Args:
      student: reads the prompt and then the response.
      policy: that sampled; one that needs no teacher.
      support_size: K of the recorded statistics; 0 = log-probabilities only.
      (the others as in `score`)
    """

    def statistics(logprobs_NV: Tensor, tokens_N: Tensor, _: Tensor) -> dict[str, Tensor]:
        behaviour = policy(logprobs_NV, None)
        found = {"rescored_logprobs": behaviour.logprobs_of(tokens_N), **behaviour.diagnostics}
        if support_size:
            return found | student_statistics(logprobs_NV, tokens_N, support_size)
        return found | {"student.logprobs_T": gather_logprobs(logprobs_NV, tokens_N)}

    prompts = [rollout.prompt_tokens for rollout in rollouts]
    return _read(student, vocabulary, rollouts, prompts, statistics, max_tokens, support=_no_support)


def _read(
    model: LanguageModel,
    vocabulary: Vocabulary,
    rollouts: Sequence[Rollout],
    prompts: Sequence[Sequence[int]],
    statistics: Callable[[Tensor, Tensor, Tensor], dict[str, Tensor]],
    max_tokens: int,
    keep_hidden: bool = False,
    support: Callable[[Rollout], Tensor] | None = None,
) -> list[Rollout]:
    """Copies of the rollouts with what `statistics` finds in the model's log-probabilities behind the prompts."""
    scored = list(rollouts)
    sequences = [(prompt, rollout.response_tokens) for prompt, rollout in zip(prompts, rollouts, strict=True)]
    for place, (prompt, response) in enumerate(sequences):
        check_readable(model, [*prompt, *response], 0, f"answer {place} with its prompt")
    for batch in batches_by_tokens(sequences, max_tokens):
        hidden_ND = response_hidden(model, [sequences[i] for i in batch])
        tokens_N = torch.tensor([t for i in batch for t in rollouts[i].response_tokens], device=hidden_ND.device)
        support_NK = torch.cat([(support or _support)(rollouts[i]) for i in batch]).to(hidden_ND.device)
        chunks: list[dict[str, Tensor]] = []
        chunk_tokens = tokens_per_chunk(vocabulary)
        for piece in range(0, len(tokens_N), chunk_tokens):
            span = slice(piece, piece + chunk_tokens)
            logprobs_NV = normalise(vocabulary.shared_logits(model.logits(hidden_ND[span])))
            chunks.append(statistics(logprobs_NV, tokens_N[span], support_NK[span]))
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
