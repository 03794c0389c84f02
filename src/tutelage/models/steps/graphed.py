"""The decode step captured in CUDA graphs: what took two thousand launches is one.

A graph repeats the same kernels on the same addresses. So tokens, positions, keys and values have places of their own,
and whatever differs from step to step is data there: how far rows are filled, which slots a query sees. Three numbers
are shapes, and there is a graph for each combination of them that occurs: rows, new tokens, visible slots. All are
rounded up, so that a rollout meets about ten.

- Rows that are finished and dropped leave the first rows of the memory to the others (`FixedCache`). A step computes
  a power of two of rows; what the surplus ones compute is garbage in rows that nobody has.
- More new tokens than are given repeat the last one at its own place.
- Visible slots are rounded up to one of four sizes in every doubling.

A shape is run plainly at first, which also loads its kernels, and captured when it comes up again, in 20 to 30 ms. All
graphs of a device take their memory from one pool. That is safe because a result is copied before anything else runs.
Weights that change in place are seen by every graph. Where a weight or a table has moved, or the keys and values have
found a larger place, graphs are captured again. Memory and graphs of a finished rollout serve the next one, unless they
take too much of the device.

The head is no part of a graph: it is one launch, and its result, the widest tensor of a step, would have to be copied.

Without CUDA the same function is called on the same places. That is how tests hold this step against the eager one.

The small operations between products are kernels that `LlamaForward` calls (`kernels.triton_layers`); a graph contains
whatever it launches.

Axis letters: B rows, T new tokens of each row, E width of the model.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache as kept
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from tutelage.errors import in_short
from tutelage.models.caches import FixedCache, KVCache, Memory
from tutelage.models.forward import Forward
from tutelage.models.steps.base import MIN_POSITIONS, DecodeStep

__all__ = ["KEPT_FREE_SHARE", "KEPT_SHARE", "GraphedStep", "kept_bytes"]

# Fewer rows than this take as long on a GPU.
MIN_ROWS = 8
# Numbers of new tokens that there are graphs for; beyond, multiples of the last step.
NEW_TOKENS = (1, 2, 4, 6, 8, 12, 16)
# Slots grow by at least this many.
MIN_SLOTS = 64
# Up to which share of a device's memory keys and values of a model are kept from one rollout to the next, and up to
# which share of what is free then: an update needs memory, too. Where they are large, rollouts are long, and capturing
# anew is a small part of them.
KEPT_SHARE, KEPT_FREE_SHARE = 0.05, 0.25
# Other threads, such as those of process groups, may go on using the device during a capture.
ERROR_MODE = "thread_local"

Decode = Callable[[Tensor, Tensor], Tensor]
Done = TypeVar("Done")


class GraphedStep(DecodeStep):
    """`forward.decode` on fixed places; on CUDA captured, elsewhere called."""

    def __init__(self, forward: Forward) -> None:
        super().__init__(forward)
        forward.prepare(MIN_POSITIONS)
        self._spare: Memory | None = None

    def slots(self, num_slots: int) -> int:
        """`num_slots` rounded up to one of four sizes in every doubling, in steps of at least 64."""
        step = max(MIN_SLOTS, (1 << max(0, num_slots - 1).bit_length()) // 8)
        return -(-num_slots // step) * step

    def new_cache(self, num_layers: int, num_rows: int, capacity: int, max_capacity: int | None) -> FixedCache:
        """See `DecodeStep`. The memory is that of the last cache, if it is used no longer and is large enough."""
        spare, self._spare = self._spare, None
        if spare is not None and _holds(spare, num_rows, self.slots(capacity)):
            cache = FixedCache.on(spare, num_rows, max_capacity)
        else:
            cache = FixedCache(num_layers, num_rows, self.slots(capacity), max_capacity)
        cache.when_gone(self._keep)
        return cache

    def _keep(self, memory: Memory) -> None:
        states = memory.tensors()
        if memory.captured is not None and sum(each.nbytes for each in states) <= kept_bytes(states[0].device):
            self._spare = memory

    def run(self, tokens_BT: Tensor, positions_BT: Tensor, cache: KVCache, num_visible: int) -> Tensor:
        """See `DecodeStep`. A cache that was made for another step is worked on as it is."""
        if not (isinstance(cache, FixedCache) and cache.tensors()):
            return self.forward.decode(tokens_BT, positions_BT, cache, num_visible)
        num_rows, num_new = tokens_BT.shape
        shape = (_padded_rows(num_rows, cache.num_allocated), _padded_new(num_new), num_visible)
        replays = self._replays_of(cache.memory)
        if shape not in replays:
            replays[shape] = self._replay(cache, *shape, tokens_BT.device)
        return replays[shape](tokens_BT, positions_BT)

    def _replays_of(self, memory: Memory) -> dict[tuple[int, int, int], Replay]:
        """What was captured on this memory with the weights where they are now."""
        read = self.forward.tensors()
        places = tuple(tensor.data_ptr() for tensor in read)
        known: _Captured | None = memory.captured
        if known is None or known.places != places:
            # The tensors are held, so that nothing else comes to lie where a graph reads.
            known = memory.captured = _Captured(places, read)
        return known.replays

    def _replay(self, cache: FixedCache, num_rows: int, num_new: int, num_visible: int, device: torch.device) -> Replay:
        # Not the cache itself: what is made for a memory must not keep its user.
        rows = cache.first_rows(num_rows)
        decode = partial(self.forward.decode, cache=rows, num_visible=num_visible)
        kind = CapturedReplay if device.type == "cuda" else Replay
        return kind(decode, num_rows, num_new, device)


class Replay:
    """A function of tokens and positions, called on the same places every time."""

    def __init__(self, decode: Decode, num_rows: int, num_new: int, device: torch.device) -> None:
        self._decode = decode
        self.tokens_BT = torch.zeros(num_rows, num_new, dtype=torch.int64, device=device)
        self.positions_BT = torch.zeros_like(self.tokens_BT)

    def __call__(self, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
        """Hidden states [B, T, E] of as many rows and new tokens as there are places, or fewer; a copy.

        Surplus rows keep what they had, whose positions are as good as any.
        """
        num_rows, num_new = tokens_BT.shape
        for place_BT, given_BT in ((self.tokens_BT, tokens_BT), (self.positions_BT, positions_BT)):
            place_BT[:num_rows, :num_new] = given_BT
            if num_new < place_BT.shape[1]:
                place_BT[:num_rows, num_new:] = given_BT[:, -1:]
        return self._run()[:num_rows, :num_new].clone()

    def _run(self) -> Tensor:
        return self._decode(self.tokens_BT, self.positions_BT)


class CapturedReplay(Replay):
    """The same on CUDA: called once, then captured, then replayed."""

    _graph: torch.cuda.CUDAGraph | None = None
    _hidden_BTE: Tensor
    _is_warm = False
    _is_refused = False

    def _run(self) -> Tensor:
        if self._graph is None:
            if not self._is_warm or self._is_refused:
                self._is_warm = True
                return self._beside(super()._run)
            self._graph = self._beside(self._captured)
            if self._graph is None:
                return self._beside(super()._run)
        self._graph.replay()
        return self._hidden_BTE

    def _captured(self) -> torch.cuda.CUDAGraph | None:
        graph = torch.cuda.CUDAGraph()
        try:
            graph.capture_begin(pool=_pool(self.tokens_BT.device)[0], capture_error_mode=ERROR_MODE)
            try:
                self._hidden_BTE = super()._run()
            finally:
                graph.capture_end()
        except RuntimeError as problem:
            self._is_refused = True
            _pool.cache_clear()  # PyTorch 2.11 goes on believing that it records into this one
            first = problem.__context__ or problem  # the end of a capture that failed fails, too
            warnings.warn(f"a decode step was not captured, so it is slower: {in_short(first)}", stacklevel=2)
            return None
        return graph

    def _beside(self, work: Callable[[], Done]) -> Done:
        """Do something on the stream for captures, in its place among what the current stream does."""
        device = self.tokens_BT.device
        current, beside = torch.cuda.current_stream(device), _stream(device)
        beside.wait_stream(current)
        with torch.cuda.stream(beside):
            done = work()
        current.wait_stream(beside)
        return done


class _Captured:
    """What was captured with the weights at these places."""

    def __init__(self, places: tuple[int, ...], read: list[Tensor]) -> None:
        self.places, self.read = places, read
        self.replays: dict[tuple[int, int, int], Replay] = {}


def kept_bytes(device: torch.device) -> int | float:
    """How much memory may be kept from one rollout to the next for each model on this device."""
    if device.type != "cuda":
        return float("inf")
    free, total = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(min(KEPT_SHARE * total, KEPT_FREE_SHARE * free))


@kept
def _pool(device: torch.device) -> tuple[Any, tuple[torch.cuda.CUDAGraph, Tensor]]:
    """The pool of a device, and a graph that keeps it alive: PyTorch takes no pool again whose last graph is gone.

    To be called on the stream for captures.
    """
    pool, anchor, place = torch.cuda.graph_pool_handle(), torch.cuda.CUDAGraph(), torch.empty(1, device=device)
    anchor.capture_begin(pool=pool, capture_error_mode=ERROR_MODE)
    try:
        place.zero_()
    finally:
        anchor.capture_end()
    return pool, (anchor, place)


@kept
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _holds(memory: Memory, num_rows: int, capacity: int) -> bool:
    return all(states.shape[0] >= num_rows and states.shape[2] >= capacity for states in memory.tensors())


def _padded_rows(num_rows: int, num_allocated: int) -> int:
    return min(num_allocated, max(MIN_ROWS, 1 << (num_rows - 1).bit_length()))


def _padded_new(num_new: int) -> int:
    step = NEW_TOKENS[-1] - NEW_TOKENS[-2]
    return next((size for size in NEW_TOKENS if size >= num_new), -(-num_new // step) * step)
