"""Can our caches serve this model?  Tried once when it is loaded; a refusal names the architecture.

The configuration is checked first (kinds of layers). Then a few tokens are tried: decoded through the cache, in rows
of different lengths with rolled-back tails, and read as packed sequences, they must give the logits of one plain
forward. An architecture that ignores our mask, or scales its logits in a way we do not know, is caught here before it
ruins a run. If only our own forward disagrees, the module's is used.

Some things begin thousands of tokens later, and a few tokens must show them. During the trial a sliding window is
narrowed to fewer tokens than are tried; if the two then disagree, as many tokens are read as the window really has. And
a token at the last position of the context must not change what the first ones predict; if it does, positions mean
something else in longer texts. `both_readings` compares at any length; `doctor` does so at the longest that a run can
reach.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tutelage.distributions import normalise
from tutelage.errors import ConfigurationError, UnsupportedArchitectureError
from tutelage.models.language_model import LanguageModel
from tutelage.models.recurrent import Mixers

__all__ = ["both_readings", "check_servable", "not_training", "tolerance_of"]

SERVED_LAYER_TYPES = {"full_attention", "sliding_attention"}
# Served where the model has recurrent layers of the kind that we know to call.
RECURRENT_LAYER_TYPE = "linear_attention"
# Windows that are masked inside a module by the length of its cache, not by the position of a query (GPT-Neo).
LOCAL_LAYER_TYPES = {"local"}
# Tokens that are tried, and what a window is narrowed to meanwhile.
TRIED_TOKENS, TRIED_WINDOW = 6, 3
TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}
QUANTISED_TOLERANCE = 0.25  # weights that are codes; products are made in bfloat16 or float16


def tolerance_of(module: Any) -> float:
    """Largest difference of log-probabilities, in nats, that rounding explains in a model of this type.

    Recurrent layers compute in float32 even in a wider model.
    """
    dtype = module.dtype
    if dtype == torch.float64 and Mixers.of(module.base_model):
        dtype = torch.float32
    return TOLERANCES.get(dtype, QUANTISED_TOLERANCE)


def check_servable(model: LanguageModel) -> None:
    """Refuse, by name, an architecture that the paired engine's cache cannot serve.

    Costs a handful of forwards over about ten tokens. Sets `model.fast_forward` to False, with a warning, if our own
    forward disagrees with the module while the module's cached forward does not.

    Raises:
      UnsupportedArchitectureError: chunked layers, recurrent ones of unknown kinds, an encoder, logits that
        do not agree, or positions that change their meaning in longer texts.
      ConfigurationError: `model.compile` is on and our own forward does not serve the model.
    """
    architecture = type(model.module).__name__
    if getattr(model.module.config, "is_encoder_decoder", False):
        raise UnsupportedArchitectureError(_refusal(model, architecture, "it is an encoder-decoder"))
    served = SERVED_LAYER_TYPES | ({RECURRENT_LAYER_TYPE} if Mixers.of(model.module.base_model) else set())
    unknown = sorted(set(getattr(model.config, "layer_types", None) or ()) - served)
    unknown += sorted(set(getattr(model.config, "attention_layers", None) or ()) & LOCAL_LAYER_TYPES)
    if unknown:
        raise UnsupportedArchitectureError(_refusal(model, architecture, f"it has layers of type {', '.join(unknown)}"))
    problem = _disagreement(model)
    if problem is not None and model.uses_fast_forward:
        own_problem, model.fast_forward = problem, False
        problem = _disagreement(model)
        if problem is None:
            warnings.warn(
                f"{model.name}: our own forward for {architecture} was refused ({own_problem}), so the slower one of "
                "the module is used. To ask for that one, set `fast_forward=False` on the model.",
                stacklevel=2,
            )
    if problem is not None:
        raise UnsupportedArchitectureError(_refusal(model, architecture, problem))


def _disagreement(model: LanguageModel) -> str | None:
    """Why this model cannot be served as it is set up, or None if it can."""
    try:
        with not_training(model.module):
            error = _error_across_window(model)
            shift = _shift_by_length(model)
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError, IndexError) as problem:
        if isinstance(problem, ConfigurationError):
            raise
        return f"decoding through the cache failed with {type(problem).__name__}: {problem}"
    if math.isnan(error):
        return f"its logits are NaN, so its weights are damaged or overflow in {model.module.dtype}"
    tolerance = tolerance_of(model.module)
    if not error <= tolerance:
        window = getattr(model.config, "sliding_window", None)
        hint = "" if not window else f" (its configuration has sliding_window = {window}; null if its code knows none)"
        return f"cached and plain decoding differ by {error:.2g} nats where {tolerance:g} is rounding{hint}"
    if not shift <= tolerance:
        return (
            f"a token at position {int(model.context_length or 0) - 1} changes what the first ones predict by "
            f"{shift:.2g} nats, so its positions mean something else in longer texts"
        )
    return None


def _error_across_window(model: LanguageModel) -> float:
    """`_served_error`, across the sliding window where there is one."""
    window = getattr(model.config, "sliding_window", None)
    with _narrow_window(model.config):
        error = _served_error(model)
    if not window or error <= tolerance_of(model.module):
        return error
    # The module may make its mask of something else, so that only the window itself shows whether both agree.
    ids = model.known_ids[:64]
    tokens = (ids * (1 + window // len(ids)))[:window] + ids[:TRIED_TOKENS]
    cached_TV, whole_TV = both_readings(model, tokens, TRIED_TOKENS)
    return max(_served_error(model), float((cached_TV - whole_TV).abs().max()))


@contextmanager
def not_training(module: Any) -> Iterator[None]:
    """The module without dropout, as it is sampled from and scored."""
    was_training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(was_training)


@contextmanager
def _narrow_window(config: Any) -> Iterator[None]:
    """A sliding window of fewer tokens than are tried; masks are made from the configuration, here and there."""
    window = getattr(config, "sliding_window", None)
    if not window or window <= TRIED_WINDOW:
        yield
        return
    config.sliding_window = TRIED_WINDOW
    try:
        yield
    finally:
        config.sliding_window = window


def _refusal(model: LanguageModel, architecture: str, reason: str) -> str:
    return (
        f"{model.name} is a {architecture}, which the paired engine cannot serve: {reason}. It needs a decoder-only "
        "model with full or sliding-window attention, such as Qwen3, Llama, Mistral or Gemma, or with gated delta nets "
        "beside it, such as Qwen3.5."
    )


@torch.no_grad()
def _served_error(model: LanguageModel) -> float:
    """Largest log-probability difference between a plain forward and what we serve.

    That is a ragged, rolled-back, cached forward, and a packed one.
    """
    ids = torch.tensor(model.known_ids[:64], device=model.device)
    length, drafted, starts = TRIED_TOKENS, 3, [2, 3]  # two rows of different lengths
    tokens_BT = ids[torch.arange(2 * length, device=model.device).reshape(2, length) % len(ids)]
    plain_BTV = model.module(input_ids=tokens_BT, use_cache=False).logits.log_softmax(-1)

    sequences: list[list[int]] = tokens_BT.tolist()
    cache = model.prefill([sequence[:start] for sequence, start in zip(sequences, starts, strict=True)])
    steps_BT = torch.tensor(starts, device=model.device)[:, None] + torch.arange(drafted, device=model.device)
    # A draft that is refused and overwritten: after its first token in one row, from the first on in the other.
    drafts_BT = tokens_BT.gather(1, steps_BT).flip(0).flip(1)
    drafts_BT[0, 0] = tokens_BT[0, starts[0]]
    model.hidden_cached(drafts_BT, steps_BT, cache, length)
    steps_BT[0] += 1
    cache.roll_back(steps_BT[:, 0])
    hidden_BTD = model.hidden_cached(tokens_BT.gather(1, steps_BT), steps_BT, cache, length)
    cached_BTV = model.logits(hidden_BTD).log_softmax(-1)
    packed_NV = model.logits(model.hidden_packed(sequences, starts)).log_softmax(-1)
    expected_BTV = plain_BTV.gather(1, steps_BT[..., None].expand_as(cached_BTV))
    expected_NV = torch.cat([row_TV[start:] for row_TV, start in zip(plain_BTV, starts, strict=True)])
    return float(torch.stack([(cached_BTV - expected_BTV).abs().max(), (packed_NV - expected_NV).abs().max()]).max())


@torch.no_grad()
def _shift_by_length(model: LanguageModel) -> float:
    """What a token at the context's last position changes about the log-probabilities after the first two."""
    if model.context_length is None or model.context_length <= TRIED_TOKENS:
        return 0.0
    tokens_1T = torch.tensor([(model.known_ids * 3)[:3]], device=model.device)
    near, far = (
        model.module(
            input_ids=tokens_1T, position_ids=torch.tensor([[0, 1, last]], device=model.device), use_cache=False
        ).logits[0, :2]
        for last in (2, model.context_length - 1)
    )
    return float((near.log_softmax(-1) - far.log_softmax(-1)).abs().max())


@torch.no_grad()
def both_readings(model: LanguageModel, tokens: Sequence[int], num_last: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities after each of the last tokens of a text as rollout and update see them: [num_last, V], twice.

    Costs two forwards over the text, and the logits of the last tokens only.

    Args:
      tokens: more than `num_last`.
      num_last: tokens that are read from the cache's filled part on, as a draft is.
    Returns:
      through the cache, and whole.
    """
    start = len(tokens) - num_last
    cache = model.prefill([tokens[:start]], max_tokens=len(tokens))
    positions_1T = torch.arange(start, len(tokens), device=model.device)[None]
    tokens_1T = torch.tensor([list(tokens[start:])], device=model.device)
    cached_TV = normalise(model.logits(model.hidden_cached(tokens_1T, positions_1T, cache, len(tokens))[0]))
    return cached_TV, normalise(model.logits(model.hidden_packed([tokens], [start])))
