"""A cache for models some of whose layers are recurrent: slots for attention, a state of constant size for the others.

A state has no slots. It sums up all tokens that were read, so writing at an earlier position takes nothing back, and a
token that only pads a row is read like any other. Both would go wrong silently. So a row is rolled back by `roll_back`,
exactly: the states of the last call stay where they are, beside what each recurrent layer was given since and, where
memory allows, the states after each token. A row takes the states after its last token that stands. Where they were not
kept, the layer reads what stands once more, from its old states; nothing but recurrent layers is computed again.

Left out on purpose: how a layer reads; see `module_forward`.

Axis letters: B rows, R some of the rows, T tokens read since the last call of `roll_back`, E width of the model.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tutelage.models.caches.base import CachedRows
from tutelage.models.caches.contiguous import ContiguousCache

__all__ = ["HybridCache", "States"]

# What a recurrent layer keeps of its rows, each [B, ...]: the window of its convolution, and its matrix.
States = tuple[Tensor, ...]


class HybridCache(ContiguousCache):
    """Keys and values of attention layers, as in a `ContiguousCache`, and the states of recurrent layers.

    Fields:
      states: of each recurrent layer that has read something, by the layer's number.
      kept: the states that rows can be rolled back to, or to any token since.
      lengths_B: tokens that these have read of each row; on the host.
      inputs: what each recurrent layer was given since, [B, T, E] in pieces.
      after: its states after each of these tokens, T of them; None = not kept.
      num_since: T, the same for all rows.
      unread: what recurrent layers have to read again before they read on: rows, what they are given, the old states.
    """

    def __init__(self, num_layers: int, num_rows: int, capacity: int, max_capacity: int | None = None) -> None:
        super().__init__(num_layers, num_rows, capacity, max_capacity)
        self.states: dict[int, States] = {}
        self.kept: dict[int, States] = {}
        self.lengths_B = torch.zeros(num_rows, dtype=torch.int64)
        self.inputs: dict[int, list[Tensor]] = {}
        self.after: dict[int, list[States | None]] = {}
        self.num_since = 0
        self.unread: dict[int, list[tuple[Tensor, Tensor, States]]] = {}

    def tensors(self) -> list[Tensor]:
        """See `KVCache`."""
        return [*super().tensors(), *(each for states in self.states.values() for each in states)]

    def advance(self, layer: int, given_BTE: Tensor, after: list[States | None], num_kept: int) -> None:
        """A recurrent layer has read some more tokens of every row.

        Args:
          after: its states after each of them, where they are known; after the last one they are.
          num_kept: after how many tokens since the last call of `roll_back` they are kept.
        """
        assert after[-1] is not None
        self.states[layer] = after[-1]
        self.inputs.setdefault(layer, []).append(given_BTE)
        known = self.after.setdefault(layer, [])
        known += [states if len(known) + place < num_kept else None for place, states in enumerate(after)]

    def fill(self, states: dict[int, States], lengths_B: Tensor) -> None:
        """These are the states after so many tokens of each row, whatever the rows were before."""
        self.states, self.kept, self.lengths_B = states, dict(states), lengths_B
        self.inputs, self.after, self.unread, self.num_since = {}, {}, {}, 0

    def states_of(self, layer: int, reread: Callable[[Tensor, States], States]) -> States | None:
        """The states from which a recurrent layer reads on; None = nothing was read.

        Args:
          reread: ([R, T, E], states of R rows) -> the states after the layer has read these tokens.
        """
        for rows_R, given_RTE, states in self.unread.pop(layer, ()):
            _put(self.states[layer], rows_R, reread(given_RTE, states))
        return self.states.get(layer)

    @torch.no_grad()
    def roll_back(self, lengths_B: Tensor) -> None:
        """See `CachedRows`. What must be read again is, when the layer reads on."""
        if not self.states:  # there are keys and values at most
            return
        assert not self.unread
        lengths_B = lengths_B.cpu()
        is_new_B = lengths_B == 0
        read_B = (lengths_B - self.lengths_B).where(~is_new_B, self.num_since)
        assert bool(((read_B >= 0) & (read_B <= self.num_since)).all()), (
            f"rows of {self.lengths_B.tolist()} tokens, and {self.num_since} since, cannot be rolled back to "
            f"{lengths_B.tolist()}: the states in between were not kept"
        )
        unread: dict[int, list[tuple[Tensor, Tensor, States]]] = {}
        device = next(iter(self.states.values()))[0].device  # sent there once, and not for each layer
        for num_read in read_B[read_B < self.num_since].unique().tolist():
            rows_R = (read_B == num_read).nonzero()[:, 0].to(device)
            for layer, states in self.states.items():
                known = self.after[layer][num_read - 1] if num_read else self._kept_of(layer)
                if known is not None:
                    _put(states, rows_R, _rows(known, rows_R))
                    continue
                given_BTE = torch.cat(self.inputs[layer], dim=1)[:, :num_read]
                given_RTE = given_BTE.index_select(0, rows_R.to(given_BTE.device))
                unread.setdefault(layer, []).append((rows_R, given_RTE, _rows(self._kept_of(layer), rows_R)))
        if bool(is_new_B.any()):
            self._clear(is_new_B.nonzero()[:, 0].to(device))
        self.fill(self.states, lengths_B)
        self.unread = unread

    def _kept_of(self, layer: int) -> States:
        """The states of a layer that rows can be rolled back to; nothing was read before the first ones."""
        if layer not in self.kept:
            self.kept[layer] = tuple(map(torch.zeros_like, self.states[layer]))
        return self.kept[layer]

    def _clear(self, rows_R: Tensor) -> None:
        for each in (each for known in (self.states, self.kept) for states in known.values() for each in states):
            each.index_fill_(0, rows_R.to(each.device), 0)

    def select(self, rows_B: Tensor) -> None:
        """See `CachedRows`."""
        assert not self.unread
        super().select(rows_B)

        def selected(known: dict[int, States]) -> dict[int, States]:
            return {layer: _rows(states, rows_B) for layer, states in known.items()}

        is_same = self.num_since == 0
        self.after = {
            layer: [None if states is None else _rows(states, rows_B) for states in known]
            for layer, known in self.after.items()
        }
        self.states = selected(self.states)
        self.kept = dict(self.states) if is_same else selected(self.kept)
        self.inputs = {layer: [_rows((given,), rows_B)[0] for given in pieces] for layer, pieces in self.inputs.items()}
        self.lengths_B = self.lengths_B[rows_B.cpu()]

    @torch.no_grad()
    def copy_rows(self, source: CachedRows, source_rows_R: Tensor, rows_R: Tensor) -> None:
        """See `CachedRows`. The rows cannot be rolled back to what they were in the source."""
        super().copy_rows(source, source_rows_R, rows_R)
        assert isinstance(source, HybridCache) and not self.unread and not source.unread
        if not source.states:
            self._clear(rows_R)
        for layer, source_states in source.states.items():
            if layer not in self.states:
                zeros = tuple(each.new_zeros(self.num_rows, *each.shape[1:]) for each in source_states)
                self.states[layer] = self.kept[layer] = zeros
            taken = _rows(source_states, source_rows_R)
            _put(self.states[layer], rows_R, taken)
            _put(self._kept_of(layer), rows_R, taken)
        # Rows that were read further since are rolled back before anything else is read, to the first token of that.
        self.lengths_B[rows_R.cpu()] = (source.lengths_B + source.num_since)[source_rows_R.cpu()]


def _rows(states: States, rows_R: Tensor) -> States:
    return tuple(each.index_select(0, rows_R.to(each.device)) for each in states)


def _put(states: States, rows_R: Tensor, new: States) -> None:
    for each, values in zip(states, new, strict=True):
        each.index_copy_(0, rows_R.to(each.device), values.to(each.dtype))
