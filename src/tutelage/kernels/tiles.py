"""One model's logits at a block of tokens, a tile of the vocabulary at a time.

A tile is a stretch of columns of the shared vocabulary. The rules that `models.Vocabulary` applies
to whole rows hold here on tiles: ids that stand for no token are impossible, and all ways of stopping are one event.

Axis letters: n tokens of a block, m columns of a tile, D hidden, V vocabulary, S ways of stopping.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from tutelage.distributions import wide_dtype

__all__ = [
    "Head",
    "LogMass",
    "TiledLogits",
    "Tiling",
    "VocabularyView",
    "ids_on",
    "inside",
    "softcapped",
    "uncapped",
    "without",
]

# Bytes of logits that a block of tokens may keep, student and teacher together: little beside a model, and enough
# tokens to keep the multiplications busy. On a CPU 441 of them at 152,000 words in float32; elsewhere more, since the
# gradient of the head, written once per block, would take as long there as the multiplication.
KEPT_BYTES_CPU = 2**29
KEPT_BYTES_ELSEWHERE = 2**30

# Bytes of everything there: gradients of head and hidden states, a block's logits and a tile. Where a large head leaves
# too few for logits, these get a third of what its gradient takes: that gradient is read and written once per block,
# and with a sixth of the width as many tokens, its product takes about as long. Products like multiples of 64 tokens.
WORK_BYTES_ELSEWHERE = int(1.25 * 2**30)
LEAST_SHARE_OF_HEAD = 3
TOKENS_TOGETHER = 64

# Entries of a tile: on a CPU few enough to stay near its caches, elsewhere enough to keep the device busy.
TILE_ENTRIES_CPU = 2**19
TILE_ENTRIES_ELSEWHERE = 2**23
LEAST_TILES_ELSEWHERE = 16

# Tokens of a block whose tiles are computed again: the head's weights are read once per block and pass.
RECOMPUTED_TOKENS = 1024

# How many times what is kept lives at once where a divergence is taken on whole rows, in autograd.
LIVE_ON_WHOLE_ROWS = 6

# Stands for the peak of a tile without any possible token: -inf minus -inf would be NaN.
LOWEST_PEAK = -1e30


class Head(NamedTuple):
    """A language-model head: logits = cap(hidden · weightᵀ + bias), cap(x) = softcap · tanh(x / softcap)."""

    weight_VD: Tensor
    bias_V: Tensor | None = None
    softcap: float | None = None

    def logits(self, hidden_nD: Tensor, ids: slice | Tensor) -> Tensor:
        """[n, ids], in the head's own type."""
        bias = None if self.bias_V is None else self.bias_V[ids]
        return softcapped(linear(hidden_nD, self.weight_VD[ids], bias), self.softcap)


def softcapped(logits: Tensor, cap: float | None) -> Tensor:
    """cap · tanh(logits / cap); None = as they are."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def uncapped(gradient: Tensor, logits: Tensor, cap: float | None) -> Tensor:
    """The gradient before the cap, from that on the capped logits."""
    return gradient if cap is None else gradient * (1 - (logits.to(gradient.dtype) / cap).square())


@dataclass(frozen=True)
class VocabularyView:
    """What the ids of a head stand for; see `models.Vocabulary`, which makes it.

    Fields:
      size: V, leading columns that are used.
      stop_ids: ids whose mass is one event at `stop_id`; fewer than two = every id is its own event.
      is_hidden_V: [V] bool, ids without an event of their own; None = there is no such id.
    """

    size: int
    stop_ids: tuple[int, ...] = ()
    stop_id: int | None = None
    is_hidden_V: Tensor | None = None

    @property
    def merges(self) -> bool:
        """Several ids are one event."""
        return len(self.stop_ids) > 1

    def place_of_stop(self, tile: slice) -> int | None:
        """Where in a tile the merged event stands."""
        if not self.merges or self.stop_id is None or not tile.start <= self.stop_id < tile.stop:
            return None
        return int(self.stop_id - tile.start)


@dataclass(frozen=True)
class Tiling:
    """How the work is cut.

    Fields:
      tokens: of a block.
      vocabulary: columns of a tile.
      keeps: a block's tiles are kept through its passes; False = they are computed again in each, so that nothing wider
        than a tile is ever held.
    """

    tokens: int
    vocabulary: int
    keeps: bool = True

    @classmethod
    def fitting(
        cls, view: VocabularyView, hidden_ND: Tensor, entry_bytes: int, *, keeps: bool = True, whole_rows: bool = False
    ) -> Tiling:
        """Blocks whose logits stay within `KEPT_BYTES`, tiles that suit the device.

        Args:
          hidden_ND: for how many tokens, of what width and type, and where.
          entry_bytes: kept of a column of a token.
          keeps: see the fields.
          whole_rows: a tile must have all columns, and autograd goes through it.
        """
        is_cpu = hidden_ND.device.type == "cpu"
        row_bytes = view.size * entry_bytes * (LIVE_ON_WHOLE_ROWS if whole_rows else 1)
        tokens = RECOMPUTED_TOKENS
        if keeps:
            tokens = KEPT_BYTES_CPU // row_bytes if is_cpu else _tokens_elsewhere(view, hidden_ND, row_bytes)
        tokens = max(1, min(tokens, hidden_ND.shape[0]))
        if whole_rows:
            return cls(tokens, view.size, keeps)
        columns = (TILE_ENTRIES_CPU if is_cpu else TILE_ENTRIES_ELSEWHERE) // tokens
        if not is_cpu:
            columns = min(columns, view.size // LEAST_TILES_ELSEWHERE)
        return cls(tokens, min(view.size, max(128, columns // 128 * 128)), keeps)

    def blocks(self, num_tokens: int) -> Iterator[slice]:
        """The tokens."""
        return _cut(num_tokens, self.tokens)

    def tiles(self, view: VocabularyView) -> list[slice]:
        """The vocabulary."""
        return list(_cut(view.size, self.vocabulary))


def _tokens_elsewhere(view: VocabularyView, hidden_ND: Tensor, row_bytes: int) -> int:
    """Of a block whose logits are kept beside the gradients."""
    num_tokens, width = hidden_ND.shape
    of_head, of_hidden = view.size * width * hidden_ND.itemsize, num_tokens * width * hidden_ND.itemsize
    left = WORK_BYTES_ELSEWHERE - of_head - of_hidden - 4 * TILE_ENTRIES_ELSEWHERE
    most = min(KEPT_BYTES_ELSEWHERE, max(left, of_head // LEAST_SHARE_OF_HEAD)) // row_bytes
    if most < TOKENS_TOGETHER or not num_tokens:
        return most
    num_blocks = -(-num_tokens // (most // TOKENS_TOGETHER * TOKENS_TOGETHER))
    return -(-num_tokens // num_blocks // TOKENS_TOGETHER) * TOKENS_TOGETHER


def _cut(length: int, size: int) -> Iterator[slice]:
    return (slice(first, min(first + size, length)) for first in range(0, length, size))


class LogMass(NamedTuple):
    """log Σ exp of rows, as peak + log_sum: two numbers, since their sum would round where logits lie far from 0."""

    peak_n: Tensor
    log_sum_n: Tensor

    def normalised(self, logits_nm: Tensor) -> Tensor:
        """Log-probabilities of a tile."""
        return (logits_nm - self.peak_n[:, None]) - self.log_sum_n[:, None]


def _merged(parts: Sequence[tuple[Tensor, Tensor]]) -> LogMass:
    """The log mass of rows from each tile's peak and its mass relative to that."""
    peaks_Pn, masses_Pn = (torch.stack(each) for each in zip(*parts, strict=True))
    peak_n = peaks_Pn.amax(0)
    return LogMass(peak_n, (masses_Pn * (peaks_Pn - peak_n).exp()).sum(0).log())


class TiledLogits:
    """Shared logits of one model at a block of tokens.

    Args:
      head, view: of the model, and of the vocabulary that it shares with another.
      hidden_nD: final hidden states.
      keeps: keep every tile; False = only the latest.
    """

    # All columns are one tile to everything but `scan`, and a gradient may take the place of the logits.
    is_whole: ClassVar[bool] = False

    def __init__(self, head: Head, view: VocabularyView, hidden_nD: Tensor, keeps: bool) -> None:
        self.head, self.view, self.hidden_nD, self.keeps = head, view, hidden_nD, keeps
        self._tiles: dict[int, Tensor] = {}
        self.stops_nS: Tensor | None = None
        self.stop_n: Tensor | None = None
        if view.merges:
            self.stops_nS = self.wide_logits(ids_on(hidden_nD.device, view.stop_ids))
            self.stop_n = torch.logsumexp(self.stops_nS, dim=-1)

    def wide_logits(self, ids_S: Tensor) -> Tensor:
        """The head's own logits of some ids, [n, S] in float32 or wider."""
        return _widened(self.head.logits(self.hidden_nD, ids_S))

    def head_logits(self, tile: slice) -> Tensor:
        """[n, m] the head's own logits, in its type; not to be written to."""
        if tile.start not in self._tiles:
            if not self.keeps:
                self._tiles.clear()
            self._tiles[tile.start] = self.head.logits(self.hidden_nD, tile)
        return self._tiles[tile.start]

    def drop(self, tile: slice) -> None:
        """Release a tile that is no longer needed."""
        self._tiles.pop(tile.start, None)

    def shared_logits(self, tile: slice) -> Tensor:
        """[n, m] as `Vocabulary.shared_logits` has it, in float32 or wider; not to be written to."""
        logits_nm = _widened(self.head_logits(tile))
        if self.view.is_hidden_V is not None:
            logits_nm = logits_nm.masked_fill(self.view.is_hidden_V[tile], float("-inf"))
        place = self.view.place_of_stop(tile)
        if place is not None:
            assert self.stop_n is not None
            logits_nm[:, place] = self.stop_n  # a copy already: merged ids are hidden ones
        return logits_nm

    def peak_and_mass(self, tile: slice, without_nK: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The tile's largest logit, and Σ exp of its logits relative to that; `without_nK`: ids that do not count."""
        logits_nm = self.shared_logits(tile)
        if without_nK is not None:
            logits_nm = without(logits_nm, without_nK, tile)
        peak_n = logits_nm.amax(-1).clamp_min(LOWEST_PEAK)
        return peak_n, (logits_nm - peak_n[:, None]).exp_().sum(-1)

    def scan(self, tiles: Sequence[slice], ids_nK: Tensor, without_nK: Tensor | None = None) -> tuple[LogMass, Tensor]:
        """Read the rows once: the log mass of each, and the shared logits of single ids, [n, K].

        Args:
          tiles: the whole vocabulary.
          ids_nK: which logits are asked for.
          without_nK: ids whose mass does not count.
        """
        found_nK = torch.full(ids_nK.shape, float("-inf"), dtype=wide_dtype(self.hidden_nD), device=ids_nK.device)
        parts = []
        for tile in tiles:
            parts.append(self.peak_and_mass(tile, without_nK))
            places_nK, is_inside_nK = inside(ids_nK, tile)
            found_nK = torch.where(is_inside_nK, self.head_logits(tile).gather(1, places_nK).to(found_nK), found_nK)
        return _merged(parts), self.with_rules(ids_nK, found_nK)

    def with_rules(self, ids_nK: Tensor, logits_nK: Tensor) -> Tensor:
        """Shared logits of single ids, from the head's own, which are written to."""
        if self.view.is_hidden_V is not None:
            logits_nK.masked_fill_(self.view.is_hidden_V[ids_nK], float("-inf"))
        if self.stop_n is not None and self.view.stop_id is not None:
            logits_nK = torch.where(ids_nK == self.view.stop_id, self.stop_n[:, None], logits_nK)
        return logits_nK

    def rest_gradient(self, tile: slice, ids_nK: Tensor, mass: LogMass, slope_n: Tensor) -> Tensor:
        """slope · exp(z - R) on a tile, but 0 at single ids, [n, m].

        Args:
          mass: R.
        """
        logits_nm = without(self.shared_logits(tile), ids_nK, tile)
        return (logits_nm - mass.peak_n[:, None]).sub_(mass.log_sum_n[:, None]).exp_().mul_(slope_n[:, None])

    def of_picked(self, slopes_nK: Tensor) -> Tensor:
        """A gradient on the single logits that `scan` found, as it is to be added to one on a tile."""
        return slopes_nK

    def uncapped(self, gradient_nm: Tensor, tile: slice) -> Tensor:
        """The gradient before the head's cap, from that on a tile."""
        cap = self.head.softcap
        return gradient_nm if cap is None else uncapped(gradient_nm, self.head_logits(tile), cap)


def inside(ids_nK: Tensor, tile: slice) -> tuple[Tensor, Tensor]:
    """Places of ids in a tile, and whether they are in it; the places of the others are undefined."""
    is_inside_nK = (ids_nK >= tile.start) & (ids_nK < tile.stop)
    return (ids_nK - tile.start).clamp(0, tile.stop - tile.start - 1), is_inside_nK


def without(logits_nm: Tensor, ids_nK: Tensor, tile: slice) -> Tensor:
    """A copy of a tile in which some ids are impossible."""
    places_nK, is_inside_nK = inside(ids_nK, tile)
    # The smaller of what is there and -inf, for an id of this tile, or inf, for another, which changes nothing.
    bounds_nK = torch.where(is_inside_nK, float("-inf"), float("inf")).to(logits_nm)
    return logits_nm.scatter_reduce(1, places_nK, bounds_nK, "amin")


@lru_cache
def ids_on(device: torch.device, ids: tuple[int, ...]) -> Tensor:
    """Ids as a tensor, made once: to copy them to a device would be to wait for it."""
    return torch.tensor(ids, device=device)


def _widened(tensor: Tensor) -> Tensor:
    return tensor.to(wide_dtype(tensor))
