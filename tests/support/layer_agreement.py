"""The Triton kernels between a layer's products against the plain forms: in Triton's interpreter, on a GPU as they are.

Run as a program it does the former, because the interpreter must be switched on before Triton is imported:

    TRITON_INTERPRET=1 python -m tests.support.layer_agreement
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from unittest.mock import patch

import torch
from torch import Tensor, nn

from tests.support.tiny_models import make_model
from tutelage.models import LanguageModel, llama_forward

# Both sides round to the type after the same steps, and differ in the order of a sum. The interpreter cuts where a GPU
# rounds to the nearest, so two steps may be off by two places there.
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-6, torch.float16: 2**-9}
SHAPES = [(1, 8), (3, 5, 64), (2, 1, 3, 16), (4, 96), (0, 32)]


def on_both(device: str, call: str, *arguments: object) -> tuple[Tensor, Tensor]:
    """What a part of the forward gives by kernels and without."""
    from tutelage.kernels import triton_layers

    part = getattr(llama_forward, call)
    with torch.no_grad():
        with patch.object(llama_forward, "layer_kernels", lambda states: triton_layers):
            kernels = part(*arguments)
        with patch.object(llama_forward, "layer_kernels", lambda states: None):
            plain = part(*arguments)
    return kernels, plain


def check_same(kernels: Tensor, plain: Tensor, dtype: torch.dtype) -> None:
    assert kernels.dtype == plain.dtype and kernels.shape == plain.shape
    if plain.numel():
        largest = float(plain.abs().max())  # of what is added up, parts may cancel
        torch.testing.assert_close(kernels.float(), plain.float(), rtol=0, atol=ROUNDING[dtype] * largest)


def check_parts(device: str = "cpu") -> None:
    """Norms, rotations and gates of every type and odd shape."""
    generator = torch.Generator().manual_seed(0)
    for dtype in ROUNDING:
        for shape in SHAPES:
            states, other = (
                (3 * torch.randn(shape, generator=generator)).to(device=device, dtype=dtype) for _ in range(2)
            )
            weight = (1 + torch.rand(shape[-1], generator=generator)).to(device=device, dtype=dtype)
            norm = SimpleNamespace(weight=weight, variance_epsilon=1e-6)
            check_same(*on_both(device, "_normalised", norm, states), dtype)
            check_same(*on_both(device, "_gated", nn.SiLU(), states.clone(), other), dtype)
            if len(shape) > 2:
                angles = torch.rand((*shape[:-2], 1, shape[-1]), generator=generator).to(device=device, dtype=dtype)
                check_same(*on_both(device, "_turned", states, angles.cos(), angles.sin()), dtype)


def check_model(device: str = "cpu") -> None:
    """A whole model's hidden states, with norms of queries and keys and grouped heads, by kernels that were called."""
    from tutelage.kernels import triton_layers

    module = make_model("qwen3", num_hidden_layers=2, vocab_size=48, dtype=torch.float32).to(device)
    model, called = LanguageModel(module), []
    sequences = [[1, 2, 3, 4, 5], [6, 7]]

    def counted(states: Tensor) -> object:
        called.append(states.shape)
        return triton_layers

    with torch.no_grad():
        plain = model.hidden_packed(sequences)
        with patch.object(llama_forward, "layer_kernels", counted):
            kernels = model.hidden_packed(sequences)
    torch.testing.assert_close(kernels, plain, rtol=1e-4, atol=1e-5)
    assert len(called) > 8


if __name__ == "__main__":
    check_parts()
    check_model()
    print("agreed", file=sys.stderr)
