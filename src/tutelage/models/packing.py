"""How many sequences go through one forward without padded work: tokens laid end to end, attention in blocks.

Everything but attention works on single tokens, so it sees the packed tokens only. Attention needs rows: sequences of
like length are moved into a rectangle together, attend, and are moved back. A sequence is read from its first token,
but its hidden states may be wanted from a later one on (a response, after its prompt): what comes before is the
sequence's *head*, the wanted rest its *tail*. Equal heads are read once for all their tails, and in the last layer
heads give keys and values only.

Axis letters: N packed tokens, M places in the blocks, b rows of a block, T queries, S keys.

Left out on purpose: which model computes; see `llama_forward`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Block", "Layout", "Packing", "pack", "padded_batches"]

# A row joins a block while the block stays this full, or its empty part is worth less than a call of its own: emptier
# blocks waste work, fuller ones mean many small calls.
FULLNESS = 0.8
WORTH_A_CALL = 2**14
# Rows with a masked rectangle larger than this read their head themselves: a mask of 2^20 numbers is 4 MiB.
MAX_MASK = 2**20


@dataclass(frozen=True)
class Row:
    """Queries that attend causally: the last query sees all keys, the one before all but the last, and so on."""

    queries: range
    keys: tuple[range, ...]

    @property
    def num_keys(self) -> int:
        return sum(map(len, self.keys))


@dataclass(frozen=True)
class Block:
    """A rectangle of rows: its sizes, and what each query may see (None: rows start at position 0, plainly causal)."""

    num_rows: int
    num_queries: int
    num_keys: int
    allowed_b1TS: Tensor | None


@dataclass(frozen=True)
class Move:
    """A copy of token vectors from one order to another, with a backward that only copies, too.

    Fields:
      take_M: source of each target.
      rounds: (source, target) pairs, each source at most once in a round. Sums over several targets of one source
        thus have a fixed order, which scattered additions on a GPU do not have.
    """

    take_M: Tensor
    rounds: tuple[tuple[Tensor, Tensor], ...]

    def __call__(self, states: Tensor) -> Tensor:
        moved: Tensor = _Move.apply(states, self)
        return moved


class _Move(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, move: Move) -> Tensor:
        ctx.move, ctx.num_sources = move, len(states)
        return states.index_select(0, move.take_M)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        gradient, rounds = gradients[0], ctx.move.rounds
        sources, targets = rounds[0]
        is_whole = len(sources) == ctx.num_sources
        total = (gradient.new_empty if is_whole else gradient.new_zeros)(ctx.num_sources, *gradient.shape[1:])
        total.index_copy_(0, sources, gradient.index_select(0, targets))
        for sources, targets in rounds[1:]:
            total.index_copy_(0, sources, total.index_select(0, sources) + gradient.index_select(0, targets))
        return total, None


@dataclass(frozen=True)
class Layout:
    """Where tokens sit while they attend: queries and keys moved into blocks, outputs moved back."""

    blocks: tuple[Block, ...]
    queries: Move
    keys: Move
    outputs: Move


@dataclass(frozen=True)
class Packing:
    """Sequences laid end to end, with two layouts: all tokens attend in `layout`, only the tails in `tail_layout`.

    Fields:
      tokens_N, positions_N: every token that is read, once.
      rows_N: the sequence a token was taken from (the first one, where several share it).
      tails_n: places of the tails' tokens among the N, in the order of the sequences.
      extent: length of the longest sequence.
    """

    tokens_N: Tensor
    positions_N: Tensor
    rows_N: Tensor
    tails_n: Tensor
    extent: int
    _rows: list[Row] = field(repr=False)
    _tail_rows: list[Row] = field(repr=False)
    _layouts: dict[str, Layout] = field(default_factory=dict, repr=False)

    @property
    def layout(self) -> Layout:
        """For layers in which every token attends."""
        return self._made("all", self._rows)

    @property
    def tail_layout(self) -> Layout:
        """For the last layer: queries of the tails, keys of all tokens."""
        return self._made("tails", self._tail_rows)

    def _made(self, name: str, rows: list[Row]) -> Layout:
        if name not in self._layouts:
            self._layouts[name] = _layout(rows, self.tokens_N.device)
        return self._layouts[name]


def pack(sequences: Sequence[Sequence[int]], starts: Sequence[int], device: torch.device) -> Packing:
    """Lay sequences end to end.

    Args:
      sequences: token ids, any length.
      starts: for each sequence, the first position whose hidden state is wanted, 0 <= start <= length.
    """
    heads: dict[tuple[int, ...], list[int]] = {}
    for i, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
        heads.setdefault(tuple(sequence[:start]), []).append(i)
    tokens: list[int] = []
    positions: list[int] = []
    owners: list[int] = []
    rows: list[Row] = []
    tails: list[tuple[range, range]] = [(range(0), range(0))] * len(sequences)

    def lay(owner: int, start: int, stop: int) -> range:
        first = len(tokens)
        tokens.extend(sequences[owner][start:stop])
        positions.extend(range(start, stop))
        owners.extend([owner] * (stop - start))
        return range(first, len(tokens))

    for head, members in heads.items():
        start = len(head)
        longest = max(len(sequences[i]) for i in members)
        if start == 0 or len(members) == 1 or longest * (longest - start) > MAX_MASK:
            for i in members:
                whole = lay(i, 0, len(sequences[i]))
                tails[i] = whole[:start], whole[start:]
                rows.append(Row(whole, (whole,)))
            continue
        shared = lay(members[0], 0, start)
        rows.append(Row(shared, (shared,)))
        for i in members:
            tails[i] = shared, lay(i, start, len(sequences[i]))
            rows.append(Row(tails[i][1], tails[i]))
    kept = [place for _, tail in tails for place in tail]
    tail_rows, first = [], 0
    for head_places, tail_places in tails:
        queries = range(first, first + len(tail_places))
        tail_rows.append(Row(queries, (head_places, tail_places)))
        first = queries.stop
    return Packing(
        _as_tensor(tokens, device),
        _as_tensor(positions, device),
        _as_tensor(owners, device),
        _as_tensor(kept, device),
        max(map(len, sequences), default=0),
        [row for row in rows if len(row.queries)],
        [row for row in tail_rows if len(row.queries)],
    )


def padded_batches(lengths: Mapping[int, int], max_tokens: int) -> Iterator[list[int]]:
    """Places of sequences in batches, like lengths together: each is one sequence, or at most `max_tokens` padded ones.

    Args:
      lengths: of the sequences, by their places.
    """
    batch: list[int] = []
    for place in sorted(lengths, key=lambda place: -lengths[place]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > max_tokens:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def _as_tensor(numbers: list[int], device: torch.device) -> Tensor:
    # Through an array: torch looks up the type of every element of a list, which takes several times as long.
    return _on(device, torch.from_numpy(np.fromiter(numbers, np.int64, len(numbers))))


def _on(device: torch.device, tensor: Tensor) -> Tensor:
    """The tensor there; from pinned memory, since a copy from other memory waits for all that a GPU has to do."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def _layout(rows: list[Row], device: torch.device) -> Layout:
    blocks: list[Block] = []
    query_sources: list[int] = []
    query_targets: list[int] = []
    take_queries: list[int] = []
    take_keys: list[int] = []
    uses: Counter[range] = Counter()
    rounds: list[tuple[list[int], list[int]]] = [([], [])]
    for group in _groups(rows):
        num_queries, num_keys = max(len(row.queries) for row in group), max(row.num_keys for row in group)
        for row in group:
            query_sources += row.queries
            query_targets += range(len(take_queries), len(take_queries) + len(row.queries))
            # Any token fills the places after a row's end: it is masked as a key and ignored as a query.
            take_queries += [*row.queries, *[row.queries[0]] * (num_queries - len(row.queries))]
            for places in filter(len, row.keys):
                if uses[places] == len(rounds):
                    rounds.append(([], []))
                sources_of_round, targets_of_round = rounds[uses[places]]
                uses[places] += 1
                sources_of_round += places
                targets_of_round += range(len(take_keys), len(take_keys) + len(places))
                take_keys += places
            take_keys += [take_keys[-1]] * (num_keys - row.num_keys)
        offsets_b = [row.num_keys - len(row.queries) for row in group]
        allowed = None
        if any(offsets_b):
            last_seen_bT = torch.tensor(offsets_b)[:, None] + torch.arange(num_queries)
            allowed = _on(device, (torch.arange(num_keys) <= last_seen_bT[..., None])[:, None])
        blocks.append(Block(len(group), num_queries, num_keys, allowed))

    def index(places: list[int]) -> Tensor:
        return _as_tensor(places, device)

    query_places, block_places = index(query_sources), index(query_targets)
    home = block_places[query_places.argsort()]
    return Layout(
        tuple(blocks),
        Move(index(take_queries), ((query_places, block_places),)),
        Move(index(take_keys), tuple((index(sources), index(targets)) for sources, targets in rounds)),
        Move(home, ((home, torch.arange(len(home), device=device)),)),
    )


def _groups(rows: list[Row]) -> list[list[Row]]:
    """Rows of like size together; plainly causal ones apart from those that need a mask."""
    groups: list[list[Row]] = []
    for is_plain in (True, False):
        kind = [row for row in rows if (row.num_keys == len(row.queries)) is is_plain]
        area, most_queries, most_keys = 0, 0, 0
        group: list[Row] = []
        for row in sorted(kind, key=lambda row: (-row.num_keys, -len(row.queries))):
            area += row.num_keys * len(row.queries)
            most_queries, most_keys = max(most_queries, len(row.queries)), max(most_keys, row.num_keys)
            rectangle = (len(group) + 1) * most_queries * most_keys
            is_wasteful = rectangle - area > max((1 - FULLNESS) * rectangle, WORTH_A_CALL)
            if group and (is_wasteful or (not is_plain and rectangle > 4 * MAX_MASK)):
                groups.append(group)
                group, area = [], row.num_keys * len(row.queries)
                most_queries, most_keys = len(row.queries), row.num_keys
            group.append(row)
        if group:
            groups.append(group)
    return groups
