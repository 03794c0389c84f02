"""Worlds small enough to enumerate: the exact law of every answer, and a test of samples against it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from tests.support.tiny_models import make_model
from tutelage.models import LanguageModel, align, as_language_model
from tutelage.policies import Policy

Law = dict[tuple[int, ...], float]


def make_world(
    seed: int = 0, vocabulary: int = 6, dtype: torch.dtype = torch.float32, **shape: Any
) -> tuple[LanguageModel, LanguageModel]:
    """Two unlike models; the student stops at the last id only, the teacher at the last two."""
    stop = vocabulary - 1
    student = make_model("qwen3", vocab_size=vocabulary, stop_ids=stop, seed=seed, dtype=dtype, **shape)
    teacher = make_model(
        "llama", vocab_size=vocabulary + 2, stop_ids=[stop, stop - 1], seed=seed + 1, dtype=dtype, **shape
    )
    return as_language_model(student, "student"), as_language_model(teacher, "teacher")


@torch.no_grad()
def enumerated_law(
    student: LanguageModel,
    teacher: LanguageModel,
    policy: Policy,
    student_prompt: Sequence[int],
    teacher_prompt: Sequence[int],
    length: int,
) -> Law:
    """Probability of every answer of at most `length` tokens, by naive forwards over all prefixes."""
    vocabulary = align(student, teacher)
    law: Law = {}

    def extend(prefix: tuple[int, ...], probability: float) -> None:
        if len(prefix) == length or (prefix and prefix[-1] == vocabulary.stop_id):
            law[prefix] = probability
            return
        logits = [
            vocabulary.shared_logits(model.module(input_ids=torch.tensor([[*prompt, *prefix]])).logits[:, -1])
            for model, prompt in ((student, student_prompt), (teacher, teacher_prompt))
        ]
        mu = policy.propose(*logits, torch.tensor([len(prefix)])).logprobs_BV[0].double().exp()
        for token, share in enumerate((mu / mu.sum()).tolist()):
            if share > 0:
                extend((*prefix, token), probability * share)

    extend((), 1.0)
    return law


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
