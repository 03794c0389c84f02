"""Backbones of few bits."""

from __future__ import annotations

import pytest
import torch

from tutelage.errors import ConfigurationError
from tutelage.models import (
    check_quantization,
)
from tutelage.models.quantised import quantised


def test_4_bit_weights_are_for_cuda_and_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match=r"on cpu; .* CUDA kernels of bitsandbytes"):
        check_quantization("4bit", "cpu")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match="pip install bitsandbytes"):
        quantised("4bit", torch.bfloat16, "cuda:0")
