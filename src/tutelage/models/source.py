"""Where does a model come from, and how far is it trusted?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

__all__ = ["DEFAULT_DTYPE", "DTYPES", "ModelSource"]

DEFAULT_DTYPE: Final = "float32"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(frozen=True)
class ModelSource:
    """A model that can be loaded.

    Fields:
      path: model directory, hub id such as "Qwen/Qwen3-0.6B-Base", or an adapter's folder, which is loaded on its base.
      dtype: that its weights get, a key of `DTYPES`.
      revision: of a hub id; None = its newest.
      trust_remote_code: run Python code that comes with the model. Off unless you have read that code.
      allow_pickle: accept `pytorch_model.bin`, which can run code when it is opened. Off by default.
      attention: `attn_implementation` of transformers; None = its default for the architecture.
    """

    path: str
    dtype: str = DEFAULT_DTYPE
    revision: str | None = None
    trust_remote_code: bool = False
    allow_pickle: bool = False
    attention: str | None = None

    @classmethod
    def of(cls, source: ModelSource | str) -> ModelSource:
        """A source, also from a bare path or hub id."""
        return cls(source) if isinstance(source, str) else source
