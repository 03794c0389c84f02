"""docs/usage/architectures.md: every line of its table, from a small random model of that class."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.support.tiny_models import ARCHITECTURES, GATED_DELTA_NET, LINEAR_ATTENTION, SHAPE, TEXT_CONFIGS, named_class
from tutelage.errors import UnsupportedArchitectureError
from tutelage.models import LanguageModel, check_servable
from tutelage.policies import Temperature
from tutelage.rollout import PairedEngine

PAGE = Path(__file__).parents[3] / "docs/usage/architectures.md"
LINES = dict(re.findall(r"^\| (`\w+ForCausalLM`[\w ]*) \| (.*) \|$", PAGE.read_text(), re.MULTILINE))
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
WINDOW = {"sliding_window": 4}
TWO_KINDS: dict[str, Any] = {**WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
GEMMA4 = {**TWO_KINDS, "global_head_dim": 8}
INPUTS_PER_LAYER = {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 40}
# Of Phi-3.5 and Phi-4-mini: other rotary factors for texts beyond 64 tokens.
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.1, 1.2],
    "long_factor": [1.5, 2.0, 4.0],
    "original_max_position_embeddings": 64,
}
# Of classes that other tests do not make: the configuration, and what differs from `SHAPE`.
OTHERS: dict[str, tuple[str, dict[str, Any]]] = {
    "`MistralForCausalLM` without a window": ("MistralConfig", {"sliding_window": None}),
    "`Qwen2ForCausalLM`": ("Qwen2Config", {}),
    "`MixtralForCausalLM`": ("MixtralConfig", LOCAL_EXPERTS),
    "`Qwen3MoeForCausalLM`": ("Qwen3MoeConfig", EXPERTS),
    "`Gemma3nForCausalLM`": (
        "Gemma3nTextConfig",
        {
            **TWO_KINDS,
            **INPUTS_PER_LAYER,
            "num_kv_shared_layers": 0,
            "intermediate_size": [48, 48],
            "activation_sparsity_pattern": [0.0, 0.0],
            "laurel_rank": 4,
        },
    ),
    "`Gemma4ForCausalLM`": ("Gemma4TextConfig", {**GEMMA4, "hidden_size_per_layer_input": 0}),
    "`Gemma4ForCausalLM` with shared keys and inputs per layer": (
        "Gemma4TextConfig",
        {
            **GEMMA4,
            **INPUTS_PER_LAYER,
            "num_hidden_layers": 4,
            "layer_types": 2 * TWO_KINDS["layer_types"],
            "num_kv_shared_layers": 2,
        },
    ),
    "`Gemma4ForCausalLM` with experts": (
        "Gemma4TextConfig",
        {
            **GEMMA4,
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": True,
            "num_experts": 4,
            "top_k_experts": 2,
            "moe_intermediate_size": 16,
        },
    ),
    "`GptOssForCausalLM`": ("GptOssConfig", {**WINDOW, **LOCAL_EXPERTS}),
    "`Olmo2ForCausalLM`": ("Olmo2Config", {}),
    "`Olmo3ForCausalLM`": ("Olmo3Config", WINDOW),
    "`Phi3ForCausalLM`": ("Phi3Config", {"original_max_position_embeddings": 512}),
    "`Phi3ForCausalLM` with longrope": (
        "Phi3Config",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 64},
    ),
    "`MinistralForCausalLM` with a window": ("MinistralConfig", WINDOW),
    "`Ministral3ForCausalLM` with a window": ("Ministral3Config", WINDOW),
    "`SmolLM3ForCausalLM`": ("SmolLM3Config", {}),
    "`Qwen3_5MoeForCausalLM`": (
        "Qwen3_5MoeTextConfig",
        {**GATED_DELTA_NET, **EXPERTS, "shared_expert_intermediate_size": 16},
    ),
    "`OlmoHybridForCausalLM`": ("OlmoHybridConfig", {"layer_types": GATED_DELTA_NET["layer_types"]}),
    "`LinearMistralForCausalLM`": ("LinearMistralConfig", {**LINEAR_ATTENTION, "sliding_window": None}),
    "`LinearQwen2ForCausalLM`": ("LinearQwen2Config", LINEAR_ATTENTION),
    "`CohereForCausalLM`": ("CohereConfig", {}),
    "`GraniteForCausalLM`": ("GraniteConfig", {"logits_scaling": 8.0}),
    "`Llama4ForCausalLM`": ("Llama4TextConfig", {"num_local_experts": 2}),
    "`Lfm2ForCausalLM`": ("Lfm2Config", {"layer_types": ["conv", "full_attention"]}),
    "`FalconH1ForCausalLM`": ("FalconH1Config", {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8}),
    "`MambaForCausalLM`": ("MambaConfig", {}),
}
CONFIGURATIONS = OTHERS | {
    f"`{name}ForCausalLM`" + (" with a window" if name == "Mistral" else ""): (
        f"{name}{'TextConfig' if key in TEXT_CONFIGS else 'Config'}",
        extra,
    )
    for key, (name, extra) in ARCHITECTURES.items()
}


def test_the_table_has_every_class_that_tests_make() -> None:
    assert set(LINES) == set(CONFIGURATIONS)


def module_of(line: str) -> Any:
    configuration, extra = CONFIGURATIONS[line]
    torch.manual_seed(0)
    config = named_class(configuration)(**{**SHAPE, **extra, "vocab_size": 40, "eos_token_id": 7})
    return named_class(line.split("`")[1])(config).float().eval()


@pytest.mark.parametrize("line", CONFIGURATIONS)
def test_a_line_of_the_table(line: str) -> None:
    model = LanguageModel(module_of(line))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # our own forward is never taken back
            check_servable(model)
    except UnsupportedArchitectureError as refusal:
        reason = str(refusal).replace("cached and plain decoding differ", "it scales its logits")
        assert LINES[line].startswith("refused: ")
        assert LINES[line].removeprefix("refused: ").removesuffix(" |") in reason
        return
    forward = "ours" if model.uses_fast_forward else "the module's"
    assert LINES[line] == f"{forward} | {'slots and states' if model.cache_bytes_per_row else 'slots'}"


@pytest.mark.parametrize("line", [line for line in OTHERS if not LINES.get(line, "").startswith("refused")])
def test_greedy_tokens_equal_generate(line: str) -> None:
    """Token for token, across windows; of the classes that `test_rounds` does not try."""
    module, prompts = module_of(line), [[1, 2, 3, 4, 5, 6], [9]]
    rollouts = PairedEngine(LanguageModel(module)).generate(Temperature(temperature=0.0), prompts, max_new_tokens=12)
    for prompt, rollout in zip(prompts, rollouts, strict=True):
        settings = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": -1, "pad_token_id": 0}
        expected = module.generate(torch.tensor([prompt]), **settings)[0, len(prompt) :].tolist()
        assert rollout.response_tokens == expected


def test_the_context_of_longrope_ends_where_its_factors_change() -> None:
    configuration, extra = CONFIGURATIONS["`Phi3ForCausalLM` with longrope"]
    config = named_class(configuration)(**{**SHAPE, **extra, "vocab_size": 40})
    assert config.max_position_embeddings == 512
    assert LanguageModel(transformers.Phi3ForCausalLM(config)).context_length == 64


def test_the_memory_that_the_page_names() -> None:
    """Of the default configuration, which is that of 9B: 24 of 32 layers are recurrent."""
    with torch.device("meta"):
        module = transformers.Qwen3_5ForCausalLM(transformers.Qwen3_5TextConfig()).to(torch.bfloat16)
    model = LanguageModel(module)
    states = model.cache_bytes_per_row / 2
    assert f"it is {states / 2**20} MiB" in PAGE.read_text()
    assert f"values of {round(states / model.cache_bytes_per_slot, -1):,.0f} tokens" in re.sub(
        r"\s+", " ", PAGE.read_text()
    )
