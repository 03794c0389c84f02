"""The models: opened by the automatic classes, generating with a cache of transformers, every layer linear or some."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

from tests.support.tiny_models import make_model, named_class
from tutelage.models.linear_attention import is_linear_student, linear_families

PROMPTS = torch.tensor([[1, 2, 3, 4, 5], [9, 8, 7, 6, 5]])
FAMILIES = [classes[1].__name__.removesuffix("ForCausalLM") for classes in linear_families().values()]


@pytest.mark.parametrize("kinds", ["linear_attention", "full_attention"])
@pytest.mark.parametrize("kernel", ["rebased", "based"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_of_transformers_changes_nothing(family: str, kernel: str, kinds: str) -> None:
    """Token by token from a cache, also with padding on the left, as whole texts read anew."""
    config = named_class(f"{family}Config")(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, initializer_range=0.5, eos_token_id=None, bos_token_id=None, pad_token_id=0,
        layer_types=["linear_attention", kinds], linear_kernel=kernel, linear_feature_size=4,
        **({"sliding_window": None} if family == "LinearMistral" else {}),
    )  # fmt: skip
    torch.manual_seed(0)
    module = named_class(f"{family}ForCausalLM")(config).double().eval()
    expected = PROMPTS
    for _ in range(5):
        following = module(input_ids=expected, use_cache=False).logits[:, -1].argmax(-1)
        expected = torch.cat((expected, following[:, None]), dim=1)
    settings = {"max_new_tokens": 5, "do_sample": False}
    for padding in (0, 2):
        tokens = torch.cat((torch.zeros(2, padding, dtype=torch.int64), PROMPTS), dim=1)
        mask = (torch.arange(tokens.shape[1]) >= padding).long().expand(2, -1)
        found = module.generate(tokens, attention_mask=mask, **settings)
        assert torch.equal(found[:, padding:], expected)


def test_what_is_saved_is_opened_by_name_without_code_from_the_folder(tmp_path: Path) -> None:
    module = make_model("linear_qwen3", dtype=torch.float32, stop_ids=3)
    module.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    logits = module(input_ids=PROMPTS).logits
    torch.save(logits, tmp_path / "logits.pt")
    program = (
        "import sys, torch, transformers, tutelage.models\n"
        "module = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
        f"found = module(input_ids=torch.tensor({PROMPTS.tolist()})).logits\n"
        "torch.testing.assert_close(found, torch.load(sys.argv[1] + '/logits.pt'))\n"
        "print(type(module).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "LinearQwen3ForCausalLM", done.stderr


def test_which_configurations_are_ours() -> None:
    assert is_linear_student(make_model("linear_llama").config)
    assert not is_linear_student(transformers.Qwen3Config()) and not is_linear_student(make_model("qwen3_5").config)
