"""A backbone in 4 bits for an adapter to learn on: QLoRA (arXiv 2305.14314), through `bitsandbytes` on CUDA.

Not tried yet on a GPU: the tests see the refusals and what is asked of `transformers`.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from tutelage.errors import ConfigurationError

__all__ = ["check_quantization", "quantised"]


def check_quantization(quantization: str, device: str | torch.device) -> None:
    """Refuse what cannot be quantised here, before anything is loaded.

    Raises:
      ConfigurationError: the device is no CUDA device, or `bitsandbytes` is not installed.
    """
    kind = torch.device(device).type
    if kind != "cuda":
        raise ConfigurationError(
            f"student.quantization is {quantization!r} on {kind}; the products with 4-bit weights are CUDA kernels of "
            "bitsandbytes, and nothing is gained without them. Set runtime.device to a CUDA device, or drop "
            "student.quantization and load the base with student.dtype = 'bfloat16'."
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigurationError(
            f"student.quantization is {quantization!r}, which needs bitsandbytes. Install it: pip install bitsandbytes"
        )


def quantised(quantization: str, dtype: torch.dtype, device: str | torch.device) -> dict[str, Any]:
    """What `from_pretrained` is told: NF4 weights with quantised scales, products in `dtype`.

    Raises:
      ConfigurationError: see `check_quantization`.
    """
    from transformers import BitsAndBytesConfig

    check_quantization(quantization, device)
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": config, "device_map": {"": str(device)}}
