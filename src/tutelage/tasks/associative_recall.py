"""Multi-query associative recall (MQAR): pairs of a key and a value, then some of the keys again; what belongs to them?

A state of fixed size must hold every pair, so here kernels of linear attention differ, where softmax attention looks
each pair up (Zoology, arXiv 2312.04927; the layout and the gaps are those of ReBased's generator, arXiv 2402.10644,
sec. 5.1). As rows of tokens for a small model, or as problems in words for `tutelage evaluate` and `train`.

Axis letters: B rows, T positions, P pairs.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from tutelage.errors import ConfigurationError

__all__ = ["IGNORED", "AssociativeRecall", "recall_lines"]

IGNORED = -100  # the label of a position where nothing is asked
SYLLABLES = [first + second for first in "bdfgklmnprstvz" for second in "aeiou"]


@dataclass(frozen=True)
class AssociativeRecall:
    """Rows of P pairs and a query for each of them.

    Positions 0 to 2P - 1 hold k₁ v₁ k₂ v₂ ...; every later key stands at 2P + 2g, its g drawn without repetition with
    p(g) ∝ (g + 1)^(gap_power - 1), and all other positions hold token 0. A key's label is its value.

    Fields:
      num_pairs: P; keys and values are all different within a row.
      length: T, even, at least 4P.
      vocabulary: keys are tokens 1 to V / 2 - 1, values V / 2 to V - 1.
      gap_power: near 0, queries follow soon; 1 = anywhere alike.

    Raises:
      ConfigurationError: sizes into which the pairs do not fit.
    """

    num_pairs: int
    length: int
    vocabulary: int
    gap_power: float = 0.01

    def __post_init__(self) -> None:
        if not 1 <= self.num_pairs <= self.length // 4 or self.length % 2:
            raise ConfigurationError(
                f"{self.num_pairs} pairs and their queries in {self.length} positions do not fit; expected an even "
                "length of at least 4 times the pairs, and a pair."
            )
        if self.vocabulary // 2 - 1 < self.num_pairs:
            raise ConfigurationError(
                f"a vocabulary of {self.vocabulary} has {self.vocabulary // 2 - 1} keys for {self.num_pairs} pairs; "
                "expected as many at least. Enlarge it."
            )

    def draw(self, num_rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Tokens and labels of some rows, [B, T] each; a label is `IGNORED` where nothing is asked."""
        half, num_pairs = self.vocabulary // 2, self.num_pairs
        keys_BP = 1 + _distinct(num_rows, torch.ones(half - 1), num_pairs, generator)
        values_BP = half + _distinct(num_rows, torch.ones(self.vocabulary - half), num_pairs, generator)
        num_gaps = self.length // 2 - num_pairs
        likely = torch.arange(1, num_gaps + 1, dtype=torch.float64) ** (self.gap_power - 1)
        places_BP = 2 * (num_pairs + _distinct(num_rows, likely, num_pairs, generator))
        tokens_BT = torch.zeros(num_rows, self.length, dtype=torch.int64)
        tokens_BT[:, : 2 * num_pairs] = torch.stack((keys_BP, values_BP), dim=-1).flatten(1)
        tokens_BT.scatter_(1, places_BP, keys_BP)
        labels_BT = torch.full_like(tokens_BT, IGNORED).scatter_(1, places_BP, values_BP)
        return tokens_BT, labels_BT


def _distinct(num_rows: int, weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """In each row, so many different places, drawn one after the other in proportion to the weights: [B, count]."""
    return torch.multinomial(weights.expand(num_rows, -1), count, replacement=False, generator=generator)


def recall_lines(count: int, seed: int, num_pairs: int = 8) -> str:
    """Problems in words as JSON lines with the keys id, problem and answer, for the verifier "exact".

    "kato 71, mire 35, ... What goes with mire? Answer with the number alone." One key of each problem is asked for.
    """
    words = [first + second for first in SYLLABLES for second in SYLLABLES]
    if not 1 <= num_pairs <= 90:
        raise ConfigurationError(f"num_pairs is {num_pairs}; expected 1 to 90, since values have two digits at most.")
    rng, lines = random.Random(seed), []
    for number in range(count):
        keys, values = rng.sample(words, num_pairs), rng.sample(range(10, 100), num_pairs)
        asked = rng.randrange(num_pairs)
        pairs = ", ".join(f"{key} {value}" for key, value in zip(keys, values, strict=True))
        row = {
            "id": f"recall-{seed}-{number:05d}",
            "problem": f"{pairs}. What goes with {keys[asked]}? Answer with the number alone.",
            "answer": str(values[asked]),
        }
        lines.append(json.dumps(row) + "\n")
    return "".join(lines)
