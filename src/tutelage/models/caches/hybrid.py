"""A cache for models some of whose layers are recurrent: slots for attention, a state of constant size for the others.

A state has no slots. It sums up all tokens that were read, so writing at an earlier position takes nothing back, and a
token that only pads a row is read like any other. Both would go wrong silently. So a row is rolled back by `roll_back`,
exactly: the states of the last call stay where they are, beside what each recurrent layer was given since. Where all of
that stands, nothing is computed; elsewhere the layer reads the part that stands once more, from its old state. Nothing
but recurrent layers is computed again. The price is a second copy of the states.

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
      num_since: T, the same for all rows.
    """

    def __init__(self, num_layers: int, num_rows: int, capacity: int, max_capacity: int | None = None) -> None:
        super().__init__(num_layers, num_rows, capacity, max_capacity)
        self.states: dict[int, States] = {}
        self.kept: dict[int, States] = {}
        self.lengths_B = torch.zeros(num_rows, dtype=torch.int64)
        self.inputs: dict[int, list[Tensor]] = {}
        self.num_since = 0

    def tensors(self) -> list[Tensor]:
        """See `KVCache`."""
        return [*super().tensors(), *(each for states in self.states.values() for each in states)]

    def advance(self, layer: int, given_BTE: Tensor, states: States) -> None:
        """A recurrent layer has read some more of every row, and these are its states now."""
        self.states[layer] = states
        self.inputs.setdefault(layer, []).append(given_BTE)

    def fill(self, states: dict[int, States], lengths_B: Tensor) -> None:
        """These are the states after so many tokens of each row, whatever the rows were before."""
        self.states, self.kept, self.lengths_B = states, dict(states), lengths_B
        self.inputs, self.num_since = {}, 0

    @torch.no_grad()
    def roll_back(self, lengths_B: Tensor, reread: Callable[[int, Tensor, States], States]) -> None:
        """Let each row keep its first tokens, and drop what was read after them.

        Args:
          lengths_B: tokens to keep: 0, or at least as many as at the last call.
          reread: (layer, [R, T, E], states of R rows) -> the states after the layer has read these tokens.
        """
        lengths_B = lengths_B.cpu()
        is_new_B = lengths_B == 0
        read_B = (lengths_B - self.lengths_B).where(~is_new_B, self.num_since)
        assert bool(((read_B >= 0) & (read_B <= self.num_since)).all()), (
            f"rows of {self.lengths_B.tolist()} tokens, and {self.num_since} since, cannot be rolled back to "
            f"{lengths_B.tolist()}: the states in between were not kept"
        )
        for num_read in read_B[read_B < self.num_since].unique().tolist():
            rows_R = (read_B == num_read).nonzero()[:, 0]
            for layer, states in self.states.items():
                old = tuple(each.index_select(0, rows_R.to(each.device)) for each in self.kept_of(layer))
                if num_read:
                    given_BTE = torch.cat(self.inputs[layer], dim=1)[:, :num_read]
                    old = reread(layer, given_BTE.index_select(0, rows_R.to(given_BTE.device)), old)
                _put(states, rows_R, old)
        if bool(is_new_B.any()):
            self._clear(is_new_B.nonzero()[:, 0])
        self.fill(self.states, lengths_B)

    def kept_of(self, layer: int) -> States:
        """The states of a layer that rows can be rolled back to; nothing was read before the first ones."""
        if layer not in self.kept:
            self.kept[layer] = tuple(map(torch.zeros_like, self.states[layer]))
        return self.kept[layer]

    def _clear(self, rows_R: Tensor) -> None:
        for each in (each for known in (self.states, self.kept) for states in known.values() for each in states):
            each.index_fill_(0, rows_R.to(each.device), 0)

    def select(self, rows_B: Tensor) -> None:
        """See `CachedRows`."""
        super().select(rows_B)

        def selected(known: dict[int, States]) -> dict[int, States]:
            return {layer: tuple(each.index_select(0, rows_B) for each in states) for layer, states in known.items()}

        is_same = self.num_since == 0
        self.states = selected(self.states)
        self.kept = dict(self.states) if is_same else selected(self.kept)
        self.inputs = {
            layer: [given.index_select(0, rows_B) for given in pieces] for layer, pieces in self.inputs.items()
        }
        self.lengths_B = self.lengths_B[rows_B.cpu()]

    @torch.no_grad()
    def copy_rows(self, source: CachedRows, source_rows_R: Tensor, rows_R: Tensor) -> None:
        """See `CachedRows`. The rows cannot be rolled back to what they were in the source."""
        super().copy_rows(source, source_rows_R, rows_R)
        assert isinstance(source, HybridCache)
        if not source.states:
            self._clear(rows_R)
        for layer, source_states in source.states.items():
            if layer not in self.states:
                zeros = tuple(each.new_zeros(self.num_rows, *each.shape[1:]) for each in source_states)
                self.states[layer] = self.kept[layer] = zeros
            taken = tuple(each.index_select(0, source_rows_R.to(each.device)) for each in source_states)
            _put(self.states[layer], rows_R, taken)
            _put(self.kept_of(layer), rows_R, taken)
        # Rows that were read further since are rolled back before anything else is read, to the first token of that.
        self.lengths_B[rows_R.cpu()] = (source.lengths_B + source.num_since)[source_rows_R.cpu()]


def _put(states: States, rows_R: Tensor, new: States) -> None:
    for each, values in zip(states, new, strict=True):
        each.index_copy_(0, rows_R.to(each.device), values.to(each.dtype))
