"""How recurrent layers are called: with the kernels that are installed, and never with packed sequences."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.support.tiny_models import make_model
from tutelage.models import LanguageModel, missing_kernels

# Stand-ins for the two packages: what they promise, written token by token, and a count of their calls.
FLASH_LINEAR_ATTENTION = """
import torch

calls = []

def _delta_rule(name, query, key, value, g, beta, initial_state, output_final_state, use_qk_l2norm_in_kernel):
    calls.append(name)
    repeats = value.shape[2] // key.shape[2]
    query, key = (each.repeat_interleave(repeats, 2) for each in (query, key))
    query, key, value, g, beta = (each.float() for each in (query, key, value, g, beta))
    if use_qk_l2norm_in_kernel:
        query, key = (each * (each.square().sum(-1, keepdim=True) + 1e-6).rsqrt() for each in (query, key))
    query = query * query.shape[-1] ** -0.5
    state = torch.zeros(*value.shape[:1], *value.shape[2:3], key.shape[-1], value.shape[-1])
    state = state if initial_state is None else initial_state.float()
    outputs = []
    for t in range(value.shape[1]):
        state = state * g[:, t].exp()[..., None, None]
        known = torch.einsum("bhkv,bhk->bhv", state, key[:, t])
        new = beta[:, t][..., None] * (value[:, t] - known)
        state = state + torch.einsum("bhk,bhv->bhkv", key[:, t], new)
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, query[:, t]))
    return torch.stack(outputs, 1), state if output_final_state else None

def chunk_gated_delta_rule(query, key, value, g, beta, initial_state=None, output_final_state=False,
                           use_qk_l2norm_in_kernel=False, cu_seqlens=None):
    return _delta_rule("chunk", query, key, value, g, beta, initial_state, output_final_state, use_qk_l2norm_in_kernel)

def fused_recurrent_gated_delta_rule(query, key, value, g, beta, initial_state=None, output_final_state=False,
                                     use_qk_l2norm_in_kernel=False, cu_seqlens=None):
    return _delta_rule("single", query, key, value, g, beta, initial_state, output_final_state, use_qk_l2norm_in_kernel)
"""
CAUSAL_CONV1D = """
import torch.nn.functional as F

calls = []

def causal_conv1d_fn(x, weight, bias=None, seq_idx=None, activation=None):
    calls.append("block")
    padded = F.pad(x, (weight.shape[-1] - 1, 0))
    out = F.conv1d(padded, weight[:, None], bias, groups=len(weight))
    return F.silu(out) if activation == "silu" else out

def causal_conv1d_update(x, conv_state, weight, bias=None, activation=None):
    calls.append("single")
    conv_state.copy_(__import__("torch").cat([conv_state, x], -1)[..., -conv_state.shape[-1]:])
    out = F.conv1d(conv_state, weight[:, None], bias, groups=len(weight))
    return F.silu(out) if activation == "silu" else out
"""
PROGRAM = """
import json, sys
import torch
import fla.ops.gated_delta_rule as rule, causal_conv1d
from tests.support.tiny_models import make_model
from tutelage.models import LanguageModel, check_servable, missing_kernels
model = LanguageModel(make_model("qwen3_5", dtype=torch.float32))
check_servable(model)  # reads on from states, takes drafts back, and reads whole sequences
with torch.no_grad():
    hidden = model.hidden_packed([[1, 2, 3, 4, 5], [6, 7]])
print(json.dumps([missing_kernels(), sorted(set(rule.calls)), sorted(set(causal_conv1d.calls)), hidden.tolist()]))
"""


def test_the_plain_form_refuses_packed_sequences_so_that_they_are_padded() -> None:
    """Without the lengths states would run from one sequence into the next, silently."""
    module = make_model("qwen3_5", dtype=torch.float32)
    tokens, places = torch.tensor([[1, 2, 3, 6, 7]]), torch.tensor([[0, 1, 2, 0, 1]])
    boundaries = torch.tensor([0, 3, 5], dtype=torch.int32)
    if "flash-linear-attention" in missing_kernels():
        with pytest.raises(ValueError, match="can't keep packed sequences apart"):
            module.model(input_ids=tokens, position_ids=places, cu_seq_lens_q=boundaries, use_cache=False)
    with torch.no_grad():
        packed = module.model(input_ids=tokens, position_ids=places, use_cache=False).last_hidden_state[0]
        ours = LanguageModel(module).hidden_packed([[1, 2, 3], [6, 7]])
        alone = module.model(input_ids=tokens[:, 3:], use_cache=False).last_hidden_state[0]
    torch.testing.assert_close(ours[3:], alone, rtol=1e-4, atol=1e-4)
    assert (packed[3:] - alone).abs().max() > 0.01


@pytest.mark.processes
def test_installed_kernels_are_used(tmp_path: Path) -> None:
    """`transformers` looks for them when it is imported, hence a process of its own."""
    assert missing_kernels() == ["flash-linear-attention", "causal-conv1d"], "the tests' environment has neither"
    (tmp_path / "fla/ops").mkdir(parents=True)
    for name in ("fla/__init__.py", "fla/ops/__init__.py"):
        (tmp_path / name).write_text("")
    (tmp_path / "fla/ops/gated_delta_rule.py").write_text(FLASH_LINEAR_ATTENTION)
    (tmp_path / "causal_conv1d.py").write_text(CAUSAL_CONV1D)
    root = Path(__file__).parents[3]
    paths = [str(tmp_path), str(root), str(root / "src")]
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=True,
    )
    missing, rules, convolutions, hidden = json.loads(run.stdout.splitlines()[-1])
    assert (missing, rules, convolutions) == ([], ["chunk", "single"], ["block", "single"])
    with torch.no_grad():
        plain = LanguageModel(make_model("qwen3_5", dtype=torch.float32)).hidden_packed([[1, 2, 3, 4, 5], [6, 7]])
    torch.testing.assert_close(torch.tensor(hidden), plain, rtol=1e-4, atol=1e-4)
