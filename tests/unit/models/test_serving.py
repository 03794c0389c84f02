"""Which models are served, and how the others are found out."""

from __future__ import annotations

import pytest
import torch
import transformers

from tests.support.tiny_models import make_model
from tutelage.errors import UnsupportedArchitectureError
from tutelage.models import (
    LanguageModel,
    as_language_model,
    check_servable,
)


def test_every_served_architecture_passes_the_check_in_every_type(architecture: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        check_servable(as_language_model(make_model(architecture, dtype=dtype)))


def test_linear_attention_is_refused_by_name() -> None:
    config = transformers.MambaConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, eos_token_id=0, pad_token_id=0
    )
    with pytest.raises(UnsupportedArchitectureError, match=r"thing is a MambaForCausalLM.*linear_attention"):
        check_servable(as_language_model(transformers.MambaForCausalLM(config), "thing"))


def test_a_head_that_scales_its_logits_is_caught_by_trying() -> None:
    config = transformers.CohereConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, logit_scale=0.25,
    )  # fmt: skip
    with pytest.raises(UnsupportedArchitectureError, match=r"CohereForCausalLM.*differ by"):
        check_servable(as_language_model(transformers.CohereForCausalLM(config).eval()))


def test_a_model_that_ignores_our_mask_is_caught_by_trying(monkeypatch: pytest.MonkeyPatch) -> None:
    module = make_model("qwen3", dtype=torch.float32)
    forward = module.model.forward
    monkeypatch.setattr(module.model, "forward", lambda *given, attention_mask, **named: forward(*given, **named))
    model = LanguageModel(module, fast_forward=False)
    with pytest.raises(UnsupportedArchitectureError, match="differ by|failed with"):
        check_servable(model)
