"""Worlds small enough to enumerate: the exact law of every answer, a test of samples against it, and a plain walk."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import torch
from torch import Tensor

from tests.support.tiny_models import make_model
from tutelage.models import LanguageModel, align, as_language_model
from tutelage.policies import Policy
from tutelage.types import Prompt

Law = dict[tuple[int, ...], float]

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16}
"""Shape of models that need not be large."""


def make_world(
    seed: int = 0,
    vocabulary: int = 6,
    dtype: torch.dtype = torch.float32,
    architectures: tuple[str, str] = ("qwen3", "llama"),
    **shape: Any,
) -> tuple[LanguageModel, LanguageModel]:
    """Two unlike models; the student stops at the last id only, the teacher at the last two."""
    stop, (own, other) = vocabulary - 1, architectures
    student = make_model(own, vocab_size=vocabulary, stop_ids=stop, seed=seed, dtype=dtype, **shape)
    teacher = make_model(
        other, vocab_size=vocabulary + 2, stop_ids=[stop, stop - 1], seed=seed + 1, dtype=dtype, **shape
    )
    return as_language_model(student, "student"), as_language_model(teacher, "teacher")


class NextToken:
    """p and mu behind a prefix, by naive forwards, each asked for once."""

    def __init__(self, student: LanguageModel, teacher: LanguageModel, policy: Policy, prompt: Prompt) -> None:
        self.models = ((student, prompt.student_tokens), (teacher, prompt.teacher_tokens or prompt.student_tokens))
        self.policy, self.vocabulary = policy, align(student, teacher)
        self.known: dict[tuple[int, ...], tuple[list[float], list[float]]] = {}

    @torch.no_grad()
    def __call__(self, prefix: tuple[int, ...]) -> tuple[list[float], list[float]]:
        if prefix not in self.known:
            logits = [
                self.vocabulary.shared_logits(model.module(input_ids=torch.tensor([[*prompt, *prefix]])).logits[:, -1])
                for model, prompt in self.models
            ]
            mu = self.policy.propose(*logits, torch.tensor([len(prefix)])).logprobs_BV[0].double().exp()
            self.known[prefix] = logits[0][0].double().softmax(-1).tolist(), (mu / mu.sum()).tolist()
        return self.known[prefix]


def enumerated_law(student: LanguageModel, teacher: LanguageModel, policy: Policy, prompt: Prompt, length: int) -> Law:
    """Probability of every answer of at most `length` tokens, by naive forwards over all prefixes."""
    following = NextToken(student, teacher, policy, prompt)
    law: Law = {}

    def extend(prefix: tuple[int, ...], probability: float) -> None:
        if len(prefix) == length or (prefix and prefix[-1] == following.vocabulary.stop_id):
            law[prefix] = probability
            return
        for token, share in enumerate(following(prefix)[1]):
            if share > 0:
                extend((*prefix, token), probability * share)

    extend((), 1.0)
    return law


def walk(following: NextToken, draws_1T: Tensor, keeps_1T: Tensor, *, is_drafted: bool) -> list[int]:
    """One answer, token by token, from the random numbers of its places.

    Args:
      is_drafted: the student draws a token, which stays with probability min(1, mu / p), and where it does not, what mu
        has more than p draws another; else every token is drawn from mu.
    """
    answer: list[int] = []
    for draw, keep in zip(draws_1T[0].tolist(), keeps_1T[0].tolist(), strict=True):
        p, mu = following(tuple(answer))
        token = _inverted(p if is_drafted else mu, draw)
        if is_drafted and keep >= mu[token] / p[token]:
            rest = (keep - mu[token] / p[token]) / (1 - mu[token] / p[token])
            token = _inverted([max(more - less, 0.0) for less, more in zip(p, mu, strict=True)], rest)
        answer.append(token)
        if token == following.vocabulary.stop_id:
            break
    return answer


def _inverted(shares: list[float], uniform: float) -> int:
    """The first token at which the shares add up to more than a part of their sum."""
    sums = list(itertools.accumulate(shares))
    return next(token for token, reached in enumerate(sums) if reached > uniform * sums[-1])


def chi_square_p_value(counts: Counter[tuple[int, ...]], law: Law) -> float:
    """P-value of Pearson's test; cells with less than 5 expected counts are pooled.

    Raises:
      AssertionError: an answer of probability zero was sampled.
    """
    assert set(counts) <= set(law), "an answer of probability zero was sampled"
    total = sum(counts.values())
    cells = [(counts[answer], total * share) for answer, share in law.items()]
    large = [cell for cell in cells if cell[1] >= 5]
    rest = [cell for cell in cells if cell[1] < 5]
    if rest:
        large.append((sum(c for c, _ in rest), sum(e for _, e in rest)))
    if len(large) == 1:
        return 1.0  # there is one answer, and nothing else was sampled
    statistic = sum((c - e) ** 2 / e for c, e in large if e > 0)
    freedom = len(large) - 1
    return float(torch.special.gammaincc(torch.tensor(freedom / 2).double(), torch.tensor(statistic / 2).double()))
