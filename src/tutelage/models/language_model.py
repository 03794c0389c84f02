"""One causal language model as the engines see it: tokens to hidden states, hidden states to logits.

The two halves are separate because they are used separately: a rollout projects only the last position, and a loss
works through the head in chunks so that `[B, T, V]` never exists. Hidden states come from one of two forwards, our own
or the module's (`models.forward`); while answers are decoded, one of `models.steps` runs it on one of `models.caches`.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from tutelage.errors import ConfigurationError, ModelError
from tutelage.kernels import Head, softcapped
from tutelage.models.caches import CachedRows, KVCache
from tutelage.models.context import ContextLength, context_length_in
from tutelage.models.forward import Forward
from tutelage.models.llama_forward import LlamaForward
from tutelage.models.module_forward import ModuleForward
from tutelage.models.narrowed import NarrowedModel
from tutelage.models.packing import padded_batches
from tutelage.models.quantised import is_quantised
from tutelage.models.recurrent import Mixers
from tutelage.models.steps import STEPS, DecodeStep
from tutelage.models.trainables import AllWeights, Trainable

__all__ = ["LanguageModel", "as_language_model", "ids_of", "stop_ids_of"]


@dataclass
class LanguageModel:
    """A Hugging Face causal language model, its tokenizer and its stop ids.

    Fields:
      module: the `transformers` model.
      tokenizer: its tokenizer, or None for a bare model (tests, enumerable worlds).
      stop_ids: every id that ends an answer of this model; the first one is the id it emits.
      name: what to call it in messages.
      fast_forward: use our own forward where it knows the architecture; False = always the module's. The module's is
        also used while the module checkpoints gradients, drops attention out, or uses a flash or flex kernel.
      compile: decode through `torch.compile`; needs our own forward. On CUDA, where steps are captured anyway, it is
        not used.
      trainable: what of it learns when it is trained; left out = all weights.
      autocast: type in which matrix products are computed, whatever the weights' own; None = the weights' own.
      checkpoints_gradient: keep each layer's input only, and compute the layer again in backward.
      compiles_update: read whole sequences through `torch.compile` where there is a gradient; needs our own forward.
      decode_step: how decode steps are run, by its name in `STEPS`; None = captured on CUDA where our own forward knows
        the model, compiled if `compile`, or else as it is written.
    """

    module: Any
    tokenizer: Any = None
    stop_ids: tuple[int, ...] = ()
    name: str = "model"
    fast_forward: bool = True
    compile: bool = False
    trainable: Trainable = None  # type: ignore[assignment]  # all weights are of a module, see __post_init__
    autocast: torch.dtype | None = None
    checkpoints_gradient: bool = False
    compiles_update: bool = False
    decode_step: str | None = None
    _head: nn.Module = field(init=False, repr=False)
    _own_forward: LlamaForward | None = field(init=False, repr=False)
    _module_forward: ModuleForward = field(init=False, repr=False)
    _steps: dict[tuple[str, Forward], DecodeStep] = field(init=False, repr=False, default_factory=dict)
    # Copies of the weights in the type of `autocast`, and whether they are those of now.
    _narrowed: NarrowedModel | None = field(init=False, repr=False, default=None)
    _is_narrowed: bool = field(init=False, repr=False, default=False)
    _is_uncaptured: bool = field(init=False, repr=False, default=False)

    def __post_init__(self) -> None:
        head = self.module.get_output_embeddings()
        if head is None:
            raise ModelError(
                f"{self.name} ({type(self.module).__name__}) has no language-model head; a causal language model is "
                "needed. Load it with AutoModelForCausalLM."
            )
        self._head = head
        self.trainable = self.trainable or AllWeights(self.module)
        self._own_forward = LlamaForward.recognise(self.module.base_model, self.config)
        self._module_forward = ModuleForward(self.module)

    @property
    def members(self) -> list[LanguageModel]:
        """The models that this one consists of: itself."""
        return [self]

    @property
    def device(self) -> torch.device:
        """Where the head lives; tokens are sent there."""
        return next(self._head.parameters()).device

    @cached_property
    def config(self) -> Any:
        """The text configuration (multimodal models keep it one level down)."""
        return self.module.config.get_text_config()

    @property
    def padded_vocabulary_size(self) -> int:
        """Rows of the head, padding included."""
        return int(next(self._head.parameters()).shape[0])

    @property
    def context_length(self) -> ContextLength | None:
        """Most tokens of a text, see `models.context`; None if the configuration does not say."""
        return context_length_in(self.config)

    @property
    def known_ids(self) -> list[int]:
        """Ids that stand for a token; the others are padding of the embedding table."""
        if self.tokenizer is None:
            return list(range(self.padded_vocabulary_size))
        return sorted({i for i in self.tokenizer.get_vocab().values() if i < self.padded_vocabulary_size})

    @property
    def uses_fast_forward(self) -> bool:
        """True if hidden states come from our own forward, with the present settings.

        Raises:
          ConfigurationError: `compile` is on and they would not.
        """
        return self._forward is not self._module_forward

    @property
    def recurrent_layers(self) -> Mixers:
        """Those with a state in place of keys and values; false if there are none."""
        return self._module_forward.mixers

    @property
    def cache_bytes_per_slot(self) -> int:
        """Bytes of the keys and values of one token position of one row, all layers together."""
        layers, recurrent = getattr(self.module.base_model, "layers", ()), self.recurrent_layers.by_layer
        widths = [_projection_widths(layer) for i, layer in enumerate(layers) if i not in recurrent]
        if (not widths and not recurrent) or None in widths:
            config = self.config
            heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
            size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
            widths = [2 * heads * size] * (int(config.num_hidden_layers) - len(recurrent))
        # Under autocast our own forward keeps what attention reads.
        dtype = self.autocast if self.autocast is not None and self.uses_fast_forward else self.module.dtype
        return sum(width for width in widths if width is not None) * dtype.itemsize

    @property
    def cache_bytes_per_row(self) -> int:
        """Bytes of one row's states, which do not grow with the text: those of now, and those it can be rolled back to.

        What recurrent layers were given since is not counted: a few tokens' hidden states for each.
        """
        return 2 * self.recurrent_layers.state_bytes(self._product_dtype)

    def drafted_state_bytes(self, num_rows: int, num_drafted: int) -> int:
        """Bytes of the states that are kept besides while so many tokens are drafted: after each but the last."""
        mixers = self.recurrent_layers
        if num_rows == 0 or not mixers:
            return 0
        num_kept = min(num_drafted - 1, self.kept_states(num_rows))
        return num_rows * num_kept * mixers.state_bytes(self._product_dtype)

    def kept_states(self, num_rows: int) -> int:
        """After how many drafted tokens states are kept; of a model with recurrent layers."""
        return self.recurrent_layers.tokens_kept(num_rows, self._product_dtype)

    @property
    def _product_dtype(self) -> torch.dtype:
        return self.autocast or self.module.dtype

    def check_settings(self) -> None:
        """Refuse settings under which this model cannot be computed, before the first step needs them.

        Raises:
          ConfigurationError: names the key of the run file.
        """
        switches = {
            "rollout.compile": self.compile,
            "runtime.compile": self.compiles_update,
            "runtime.gradient_checkpointing": self.checkpoints_gradient,
        }
        for switch in [switch for switch, is_on in switches.items() if is_on]:
            if (obstacle := self.trainable.obstacle(switch)) is not None:
                raise ConfigurationError(f"{switch} is on, but {self.name} {obstacle}")
        if self.checkpoints_gradient and not hasattr(self.module.base_model, "layers"):
            raise ConfigurationError(
                f"runtime.gradient_checkpointing is on, but {self.name} ({type(self.module).__name__}) does not show "
                "its layers. Set runtime.gradient_checkpointing = false."
            )
        _ = self.uses_fast_forward  # asks for our own forward, where it is needed
        if self.compile and self.device.type == "cuda":
            warnings.warn(
                "rollout.compile has no effect on CUDA, where decode steps are captured in CUDA graphs and nothing is "
                "compiled. Drop it.",
                stacklevel=2,
            )

    def trainable_state(self) -> dict[str, Tensor]:
        """The values of what learns, by name: the tensors themselves, see `Trainable.state`."""
        return self.trainable.state()

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Copy the values that `trainable_state` gave."""
        self.trainable.load_state(state)

    def enable_grad(self) -> None:
        """Let a gradient reach what learns, and nothing else."""
        self.trainable.enable_grad()

    @contextmanager
    def weights_fixed(self) -> Iterator[None]:
        """Promise that no weight changes inside, as while answers are decoded; what is computed from weights is kept.

        That is their copies in the type of `autocast`, and the norms of DoRA. The copies stay in memory afterwards.
        """
        with ExitStack() as stack:
            if self.autocast is not None:
                # PyTorch drops its copies at the end of the outermost context, also of one that casts nothing.
                stack.enter_context(torch.autocast(self.device.type, enabled=False))
                if self.uses_fast_forward and self.trainable.only_multiplies:
                    stack.enter_context(self._decoding_from_copies(self.autocast))
            stack.enter_context(self.trainable.weights_fixed())
            yield

    @property
    def _copies(self) -> NarrowedModel | None:
        """The weights in the type of `autocast`, where they are as of now; they have no gradient."""
        return self._narrowed if self._is_narrowed and not torch.is_grad_enabled() else None

    @contextmanager
    def _decoding_from_copies(self, dtype: torch.dtype) -> Iterator[None]:
        if self._narrowed is None:
            self._narrowed = NarrowedModel(self.module.base_model, self.config, self._head, dtype)
        self._narrowed.refresh()
        was_narrowed, self._is_narrowed = self._is_narrowed, True
        try:
            yield
        finally:
            self._is_narrowed = was_narrowed

    def _precision(self) -> AbstractContextManager[Any]:
        """The context that matrix products of this model are computed in."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, self.autocast)

    def new_cache(self, num_rows: int, capacity: int, max_capacity: int | None = None) -> CachedRows:
        """An empty cache of `num_rows` rows and `capacity` slots; the slots grow when a forward needs more.

        Args:
          max_capacity: what no row will exceed, where that is known.
        """
        cache = self._step(self._step_name).new_cache(
            int(self.config.num_hidden_layers), num_rows, capacity, max_capacity
        )
        self._forward.allocate(cache, self.autocast)
        return cache

    @torch.no_grad()
    def prefill(self, sequences: Sequence[Sequence[int]], max_tokens: int = 16_384) -> CachedRows:
        """Read sequences of any lengths into a fresh cache, one row each; equal ones are read once.

        Args:
          sequences: token ids; the row of an empty sequence stays untouched.
          max_tokens: most tokens (of the module's own forward: padded tokens) in one forward.
        Returns:
          a cache with as many slots as the longest sequence has tokens. No logits are computed.
        """
        distinct = {tuple(sequence): None for sequence in sequences}
        place = {sequence: row for row, sequence in enumerate(distinct)}
        unique = list(distinct)
        cache = self.new_cache(len(unique), max(map(len, unique), default=0))
        assert isinstance(cache, KVCache)
        lengths = {row: len(sequence) for row, sequence in enumerate(unique) if sequence}
        for batch in padded_batches(lengths, max_tokens):
            with self._precision():
                self._forward.fill([unique[row] for row in batch], torch.tensor(batch, device=self.device), cache)
        if len(unique) != len(sequences):
            cache.select(torch.tensor([place[tuple(sequence)] for sequence in sequences], device=self.device))
        return cache

    def hidden_packed(self, sequences: Sequence[Sequence[int]], starts: Sequence[int] | None = None) -> Tensor:
        """Final hidden states of whole sequences, laid end to end: [N, D]; differentiable, without a cache.

        Args:
          sequences: token ids, any lengths.
          starts: for each sequence, the first position whose hidden state is wanted; None = all positions. What
            comes before is read once for all sequences that begin with the same `start` tokens.
        Returns:
          the wanted positions only, in the order of the sequences: N = sum of (length - start).
        """
        begins = [0] * len(sequences) if starts is None else starts
        if sum(map(len, sequences)) == sum(begins):
            weight = next(self._head.parameters())
            return weight.new_zeros(0, weight.shape[1])
        has_gradient = torch.is_grad_enabled()
        with self._precision():
            return self._forward.read(
                sequences,
                begins,
                self.device,
                checkpoints=has_gradient and self.checkpoints_gradient,
                compiles=has_gradient and self.compiles_update,
            )

    def hidden_cached(self, tokens_BT: Tensor, positions_BT: Tensor, cache: CachedRows, num_visible: int) -> Tensor:
        """Final hidden states [B, T, D] of new tokens at their own positions, reading and filling the cache.

        Args:
          tokens_BT, positions_BT: new tokens of every row and the slots they take. What is in slots
            from a row's first new position on counts as garbage and is overwritten; see also `CachedRows.roll_back`.
          num_visible: number of leading slots any query may look at (1 + the largest position so far).
        """
        assert isinstance(cache, KVCache)
        # Only the eager step has a gradient.
        step = self._step("eager" if torch.is_grad_enabled() else self._step_name)
        with self._precision():
            return step(tokens_BT, positions_BT, cache, num_visible)

    @property
    def _step_name(self) -> str:
        """How decode steps are run, by its name in `STEPS`."""
        if self.decode_step is not None:
            return self.decode_step
        if self.device.type != "cuda":
            return "compiled" if self.compile else "eager"
        if not self.uses_fast_forward:
            return self._uncaptured(f"{type(self.module).__name__} computes through its own forward")
        if not self.trainable.only_multiplies:
            return self._uncaptured("its adapter keeps numbers that follow from weights")
        if is_quantised(self.module):
            return self._uncaptured("its weights are quantised")
        # Captured, autocast would convert all weights at every step.
        return "graphed" if self.autocast is None or self._is_narrowed else "eager"

    def _uncaptured(self, reason: str) -> str:
        if not self._is_uncaptured:
            self._is_uncaptured = True
            warnings.warn(
                f"decode steps of {self.name} are not captured in CUDA graphs, so they take several times as long: "
                f"{reason}.",
                stacklevel=2,
            )
        return "eager"

    def _step(self, name: str) -> DecodeStep:
        key = name, self._forward
        if key not in self._steps:
            self._steps[key] = STEPS[name](self._forward)
        return self._steps[key]

    @property
    def _forward(self) -> Forward:
        """Our own forward where it is wanted, knows the architecture and does what is asked; or the module's."""
        if self.fast_forward and self._own_forward is not None and self._own_forward.is_usable:
            return self._own_forward if self._copies is None else self._copies.forward
        if self.compile or self.compiles_update:
            key = "rollout.compile" if self.compile else "runtime.compile"
            raise ConfigurationError(
                f"{key} is on, but {self.name} ({type(self.module).__name__}) computes through its own forward"
                ", which is not compiled; a Llama, Mistral without window, Qwen2 or Qwen3 with SDPA attention is "
                f"expected. Set {key} = false."
            )
        return self._module_forward

    def logits(self, hidden: Tensor) -> Tensor:
        """Head and final soft-capping: [..., D] -> [..., padded V], in the model's type, or that of `autocast`."""
        with self._precision():
            head = self._head if self._copies is None else self._copies.head
            return softcapped(head(hidden), self._softcap)

    @property
    def has_plain_head(self) -> bool:
        """The head is one whole linear layer: no adapter on it, no quantised weights, no shards of them."""
        return type(self._head) is nn.Linear and type(self._head.weight) is nn.Parameter

    def head(self) -> Head:
        """What `logits` computes with, as numbers that can be taken apart; for a plain head.

        They are in the type of products, so under `autocast` a copy, through which gradients reach the weights.
        """
        assert isinstance(self._head, nn.Linear) and self.has_plain_head
        weight_VD: Tensor = self._head.weight
        bias_V: Tensor | None = self._head.bias
        if self.autocast is not None:
            weight_VD, bias_V = weight_VD.to(self.autocast), None if bias_V is None else bias_V.to(self.autocast)
        return Head(weight_VD, bias_V, self._softcap)

    @property
    def _softcap(self) -> float | None:
        return getattr(self.config, "final_logit_softcapping", None)


def _projection_widths(layer: Any) -> int | None:
    """Numbers that one token leaves in the cache of one layer, or None if the layer does not show it."""
    attention = getattr(layer, "self_attn", None)
    widths = [getattr(getattr(attention, name, None), "out_features", None) for name in ("k_proj", "v_proj")]
    return None if None in widths else sum(int(width) for width in widths if width is not None)


def as_language_model(model: Any, name: str = "model") -> LanguageModel:
    """Accept a LanguageModel, or wrap a bare `transformers` model with the stop ids of its configuration."""
    if isinstance(model, LanguageModel):
        return model
    return LanguageModel(model, stop_ids=stop_ids_of(model), name=name)


def stop_ids_of(module: Any, tokenizer: Any = None) -> tuple[int, ...]:
    """Every id that ends an answer: the tokenizer's first, then those of the generation and model configurations."""
    candidates: list[int] = []
    for source in (tokenizer, getattr(module, "generation_config", None), module.config):
        candidates.extend(ids_of(getattr(source, "eos_token_id", None)))
    return tuple(dict.fromkeys(candidates))


def ids_of(value: int | Iterable[int] | None) -> list[int]:
    """Token ids of a configuration's entry that may be none, one or several."""
    if value is None:
        return []
    assert not isinstance(value, Mapping)
    return [int(value)] if isinstance(value, int) else [int(item) for item in value]
