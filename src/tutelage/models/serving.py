"""Can the ragged cache serve this model?  Asked once at load time, and answered with the architecture's name.

First by what the configuration says (kinds of attention), then by trying: a few tokens decoded through the cache, in
rows of different lengths with a rolled-back tail, must give the logits of one plain forward. A new architecture that
ignores our mask, or scales its logits in a way we do not know, is caught here and not in a ruined run.
"""

from __future__ import annotations

import torch

from tutelage.errors import UnsupportedArchitectureError
from tutelage.models.language_model import LanguageModel

__all__ = ["check_servable"]

SERVED_LAYER_TYPES = {"full_attention", "sliding_attention"}
# Largest difference of log-probabilities, in nats, between cached and plain decoding that rounding explains.
TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.05}


def check_servable(model: LanguageModel) -> None:
    """Refuse, by name, an architecture that the paired engine's cache cannot serve.

    Costs two forwards over about ten tokens.

    Raises:
      UnsupportedArchitectureError: linear, chunked or recurrent layers, an encoder, or logits that do not agree.
    """
    architecture = type(model.module).__name__
    if getattr(model.module.config, "is_encoder_decoder", False):
        raise UnsupportedArchitectureError(_refusal(model, architecture, "it is an encoder-decoder"))
    unknown = sorted(set(getattr(model.config, "layer_types", None) or ()) - SERVED_LAYER_TYPES)
    if unknown:
        raise UnsupportedArchitectureError(_refusal(model, architecture, f"it has layers of type {', '.join(unknown)}"))
    try:
        error = _cached_decoding_error(model)
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError, IndexError) as problem:
        reason = f"decoding through the cache failed with {type(problem).__name__}: {problem}"
        raise UnsupportedArchitectureError(_refusal(model, architecture, reason)) from problem
    tolerance = TOLERANCES[model.module.dtype]
    if not error <= tolerance:
        reason = f"cached and plain decoding differ by {error:.2g} nats where {tolerance:g} is rounding"
        raise UnsupportedArchitectureError(_refusal(model, architecture, reason))


def _refusal(model: LanguageModel, architecture: str, reason: str) -> str:
    return (
        f"{model.name} is a {architecture}, which the paired engine cannot serve: {reason}. It needs a decoder-only "
        "model with full or sliding-window attention, such as Qwen3, Llama, Mistral or Gemma."
    )


@torch.no_grad()
def _cached_decoding_error(model: LanguageModel) -> float:
    """Largest log-probability difference between a plain forward and a ragged, rolled-back, cached one."""
    was_training = model.module.training
    model.module.eval()
    ids = torch.tensor(model.known_ids[:64], device=model.device)
    length, drafted = 6, 3
    tokens_BT = ids[torch.arange(2 * length, device=model.device).reshape(2, length) % len(ids)]
    plain_BTV = model.module(input_ids=tokens_BT, use_cache=False).logits.log_softmax(-1)

    cache = model.new_cache()
    positions_BT = torch.arange(length, device=model.device).expand(2, length)
    starts_B1 = torch.tensor([[2], [3]], device=model.device)  # two rows of different lengths
    model.hidden_cached(tokens_BT[:, :drafted], positions_BT[:, :drafted], cache, drafted, is_prefill=True)
    steps_BT = starts_B1 + torch.arange(drafted, device=model.device)
    wrong_BT = tokens_BT.gather(1, steps_BT).flip(0).flip(1)
    model.hidden_cached(wrong_BT, steps_BT, cache, length)  # a draft that is refused and overwritten
    hidden_BTD = model.hidden_cached(tokens_BT.gather(1, steps_BT), steps_BT, cache, length)
    cached_BTV = model.logits(hidden_BTD).log_softmax(-1)
    model.module.train(was_training)
    expected_BTV = plain_BTV.gather(1, steps_BT[..., None].expand_as(cached_BTV))
    return float((cached_BTV - expected_BTV).abs().max())
