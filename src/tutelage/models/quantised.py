"""Weights that are codes for numbers: a backbone in 4 bits for an adapter to learn on, and folders that come quantised.

QLoRA (arXiv 2305.14314) goes through `bitsandbytes` on CUDA. It has not been tried on a GPU yet: the tests cover the
refusals and the arguments for `transformers`. A folder that comes quantised (FP8, AWQ, GPTQ, ...) can be a teacher. It
cannot be a student: codes do not learn, and a saved or merged model would consist of codes that cannot be read back.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers.quantizers import AutoHfQuantizer

from tutelage.errors import ConfigurationError
from tutelage.models.reading import read_json

__all__ = [
    "check_learnable",
    "check_packages",
    "check_quantization",
    "check_unquantised",
    "is_quantised",
    "method_of",
    "placement_of",
    "quantised",
]


def method_of(config: Any) -> str | None:
    """How the weights of a folder are quantised, from its configuration; None = they are plain numbers."""
    for place in (config, config.get_text_config()):
        settings = getattr(place, "quantization_config", None)
        if settings is not None:
            method = settings.get("quant_method") if isinstance(settings, dict) else settings.quant_method
            return str(getattr(method, "value", method))
    return None


def placement_of(config: Any, device: str | torch.device) -> dict[str, Any]:
    """Arguments for `from_pretrained`: weights of a folder that came quantised are made on their device, and stay."""
    return {} if method_of(config) is None else {"device_map": {"": str(device)}}


def is_quantised(module: Any) -> bool:
    """Whether a loaded model's weights are codes, or were when they were read."""
    return getattr(module, "hf_quantizer", None) is not None


def check_learnable(module: Any, path: str) -> None:
    """Refuse a student whose weights came quantised, as one from the hub may.

    Raises:
      ConfigurationError: names how they are quantised.
    """
    if is_quantised(module):
        raise ConfigurationError(_refusal(path, str(method_of(module.config))))


def check_packages(config: Any) -> None:
    """Let the quantiser of a folder check that it can run here.

    Raises:
      ImportError: names the package that it needs.
    """
    settings = getattr(config, "quantization_config", None)
    if settings is not None:
        place = {"": "cuda" if torch.cuda.is_available() else "cpu"}
        AutoHfQuantizer.from_config(settings, pre_quantized=True).validate_environment(device_map=place)


def check_unquantised(path: str, base_path: str | None = None) -> None:
    """Refuse a student whose folder, or whose adapter's base, is quantised; a hub id is checked when it is loaded.

    Raises:
      ConfigurationError: names how it is quantised.
    """
    file = Path(base_path or path) / "config.json"
    if not file.is_file():
        return
    settings = read_json(file)
    text = settings.get("text_config")
    for table in (settings, text if isinstance(text, dict) else {}):
        if table.get("quantization_config") is not None:
            quantization = table["quantization_config"]
            method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
            raise ConfigurationError(_refusal(path, str(method)))


def _refusal(path: str, method: str) -> str:
    """Why such a model cannot be the student."""
    return (
        f"student {path!r} has weights that are quantised already ({method}); these cannot learn, and neither they nor "
        "an adapter merged into them could be saved correctly. Set `student` to the model before it was quantised; "
        "with [student.adapter], student.quantization = '4bit' then keeps it small. As a teacher it may stay quantised."
    )


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
    """Arguments for `from_pretrained`: NF4 weights with quantised scales, products in `dtype`.

    Raises:
      ConfigurationError: see `check_quantization`.
    """
    from transformers import BitsAndBytesConfig

    check_quantization(quantization, device)
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    return {"quantization_config": config, "device_map": {"": str(device)}}
