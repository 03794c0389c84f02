"""Linearising: what is copied is copied, what is new is new, and none replaced is none changed."""

from __future__ import annotations

import pytest
import torch
import transformers

from tests.support.tiny_models import SHAPE, make_model
from tutelage.errors import ConfigurationError, UnsupportedArchitectureError
from tutelage.models.linear_attention import check_linearisable, layers_from, linearise

TOKENS = torch.tensor([[1, 2, 3, 4, 5]])


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_nothing_replaced_computes_what_the_original_does(family: str) -> None:
    module = make_model(family)
    made = linearise(module, ())
    assert made.num_new == 0 and made.new == ()
    assert torch.equal(made.module(input_ids=TOKENS).logits, module(input_ids=TOKENS).logits)


@pytest.mark.parametrize("kernel", ["rebased", "based"])
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_all_that_both_have_is_copied(family: str, kernel: str) -> None:
    module = make_model(family, num_hidden_layers=3)
    made = linearise(module, (0, 2), kernel, 4)
    original, linear = module.state_dict(), made.module.state_dict()
    for name, weight in original.items():
        is_replaced = any(f"layers.{place}.self_attn" in name for place in (0, 2))
        assert torch.equal(linear.pop(name.replace("self_attn", "linear_attn") if is_replaced else name), weight)
    new = {name.split("linear_attn.")[1] for name in linear}
    assert new == set(made.new) and sum(weight.numel() for weight in linear.values()) == made.num_new
    projections = {"q_feature_proj.weight", "k_feature_proj.weight"}
    norms = {f"{each}_feature_norm.{part}" for each in "qk" for part in ("weight", "bias")}
    assert new == projections | (norms if kernel == "rebased" else set())
    assert made.num_copied == sum(p.numel() for p in module.parameters())
    assert made.module.config.layer_types == ["linear_attention", "full_attention", "linear_attention"]


@torch.no_grad()
def test_new_projections_keep_products_of_queries_and_keys() -> None:
    """Whole heads exactly: with as many entries as a head has, the scores are those of softmax."""
    module = make_model("qwen3")
    for size, is_exact in ((8, True), (4, False)):
        mixer = linearise(module, (0,), "based", size).module.model.layers[0].linear_attn
        torch.manual_seed(0)
        queries, keys = torch.randn(500, 4, 8, dtype=torch.float64), torch.randn(500, 2, 8, dtype=torch.float64)
        short_queries = mixer.q_feature_proj(queries.flatten(1)).unflatten(1, (4, size))
        short_keys = mixer.k_feature_proj(keys.flatten(1)).unflatten(1, (2, size))
        full = (queries * keys.repeat_interleave(2, 1)).sum(-1) / 8**0.5
        short = (short_queries * short_keys.repeat_interleave(2, 1)).sum(-1) / size**0.5
        slope = float((full * short).sum() / full.square().sum())
        assert slope == pytest.approx(1, abs=1e-9) if is_exact else 0.8 < slope < 1.2


def test_a_seed_decides_what_is_new() -> None:
    module = make_model("llama")
    first, same, other = (linearise(module, (1,), seed=seed).module.state_dict() for seed in (1, 1, 2))
    name = "model.layers.1.linear_attn.k_feature_proj.weight"
    assert torch.equal(first[name], same[name]) and not torch.equal(first[name], other[name])


@pytest.mark.parametrize(
    ("text", "layers"),
    [("0", (0,)), ("1,3-4", (1, 3, 4)), ("3,0-1,1", (0, 1, 3)), ("all", (0, 1, 2, 3, 4)), ("every-other", (1, 3))],
)
def test_layers_are_named_by_number(text: str, layers: tuple[int, ...]) -> None:
    assert layers_from(text, 5) == layers


@pytest.mark.parametrize("text", ["", "5", "1,7", "2-1", "-1", "one", "1;2", "1-", "9" * 30])
def test_other_layers_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^--layers "):
        layers_from(text, 5)


@pytest.mark.parametrize("architecture", ["gemma", "gemma2", "mistral", "qwen3_5", "linear_qwen3"])
def test_other_architectures_are_refused_by_name(architecture: str) -> None:
    module = make_model(architecture)
    with pytest.raises(UnsupportedArchitectureError, match=f"a {type(module).__name__} cannot be linearised"):
        linearise(module, (0,))


def test_positions_that_change_with_the_length_are_refused() -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    module = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE, vocab_size=40, rope_parameters=rope))
    with pytest.raises(UnsupportedArchitectureError, match="plain rotary positions"):
        linearise(module, (0,))


def test_quantised_weights_and_odd_sizes_are_refused() -> None:
    module = make_model("qwen3")
    for settings in ({"kernel": "softmax"}, {"feature_size": 0}, {"feature_size": 1000}):
        with pytest.raises(ConfigurationError, match="expected"):
            linearise(module, (0,), **settings)
    module.hf_quantizer = object()
    with pytest.raises(UnsupportedArchitectureError, match="quantised"):
        linearise(module, (0,))
    comes_quantised = make_model("qwen3")
    comes_quantised.config.quantization_config = {"quant_method": "fp8"}
    with pytest.raises(UnsupportedArchitectureError, match="quantised"):
        check_linearisable(comes_quantised)
