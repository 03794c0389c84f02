"""What does a forward of a model cost? Estimated from its size, so that it is the same in every run.

The unit is parameters · tokens: a CPU core does 50,000 of them per microsecond, an accelerator 500 million. Numbers for
CPUs were measured on one core beside other work, and brought to the speed of a quiet one by the costs of a plain layer.
Those of recurrent layers on an accelerator are counted: 8 µs for each launch, as on an H200, and bytes at 3 TB/s;
installed kernels take less.

Left out on purpose: what a round has really cost; see `draft_length`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tutelage.models import LanguageModel

__all__ = ["ForwardCosts", "judging_cost"]

# Tokens at which computing costs as much as reading the weights.
KNEE_TOKENS = {"cpu": 4, "cuda": 300}
# A layer besides: 70 and 15 µs; of the module's own forward, where nothing is captured, 110 µs and 76 launches.
LAYER_COST = {"cpu": 3.5e6, "cuda": 7.5e9}
MODULE_LAYER_COST = {"cpu": 5.5e6, "cuda": 3e11}
# One token of a round beside the forwards, for every word of the vocabulary: a draw by the student, and the policy's
# solve and judgement. A CPU core was measured at 20 ns; for an accelerator this is the aim of a millisecond for 256
# tokens of 152,000 words. The first words are part of the layers' overhead, which was measured with a few hundred.
WORD_COST = {"cpu": 1e3, "cuda": 1.3e4}
FREE_WORDS = 1024

# A recurrent layer in the plain form of `transformers` (benchmarks/hybrid.py): one token, and each number of the
# matrices of its row; a block of up to 64 tokens, and each number of its pairs of tokens and of its keys and values;
# taking rows of one length back, and each number that is copied for them.
SINGLE_COST, MATRIX_COST = {"cpu": 5e6, "cuda": 2.2e11}, {"cpu": 120.0, "cuda": 8.7e3}
BLOCK_COST = {"cpu": 7e6, "cuda": 3.8e11}
PAIR_COST, VECTOR_COST = {"cpu": 25.0, "cuda": 1.3e4}, {"cpu": 350.0, "cuda": 1e4}
ROLL_COST, COPY_COST = {"cpu": 5e5, "cuda": 1.6e10}, {"cpu": 10.0, "cuda": 2.7e3}
BLOCK_TOKENS = 64


@dataclass(frozen=True)
class _RecurrentLayer:
    """What decides how long a recurrent layer takes, for one device."""

    kind: str
    num_parameters: int
    num_heads: int
    key_size: int
    value_size: int

    @classmethod
    def of(cls, mixer: Any, kind: str) -> _RecurrentLayer:
        num_parameters = sum(weights.numel() for weights in mixer.parameters())
        return cls(kind, num_parameters, mixer.num_v_heads, mixer.head_k_dim, mixer.head_v_dim)

    @property
    def num_states(self) -> int:
        """Numbers in the matrices of one row."""
        return self.num_heads * self.key_size * self.value_size

    def taken_back(self, num_rows: float) -> float:
        """What it costs to take rows of one length back to states that were kept."""
        return ROLL_COST[self.kind] + num_rows * self.num_states * COPY_COST[self.kind]

    def one_by_one(self, num_rows: float, num_new: int) -> float:
        """What it costs beyond its parameters on tokens; each token but the first reads the weights again."""
        again = (num_new - 1) * KNEE_TOKENS[self.kind] * self.num_parameters
        return again + num_new * (SINGLE_COST[self.kind] + num_rows * self.num_states * MATRIX_COST[self.kind])

    def in_blocks(self, num_rows: float, num_new: int) -> float:
        """The same in blocks; one that is not full costs as much."""
        vectors = (self.key_size + self.value_size) * VECTOR_COST[self.kind]
        of_head = BLOCK_TOKENS * (BLOCK_TOKENS * PAIR_COST[self.kind] + vectors)
        num_blocks = math.ceil(num_new / BLOCK_TOKENS)
        return BLOCK_COST[self.kind] + num_rows * self.num_heads * num_blocks * of_head


class ForwardCosts:
    """What forwards of a model cost, from its size and on its device.

    Args:
      model: not a fused one, but each of its members.
    """

    def __init__(self, model: LanguageModel) -> None:
        self.model, self.kind = model, _kind(model)
        self.num_parameters = _num_parameters(model)
        of_layer = LAYER_COST if model.uses_fast_forward else MODULE_LAYER_COST
        self.layers_cost = int(model.config.num_hidden_layers) * of_layer[self.kind]
        mixers = model.recurrent_layers.by_layer.values()
        self.recurrent = [_RecurrentLayer.of(mixer, self.kind) for mixer in mixers]

    def reading(self, num_rows: int, num_new: int) -> float:
        """Of new tokens of every row: weights are read once, each token computes, each layer has its overhead."""
        computing = self.num_parameters * (KNEE_TOKENS[self.kind] + num_rows * num_new)
        return computing + self.layers_cost + self._mixing(num_rows, num_new)

    def taking_back(self, num_rows: int, length: int, share: float, *, is_one_by_one: bool) -> float:
        """Expected cost of taking back what was refused of a round's drafts, see `HybridCache`.

        Keys and values cost nothing. A row has read its first n of L tokens in truth with probability
        s^(n-1) (1 - s); rows with the same n are taken back together.

        Args:
          length: L.
          share: s, of drafts after which their answer goes on.
          is_one_by_one: the tokens were read in forwards of their own, as the student's drafts are.
        """
        if not self.recurrent:
            return 0.0
        is_known = is_one_by_one or length <= self.model.recurrent_layers.most_single_tokens(num_rows, self.kind)
        num_kept = self.model.kept_states(num_rows) if is_known else 0
        cost = 0.0
        for num_read in range(1, length):
            expected = num_rows * share ** (num_read - 1) * (1 - share)
            has_any = 1 - (1 - expected / num_rows) ** num_rows
            if has_any == 0:
                continue
            rows = expected / has_any
            cost += has_any * sum(layer.taken_back(rows) for layer in self.recurrent)
            if num_read > num_kept:
                num_parameters = sum(layer.num_parameters for layer in self.recurrent)
                computing = num_parameters * (KNEE_TOKENS[self.kind] + rows * num_read)
                cost += has_any * (computing + self._mixing(rows, num_read))
        return cost

    def _mixing(self, num_rows: float, num_new: int) -> float:
        most = self.model.recurrent_layers.most_single_tokens(math.ceil(num_rows), self.kind)
        return sum(
            layer.one_by_one(num_rows, num_new) if num_new <= most else layer.in_blocks(num_rows, num_new)
            for layer in self.recurrent
        )


def judging_cost(student: LanguageModel, num_tokens: int) -> float:
    """Of drawing, solving and judging."""
    return WORD_COST[_kind(student)] * max(0, student.padded_vocabulary_size - FREE_WORDS) * num_tokens


def _kind(model: LanguageModel) -> str:
    return "cpu" if model.device.type == "cpu" else "cuda"


def _num_parameters(model: LanguageModel) -> int:
    """Those that compute."""
    inner = model.module.get_input_embeddings()
    looked_up = 0 if inner is None else sum(weights.numel() for weights in inner.parameters())
    # A tied head computes with the embeddings; an untied one is counted already.
    tied = model.padded_vocabulary_size * int(model.config.hidden_size)
    is_tied = bool(getattr(model.config, "tie_word_embeddings", False))
    total: int = sum(weights.numel() for weights in model.module.parameters())
    return total - looked_up + (tied if is_tied else 0)
