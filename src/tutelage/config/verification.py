"""Is a rollout right?  From its tokens to the text that the verifier of a run judges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tutelage.config.schema import DataConfig
from tutelage.tasks import THINKING_OPENS, Verifier, answer_classes
from tutelage.types import Rollout

__all__ = [
    "CompareAnswers",
    "Decode",
    "VerifyRollouts",
    "decoder_of",
    "make_comparer",
    "make_verifier",
    "response_texts",
]

Decode = Callable[[Sequence[int]], str]
VerifyRollouts = Callable[[Sequence[Rollout], Sequence[str]], Sequence[bool]]
CompareAnswers = Callable[[Sequence[Rollout]], list[int]]
"""Rollouts to one problem -> equal numbers for equal final answers, -1 where there is none."""

_MAX_OPENING_TOKENS = 8  # a template's "<think>" and what white space comes after it, in any tokenizer


def make_verifier(data: DataConfig, tokenizer: Any) -> VerifyRollouts:
    """Right or wrong for rollouts, from their text and whether they ended by themselves; `data` names a verifier."""
    response_of, verifier = response_texts(tokenizer), Verifier(data.verifier, truncated=data.truncated_answers)

    def verify(rollouts: Sequence[Rollout], answers: Sequence[str]) -> Sequence[bool]:
        return [
            verifier.verify(response_of(rollout), answer, finished=rollout.finished)
            for rollout, answer in zip(rollouts, answers, strict=True)
        ]

    return verify


def make_comparer(data: DataConfig, tokenizer: Any) -> CompareAnswers:
    """Which rollouts give the same final answer, as the verifier that `data` names judges equality."""
    response_of, verifier = response_texts(tokenizer), Verifier(data.verifier, truncated=data.truncated_answers)

    def compare(rollouts: Sequence[Rollout]) -> list[int]:
        texts = [response_of(rollout) for rollout in rollouts]
        return answer_classes(verifier, texts, [rollout.finished for rollout in rollouts])

    return compare


def response_texts(tokenizer: Any) -> Callable[[Rollout], str]:
    """The text of a rollout's response, as it is judged."""
    decode = decoder_of(tokenizer)

    def response_of(rollout: Rollout) -> str:
        # Some templates open the thinking at the prompt's end, and the response then has its end only.
        opens = decode(rollout.prompt_tokens[-_MAX_OPENING_TOKENS:]).rstrip().endswith(THINKING_OPENS)
        return THINKING_OPENS * opens + decode(rollout.response_tokens)

    return response_of


def decoder_of(tokenizer: Any) -> Decode:
    """Token ids to text, without special tokens."""

    def decode(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(list(tokens), skip_special_tokens=True))

    return decode
