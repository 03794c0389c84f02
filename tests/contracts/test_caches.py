"""What every cache keeps: attention through it is attention over each row's own keys and values, wherever they lie.

A new member joins by its line in `CACHES`. One that is made here shows what a member has to write.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.support.tiny_models import make_model
from tutelage.models import LanguageModel
from tutelage.models.caches import CACHES, CachedRows, JointCache, KVCache
from tutelage.models.steps import STEPS, EagerStep
from tutelage.policies import TrustRegion
from tutelage.rollout import Limits, PairedEngine

LAYERS, HEADS, GROUPS, SIZE, SCALE = 2, 2, 3, 4, 0.3


class PagedCache(KVCache):
    """A member of its own: slots in pages of four, and a row's pages anywhere in a pool."""

    PAGE = 4

    def __init__(self, num_layers: int, num_rows: int, capacity: int, max_capacity: int | None = None) -> None:
        super().__init__(num_layers, num_rows, 0, max_capacity)
        self.pages_BC = torch.zeros(num_rows, 0, dtype=torch.int64)
        self.pools: list[list[Tensor]] = [[] for _ in range(num_layers)]
        self.reserve(capacity)

    def allocate(self, num_heads: int, head_size: int, like: Tensor) -> None:
        shape = (self.pages_BC.numel(), self.PAGE, num_heads, head_size)
        self.pools = [[like.new_zeros(shape), like.new_zeros(shape)] for _ in range(self.num_layers)]

    def tensors(self) -> list[Tensor]:
        return [pool for pools in self.pools for pool in pools]

    def reserve(self, capacity: int) -> None:
        num_new = -(-max(0, capacity - self.capacity) // self.PAGE)
        if num_new:
            first, added = self.pages_BC.numel(), self.num_rows * num_new
            new_BC = first + torch.arange(added).flip(0).reshape(self.num_rows, num_new)
            self.pages_BC = torch.cat([self.pages_BC, new_BC], dim=1)
            self.pools = [[torch.cat([p, p.new_zeros(added, *p.shape[1:])]) for p in pools] for pools in self.pools]
            self.capacity = self.pages_BC.shape[1] * self.PAGE

    def write(self, layer: int, rows: Tensor, positions: Tensor, keys: Tensor, values: Tensor) -> None:
        if not self.pools[layer]:
            self.pools[layer] = [
                keys.new_zeros(self.pages_BC.numel(), self.PAGE, *s.shape[-2:]) for s in (keys, values)
            ]
        for pool, states in zip(self.pools[layer], (keys, values), strict=True):
            pool[self.pages_BC[rows, positions // self.PAGE], positions % self.PAGE] = states.to(pool.dtype)

    def read(self, layer: int, num_visible: int) -> tuple[Tensor, Tensor]:
        keys, values = (pool[self.pages_BC].flatten(1, 2).transpose(1, 2) for pool in self.pools[layer])
        return keys[:, :, :num_visible], values[:, :, :num_visible]

    def select(self, rows_B: Tensor) -> None:
        kept_BC, self.num_rows = self.pages_BC[rows_B], len(rows_B)
        self.pages_BC = torch.arange(kept_BC.numel()).view(kept_BC.shape)
        self.pools = [[pool[kept_BC].flatten(0, 1) for pool in pools] for pools in self.pools]

    def copy_rows(self, source: CachedRows, source_rows_R: Tensor, rows_R: Tensor) -> None:
        assert isinstance(source, PagedCache)
        self.reserve(source.capacity)
        taken_RC = source.pages_BC[source_rows_R]
        placed_RC = self.pages_BC[rows_R, : taken_RC.shape[1]]
        for i, pools in enumerate(source.pools):
            if pools and not self.pools[i]:
                self.pools[i] = [p.new_zeros(self.pages_BC.numel(), *p.shape[1:]) for p in pools]
            for pool, other in zip(self.pools[i], pools, strict=False):
                pool[placed_RC] = other[taken_RC]


MEMBERS = {**CACHES, "made here": PagedCache}
every_member = pytest.mark.parametrize("kind", MEMBERS.values(), ids=MEMBERS.keys())


class World:
    """A cache, and what each of its rows should hold: for every layer the keys and values [length, HEADS, SIZE]."""

    def __init__(self, kind: type[KVCache], num_rows: int, capacity: int, max_capacity: int | None = None) -> None:
        self.cache = kind(LAYERS, num_rows, capacity, max_capacity)
        nothing = torch.zeros(0, HEADS, SIZE, dtype=torch.float64)
        self.rows = [[(nothing, nothing)] * LAYERS for _ in range(num_rows)]
        self.generator = torch.Generator().manual_seed(num_rows)

    @property
    def lengths(self) -> list[int]:
        return [len(row[0][0]) for row in self.rows]

    def numbers(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def forward(self, starts: Sequence[int], num_new: int, spare: int = 0) -> None:
        """New tokens of every row from its own start on, as a model's layers see them; each checked by the formula."""
        positions_BT = torch.tensor(starts)[:, None] + torch.arange(num_new)
        num_visible = int(positions_BT.max()) + 1 + spare
        self.cache.reserve(num_visible)
        view = self.cache.begin(positions_BT, num_visible)
        for layer in range(LAYERS):
            queries = self.numbers(len(starts), num_new, HEADS * GROUPS, SIZE)
            keys, values = self.numbers(2, len(starts), num_new, HEADS, SIZE)
            found = view.attend(layer, queries, keys, values, SCALE)
            assert found.shape == (len(starts), num_new, HEADS * GROUPS * SIZE)
            for row, start in enumerate(starts):
                old_keys, old_values = self.rows[row][layer]
                held = torch.cat([old_keys[:start], keys[row]]), torch.cat([old_values[:start], values[row]])
                self.rows[row][layer] = held
                for place in range(num_new):
                    expected = attention(queries[row, place], *(states[: start + place + 1] for states in held))
                    torch.testing.assert_close(found[row, place], expected, rtol=1e-12, atol=1e-12)

    def select(self, rows: Sequence[int]) -> None:
        self.cache.select(torch.tensor(rows))
        self.rows = [list(self.rows[row]) for row in rows]
        assert self.cache.num_rows == len(rows)

    def copy_rows(self, source: World, source_rows: Sequence[int], rows: Sequence[int]) -> None:
        self.cache.copy_rows(source.cache, torch.tensor(source_rows), torch.tensor(rows))
        for source_row, row in zip(source_rows, rows, strict=True):
            self.rows[row] = list(source.rows[source_row])


def attention(queries_QD: Tensor, keys_LHD: Tensor, values_LHD: Tensor) -> Tensor:
    """softmax(scale · q k) v, head by head; query head q reads key head q // GROUPS."""
    heads = []
    for head, query_D in enumerate(queries_QD):
        keys_LD, values_LD = keys_LHD[:, head // GROUPS], values_LHD[:, head // GROUPS]
        heads.append((SCALE * keys_LD @ query_D).softmax(0) @ values_LD)
    return torch.cat(heads)


@every_member
def test_rows_have_lengths_of_their_own(kind: type[KVCache]) -> None:
    world = World(kind, 3, 16)
    world.forward([0, 0, 0], 2)
    world.forward([2, 1, 0], 3)  # rows part, as after drafts of which some were refused
    world.forward(world.lengths, 1)
    assert world.lengths == [6, 5, 4]


@every_member
def test_a_row_is_rolled_back_by_writing_earlier(kind: type[KVCache]) -> None:
    world = World(kind, 2, 16)
    world.forward([0, 0], 6)
    world.forward([2, 6], 1)
    world.forward([3, 0], 2)
    assert world.lengths == [5, 2]


@every_member
def test_more_visible_slots_change_nothing(kind: type[KVCache]) -> None:
    """Lengths are data: what a query sees follows from its position, and slots after it may hold anything."""
    world = World(kind, 2, 8)
    world.forward([0, 0], 5)
    world.forward([1, 3], 2, spare=9)
    world.forward([0, 4], 1, spare=2)


@every_member
@pytest.mark.parametrize("max_capacity", [None, 9])
def test_a_cache_grows_and_keeps_what_it_holds(kind: type[KVCache], max_capacity: int | None) -> None:
    world = World(kind, 2, 0, max_capacity)
    for step in range(9):
        world.forward([step, max(0, step - 3)], 1)
        assert world.cache.capacity > step
    before = world.cache.capacity
    world.cache.reserve(2)
    assert world.cache.capacity == before, "it never shrinks"


@every_member
def test_rows_are_repeated_dropped_and_reordered(kind: type[KVCache]) -> None:
    world = World(kind, 3, 4)
    world.forward([0, 0, 0], 3)
    world.select([2, 0, 0, 1])
    world.forward([3, 1, 3, 2], 2)  # the two copies of row 0 go ways of their own
    world.select([1])
    world.forward(world.lengths, 2)


@every_member
@pytest.mark.parametrize("is_written", [True, False])
def test_rows_are_taken_over_by_another_cache(kind: type[KVCache], is_written: bool) -> None:
    """Shorter and longer ones, into a cache in use and into one that was never written."""
    world, source = World(kind, 3, 4), World(kind, 2, 7)
    if is_written:
        world.forward([0, 0, 0], 4)
    source.forward([0, 0], 2)
    source.forward([2, 1], 5)
    world.copy_rows(source, [1, 0, 1], [0, 2, 1])
    world.forward(world.lengths, 2)
    world.copy_rows(World(kind, 1, 2), [0], [1])  # an empty prompt: nothing was written
    world.forward([1, 0, 1], 2)
    source.forward(source.lengths, 1)  # the copies are copies


@every_member
def test_tokens_of_many_rows_are_written_end_to_end(kind: type[KVCache]) -> None:
    """As a prefill does, which attends by itself."""
    world = World(kind, 2, 4)
    rows_N, positions_N = torch.tensor([1, 0, 1, 1]), torch.tensor([0, 0, 1, 2])
    for layer in range(LAYERS):
        keys, values = world.numbers(2, 4, HEADS, SIZE)
        world.cache.write(layer, rows_N, positions_N, keys, values)
        for row in (0, 1):
            world.rows[row][layer] = keys[rows_N == row], values[rows_N == row]
    world.forward([1, 3], 2)


@every_member
def test_memory_is_taken_once_in_the_type_that_is_asked_for(kind: type[KVCache]) -> None:
    cache = kind(LAYERS, 3, 8)
    assert cache.tensors() == []
    cache.allocate(HEADS, SIZE, torch.zeros(0, dtype=torch.bfloat16))
    assert {tensor.dtype for tensor in cache.tensors()} == {torch.bfloat16}
    assert sum(tensor.nbytes for tensor in cache.tensors()) == 2 * LAYERS * 3 * 8 * HEADS * SIZE * 2
    places = [tensor.data_ptr() for tensor in cache.tensors()]
    states = torch.ones(3, 1, HEADS, SIZE)  # under autocast they come in another type
    cache.begin(torch.zeros(3, 1, dtype=torch.int64), 1).update(0, states, states)
    assert [tensor.data_ptr() for tensor in cache.tensors()] == places
    assert type(cache.empty(2, 5)) is kind


@pytest.mark.rollouts
@every_member
@pytest.mark.parametrize("name", ["qwen3", "gemma2"])
def test_answers_do_not_depend_on_the_cache(kind: type[KVCache], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own forward and a module's, in a whole rollout: prompts of many lengths, drafts, refills, dropped rows."""
    student, teacher = (LanguageModel(make_model(name, seed=seed, stop_ids=7)) for seed in (0, 1))
    prompts = [[1, 2, 3], [4], [5, 6, 8, 9, 10, 11], [12, 13]]

    def answers() -> list[list[int]]:
        engine = PairedEngine(student, teacher, draft_length=3, limits=Limits(max_rows=3))
        rollouts = engine.generate(TrustRegion(0.05), prompts, max_new_tokens=9, num_samples=2, seed=1)
        return [rollout.response_tokens for rollout in rollouts]

    expected, made = answers(), []

    class Step(EagerStep):
        def new_cache(self, num_layers: int, num_rows: int, capacity: int, max_capacity: int | None) -> KVCache:
            made.append(kind(num_layers, num_rows, capacity, max_capacity))
            return made[-1]

    monkeypatch.setitem(STEPS, "eager", Step)
    student, teacher = (LanguageModel(model.module, stop_ids=model.stop_ids) for model in (student, teacher))
    assert answers() == expected and made


@every_member
def test_caches_of_several_models_move_together(kind: type[KVCache]) -> None:
    worlds, others = [World(kind, 2, 4), World(kind, 2, 4)], [World(kind, 1, 4), World(kind, 1, 4)]
    for world, start in ((worlds[0], 0), (worlds[1], 0), (others[0], 0), (others[1], 0)):
        world.forward([start] * world.cache.num_rows, 3)
    joint = JointCache([world.cache for world in worlds])
    joint.copy_rows(JointCache([other.cache for other in others]), torch.tensor([0]), torch.tensor([1]))
    joint.select(torch.tensor([1, 0, 1]))
    for world, other in zip(worlds, others, strict=True):
        world.rows = [list(other.rows[0]), world.rows[0], list(other.rows[0])]
        world.forward([3, 2, 1], 2)
