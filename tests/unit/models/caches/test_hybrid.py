"""States beside slots: rows are rolled back, moved and filled anew, wherever the states come from.

The recurrent layer of these tests sums up what it is given, with decay: s <- s / 2 + x.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tutelage.models.caches import HybridCache, States

LAYERS = (0, 2)


def stepped(given_BTE: Tensor, states: States) -> list[States]:
    """The states after each token."""
    (state_BE,), after = states, []
    for given_BE in given_BTE.unbind(1):
        state_BE = state_BE / 2 + given_BE
        after.append((state_BE,))
    return after


class Rows:
    """A cache of rows, and the tokens that each row has read."""

    def __init__(self, num_rows: int, num_kept: int) -> None:
        self.cache, self.num_kept = HybridCache(3, num_rows, 0), num_kept
        self.tokens: list[list[float]] = [[] for _ in range(num_rows)]
        self.generator = torch.Generator().manual_seed(num_rows)
        self.num_reread = 0

    def read(self, num_new: int) -> None:
        given_BTE = torch.rand(len(self.tokens), num_new, 1, generator=self.generator, dtype=torch.float64)
        for layer in LAYERS:
            zeros = (torch.zeros(len(self.tokens), 1, dtype=torch.float64),)
            after = stepped(given_BTE, self.cache.states_of(layer, self.reread) or zeros)
            self.cache.advance(layer, given_BTE, list(after), self.num_kept)
        self.cache.num_since += num_new
        for row, given_TE in zip(self.tokens, given_BTE, strict=True):
            row += given_TE[:, 0].tolist()
        self.check()

    def reread(self, given_RTE: Tensor, states: States) -> States:
        self.num_reread += given_RTE.shape[:2].numel()
        return stepped(given_RTE, states)[-1]

    def roll_back(self, lengths: list[int]) -> None:
        self.cache.roll_back(torch.tensor(lengths))
        self.tokens = [row[:length] for row, length in zip(self.tokens, lengths, strict=True)]
        self.check()

    def select(self, rows: list[int]) -> None:
        self.cache.select(torch.tensor(rows))
        self.tokens = [list(self.tokens[row]) for row in rows]
        self.check()

    def check(self) -> None:
        expected = [sum(x / 2**age for age, x in enumerate(reversed(row))) for row in self.tokens]
        for layer in self.cache.states:
            (state_B1,) = self.cache.states_of(layer, self.reread) or ()
            torch.testing.assert_close(state_B1[:, 0], torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(("num_kept", "num_reread"), [(9, 0), (2, 6), (0, 16)])
def test_rows_are_rolled_back_each_to_its_own_token(num_kept: int, num_reread: int) -> None:
    """To the beginning of the round, into the midst of it, to its end, to nothing; read on and rolled back again."""
    rows = Rows(5, num_kept)
    rows.read(3)
    rows.roll_back([3, 3, 3, 3, 3])
    assert rows.num_reread == 0, "what stands as a whole is not read again"
    rows.read(1)
    rows.read(3)
    rows.roll_back([3, 5, 6, 7, 0])
    rows.read(2)
    rows.roll_back([4, 6, 8, 9, 1])
    # In two layers: 2 and 3 tokens of the second round, and 1 of the third in three rows; with 2 kept only the 3.
    assert rows.num_reread == num_reread


@pytest.mark.parametrize("num_kept", [9, 1, 0])
def test_rows_are_moved_within_a_round(num_kept: int) -> None:
    rows, fresh = Rows(3, num_kept), Rows(2, num_kept)
    rows.read(2)
    rows.roll_back([2, 2, 1])
    rows.read(3)
    rows.select([2, 0, 0, 1])
    rows.roll_back([3, 2, 4, 5])
    rows.read(2)
    fresh.read(4)
    fresh.roll_back([4, 2])
    rows.cache.copy_rows(fresh.cache, torch.tensor([1]), torch.tensor([2]))
    rows.cache.copy_rows(HybridCache(3, 1, 0), torch.tensor([0]), torch.tensor([3]))  # nothing was read
    rows.tokens[2:] = [list(fresh.tokens[1]), []]
    rows.roll_back([4, 4, 2, 0])
    rows.read(1)
    fresh.read(1)  # the copies are copies


@pytest.mark.parametrize("lengths", [[2, 3], [4, 6], [-1, 4]])
def test_states_that_were_not_kept_are_asked_for_in_vain(lengths: list[int]) -> None:
    """Before the last call, or beyond what was read: never a wrong state."""
    rows = Rows(2, 9)
    rows.read(3)
    rows.roll_back([3, 3])
    rows.read(2)
    with pytest.raises(AssertionError, match="cannot be rolled back to"):
        rows.cache.roll_back(torch.tensor(lengths))
