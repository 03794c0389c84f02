"""Can the ragged cache serve this model?  Asked once at load time, and answered with the architecture's name.

First by what the configuration says (kinds of attention), then by trying: a few tokens decoded through the cache, in
rows of different lengths with a rolled-back tail, and the same tokens read as packed sequences must give the logits of
one plain forward. A new architecture that ignores our mask, or scales its logits in a way we do not know, is caught
here and not in a ruined run. Where our own forward is what disagrees, the model is served by its module's.
"""

from __future__ import annotations

import math
import warnings

import torch

from tutelage.errors import ConfigurationError, UnsupportedArchitectureError
from tutelage.models.language_model import LanguageModel

__all__ = ["check_servable"]

SERVED_LAYER_TYPES = {"full_attention", "sliding_attention"}
# Largest difference of log-probabilities, in nats, between cached and plain decoding that rounding explains.
TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}


def check_servable(model: LanguageModel) -> None:
    """Refuse, by name, an architecture that the paired engine's cache cannot serve.

    Costs a handful of forwards over about ten tokens. Sets `model.lean` to False, with a warning, if our own forward
    disagrees with the module while the module's cached forward does not.

    Raises:
      UnsupportedArchitectureError: linear, chunked or recurrent layers, an encoder, or logits that do not agree.
      ConfigurationError: `model.compile` is on and our own forward does not serve the model.
    """
    architecture = type(model.module).__name__
    if getattr(model.module.config, "is_encoder_decoder", False):
        raise UnsupportedArchitectureError(_refusal(model, architecture, "it is an encoder-decoder"))
    unknown = sorted(set(getattr(model.config, "layer_types", None) or ()) - SERVED_LAYER_TYPES)
    if unknown:
        raise UnsupportedArchitectureError(_refusal(model, architecture, f"it has layers of type {', '.join(unknown)}"))
    problem = _disagreement(model)
    if problem is not None and model.is_lean:
        own_problem, model.lean = problem, False
        problem = _disagreement(model)
        if problem is None:
            warnings.warn(
                f"{model.name}: our own forward for {architecture} was refused ({own_problem}), so the slower one of "
                "the module is used. Set `lean=False` on the model to say so yourself.",
                stacklevel=2,
            )
    if problem is not None:
        raise UnsupportedArchitectureError(_refusal(model, architecture, problem))


def _disagreement(model: LanguageModel) -> str | None:
    """Why this model cannot be served as it is set up, or None if it can."""
    try:
        error = _served_error(model)
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError, IndexError) as problem:
        if isinstance(problem, ConfigurationError):
            raise
        return f"decoding through the cache failed with {type(problem).__name__}: {problem}"
    if math.isnan(error):
        return f"its logits are NaN, so its weights are damaged or overflow in {model.module.dtype}"
    tolerance = TOLERANCES[model.module.dtype]
    if not error <= tolerance:
        return f"cached and plain decoding differ by {error:.2g} nats where {tolerance:g} is rounding"
    return None


def _refusal(model: LanguageModel, architecture: str, reason: str) -> str:
    return (
        f"{model.name} is a {architecture}, which the paired engine cannot serve: {reason}. It needs a decoder-only "
        "model with full or sliding-window attention, such as Qwen3, Llama, Mistral or Gemma."
    )


@torch.no_grad()
def _served_error(model: LanguageModel) -> float:
    """Largest log-probability difference between a plain forward and what we serve.

    That is a ragged, rolled-back, cached forward, and a packed one.
    """
    was_training = model.module.training
    model.module.eval()
    ids = torch.tensor(model.known_ids[:64], device=model.device)
    length, drafted, starts = 6, 3, [2, 3]  # two rows of different lengths
    tokens_BT = ids[torch.arange(2 * length, device=model.device).reshape(2, length) % len(ids)]
    plain_BTV = model.module(input_ids=tokens_BT, use_cache=False).logits.log_softmax(-1)

    sequences: list[list[int]] = tokens_BT.tolist()
    cache = model.prefill([sequence[:start] for sequence, start in zip(sequences, starts, strict=True)])
    steps_BT = torch.tensor(starts, device=model.device)[:, None] + torch.arange(drafted, device=model.device)
    wrong_BT = tokens_BT.gather(1, steps_BT).flip(0).flip(1)
    model.hidden_cached(wrong_BT, steps_BT, cache, length)  # a draft that is refused and overwritten
    hidden_BTD = model.hidden_cached(tokens_BT.gather(1, steps_BT), steps_BT, cache, length)
    cached_BTV = model.logits(hidden_BTD).log_softmax(-1)
    packed_NV = model.logits(model.hidden_packed(sequences, starts)).log_softmax(-1)
    model.module.train(was_training)
    expected_BTV = plain_BTV.gather(1, steps_BT[..., None].expand_as(cached_BTV))
    expected_NV = torch.cat([row_TV[start:] for row_TV, start in zip(plain_BTV, starts, strict=True)])
    return float(torch.stack([(cached_BTV - expected_BTV).abs().max(), (packed_NV - expected_NV).abs().max()]).max())
